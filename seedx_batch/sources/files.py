"""The input files: finding them by path, glob or folder, hashing them, and telling whether one has changed.

Must never know what a record is.
"""

import difflib
import glob
import hashlib
import io
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from seedx_batch.errors import InputError
from seedx_batch.spec import InputSpec

SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""By the name's last suffix; not for parquet, which compresses its own pages."""

_KNOWN = "known are .parquet, and .jsonl, .ndjson, .csv, .tsv, each also with .gz or .zst"
_PARQUET_TAIL = struct.Struct("<I4s")
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input file as it was when its rows were counted.

    Args:
        num_rows: those of its rows that the job takes.
        digest: BLAKE2b-128 in hex: of a text file's bytes as they lie on disk (followed by `/N` where only its first
            N bytes were needed), of a parquet file's footer and size.
        lines: of a text file the sum of its lines' CRC-32, whatever their order; 0 for parquet.
    """

    path: str
    format: str
    num_rows: int
    num_bytes: int
    mtime_ns: int
    digest: str
    lines: int = 0

    def to_json(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(**values)


def find(spec: InputSpec) -> list[Path]:
    """The input files, each once, in order.

    Raises:
        InputError: nothing is there, it cannot be read, or it is not of one known format.
    """
    patterns = [spec.path] if isinstance(spec.path, str) else spec.path
    found: dict[str, Path] = {}
    for pattern in patterns:
        try:
            for path in _matches(pattern, spec.format):
                found.setdefault(os.path.abspath(path), path)
        except OSError as error:
            raise InputError(f"input.path: {error.filename or pattern}: {error.strerror}; make it readable") from error
    paths = sorted(found.values())
    if not paths:
        raise InputError("input.path: is an empty list; name a file, a glob or a folder")
    by_format: dict[str, Path] = {}
    for path in paths:
        by_format.setdefault(format_of(path, spec.format), path)
        if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
            raise InputError(f"input.path: {str(path)!a}: its name is no UTF-8, which parts could not tell; rename it")
        if not os.access(path, os.R_OK):
            raise InputError(f"input.path: {path}: there is no right to read it; change its permissions")
    if len(by_format) > 1:
        mixed = ", ".join(f"{path} is {name}" for name, path in by_format.items())
        raise InputError(f"input.path: more than one format ({mixed}); give each a job of its own, or set input.format")
    return paths


def format_of(path: Path, given: str) -> str:
    """`parquet`, `jsonl`, `csv` or `tsv`; `given` is the job's own word, which `auto` leaves to the file's name.

    Raises:
        InputError: the name does not tell.
    """
    name = SUFFIXES.get(_suffix(path)) if given == "auto" else given
    if name is None:
        raise InputError(
            f"input.path: {path}: its name does not tell its format ({_KNOWN}); rename it, or set input.format"
        )
    return name


def compression_of(path: Path) -> str | None:
    """`gzip`, `zstd` or None, by the file's name."""
    return COMPRESSIONS.get(path.suffix.lower())


def changed(file: InputFile) -> str | None:
    """What has changed since a file was counted, in words; None if it is the same."""
    try:
        status = os.stat(file.path)
        if status.st_size != file.num_bytes:
            return f"was {file.num_bytes:,} bytes, is {status.st_size:,}"
        if status.st_mtime_ns == file.mtime_ns:
            return None
        path, (_, _, counted) = Path(file.path), file.digest.partition("/")
        now = parquet_digest(path) if file.format == "parquet" else _digest(path, int(counted) if counted else None)
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if now == file.digest else "content differs at the same size"


class Tap(io.RawIOBase):
    """A file's bytes, hashed as they pass."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._hash = hashlib.blake2b(digest_size=16)
        self._num_bytes = 0
        self.status = os.fstat(self._file.fileno())

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer's beginning; the number of bytes, 0 at the end."""
        num_bytes = self._file.readinto(buffer) or 0
        self._hash.update(memoryview(buffer)[:num_bytes])
        self._num_bytes += num_bytes
        return num_bytes

    def digest(self) -> str:
        """The hash of what has passed, with its length unless that is the whole file."""
        text = self._hash.hexdigest()
        return text if self._num_bytes == self.status.st_size else f"{text}/{self._num_bytes}"

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def parquet_digest(path: Path) -> str:
    """The hash of a parquet file's footer and size; that of nothing but its size if it is no parquet file."""
    with path.open("rb") as file:
        num_bytes = file.seek(0, io.SEEK_END)
        file.seek(max(0, num_bytes - _PARQUET_TAIL.size))
        tail = file.read()
        if len(tail) == _PARQUET_TAIL.size:
            length, _ = _PARQUET_TAIL.unpack(tail)
            file.seek(max(0, num_bytes - _PARQUET_TAIL.size - length))
            tail = file.read()
    return hashlib.blake2b(tail + str(num_bytes).encode(), digest_size=16).hexdigest()


def _digest(path: Path, num_bytes: int | None) -> str:
    """What a `Tap` says after so many bytes, or after all."""
    with Tap(path) as tap:
        left = tap.status.st_size if num_bytes is None else num_bytes
        while left and (block := tap.read(min(_BLOCK, left))):
            left -= len(block)
        return tap.digest()


def _suffix(path: Path) -> str:
    """The suffix that names the format, of a compressed file the one before the last."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        return next((suffix for suffix in suffixes[-2:-1] if suffix != ".parquet"), "")
    return suffixes[-1] if suffixes else ""


def _matches(pattern: str, given: str) -> Iterable[Path]:
    path = Path(pattern)
    if path.is_dir():
        wanted = {given} if given != "auto" else set(SUFFIXES.values())
        found = [file for file in _walk(path) if SUFFIXES.get(_suffix(file)) in wanted]
        if not found:
            kind = "no input file" if given == "auto" else f"no {given} file"
            raise InputError(f"input.path: {pattern}: {kind} in this folder ({_KNOWN}); name the folder that has them")
        return found
    if path.is_file():
        return [path]
    if path.exists():
        raise InputError(f"input.path: {pattern}: is neither a file nor a folder; write its rows to a file first")
    if glob.has_magic(pattern):
        found = [file for file in map(Path, glob.iglob(pattern, recursive=True)) if file.is_file()]
        if not found:
            raise InputError(f"input.path: {pattern}: matches no file, seen from {Path.cwd()}; correct it")
        return found
    raise InputError(f"input.path: {pattern}: there is no such file or folder, seen from {Path.cwd()}; {_near(path)}")


def _walk(root: Path) -> Iterator[Path]:
    """All files below a folder but hidden and private ones; links are followed, each folder once."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        seen.add(os.path.realpath(folder))
        folders[:] = [
            name for name in folders if _is_open(name) and os.path.realpath(os.path.join(folder, name)) not in seen
        ]
        yield from (Path(folder, name) for name in names if _is_open(name))


def _is_open(name: str) -> bool:
    return not name.startswith((".", "_"))


def _raise(error: OSError) -> None:
    raise error


def _near(path: Path) -> str:
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean '{path.parent / close[0]}'?" if close else "correct it"
