"""Seals: a digest over a whole file, kept in that file, so that no byte of it can change unseen.

Must never know what kind of file it is. A seal is spelt as a member in JSON, which no text within JSON can look like:

    "sha256": "<64 hexadecimal digits: of the file, with zeros for these digits>"
"""

import hashlib

_MARK = b'"sha256": "'
_NUM_DIGITS = 64

OPEN = (_MARK + b"0" * _NUM_DIGITS + b'"').decode()
"""What a file has in the place of its seal until `close` fills it in; the last one in the file counts."""


def close(content: bytearray) -> None:
    """Fills in the seal of a file's whole content.

    Raises:
        ValueError: the content has no open seal.
    """
    start = _digits(content)
    if content[start : start + _NUM_DIGITS] != b"0" * _NUM_DIGITS:
        raise ValueError("the seal is closed already")
    content[start : start + _NUM_DIGITS] = hashlib.sha256(content).hexdigest().encode()


def closed(text: str) -> str:
    """A text with its open seal closed.

    Raises:
        ValueError: as for `close`.
    """
    content = bytearray(text.encode())
    close(content)
    return content.decode()


def check(content: bytes) -> None:
    """Makes sure that no byte has changed since the seal was closed.

    Raises:
        ValueError: one has, or there is no seal.
    """
    start = _digits(content)
    end = start + _NUM_DIGITS
    digest = hashlib.sha256(memoryview(content)[:start])
    digest.update(b"0" * _NUM_DIGITS)
    digest.update(memoryview(content)[end:])
    if digest.hexdigest().encode() != content[start:end]:
        raise ValueError("its content does not have the digest it was written with")


def _digits(content: bytes | bytearray) -> int:
    """Where the digits of the last seal begin."""
    start = content.rfind(_MARK)
    if start < 0:
        raise ValueError("it has no digest")
    return start + len(_MARK)
