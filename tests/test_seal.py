"""Seals: no byte of a sealed file can change unseen."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from seedx_batch import seal


@given(st.binary(max_size=30), st.binary(max_size=30), st.integers(0), st.integers(1, 255))
def test_any_changed_byte_is_seen(head: bytes, tail: bytes, where: int, flip: int) -> None:
    """A closed seal passes; with any one byte changed, its own digits and name among them, it does not."""
    content = bytearray(head + seal.OPEN.encode() + tail)
    assume(content.rfind(b'"sha256": "') == len(head))
    seal.close(content)
    seal.check(bytes(content))
    content[where % len(content)] ^= flip
    with pytest.raises(ValueError, match="digest"):
        seal.check(bytes(content))


def test_a_text_cannot_pretend() -> None:
    """Text that looks like a seal is none within JSON, before or behind the real one."""
    text = json.dumps({"a": seal.OPEN})[:-1] + ", " + seal.OPEN + ", " + json.dumps({"b": seal.OPEN})[1:]
    closed = seal.closed(text)
    seal.check(closed.encode())
    assert json.loads(closed)["a"] == json.loads(closed)["b"] == seal.OPEN


@pytest.mark.parametrize("content", [b"", b"text", seal.OPEN.encode()[:-2]])
def test_what_has_no_seal_does_not_pass(content: bytes) -> None:
    """A file without a whole seal is not taken for a good one."""
    with pytest.raises(ValueError, match="digest"):
        seal.check(content)


def test_a_seal_is_closed_once() -> None:
    """A second digest would say that the first one's file was good."""
    with pytest.raises(ValueError, match="closed already"):
        seal.closed(seal.closed(seal.OPEN))
