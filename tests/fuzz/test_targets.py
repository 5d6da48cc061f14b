"""The fuzzer's targets over its corpus and over some bytes of hypothesis'; `make fuzz` tries more."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, parquet, part

CORPUS = sorted(path for path in (Path(__file__).parent / "corpus").glob("*/*"))
SIGNS = st.text("{}[]\"'ab:,\\n\\\\ -&*!|>%#@\\t01.<=\\0\\x1b\u202e", max_size=40).map(str.encode)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_corpus(path: Path) -> None:
    """What the fuzzer begins with, and what it once found, keeps every promise."""
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", sorted(TARGETS))
@settings(max_examples=10)
@given(st.binary(max_size=24) | SIGNS)
def test_any_bytes(name: str, data: bytes) -> None:
    """No bytes crash a reader, the spec, a template, a journal, a part, a plan or a ledger, or make a wrong row."""
    TARGETS[name](data)


@pytest.mark.parametrize("damaged", [parquet, part], ids=lambda function: function.__name__)
def test_a_flipped_bit_changes_no_row(damaged: object) -> None:
    """One flipped bit anywhere in a parquet file is refused, or harmless outside of its footer."""
    for place in range(0, 900, 11):
        damaged(struct.pack("<HBB", place, 1, place % 8))  # type: ignore[operator]
