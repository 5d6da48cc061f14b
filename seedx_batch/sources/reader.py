"""Rows: one shard of an input file at a time, each with its key, its id and its fields.

Must never know how the shards were cut, or what becomes of a row.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from seedx_batch.errors import InputError
from seedx_batch.records import Row, RowKey, Shard
from seedx_batch.sources.files import InputFile, changed
from seedx_batch.sources.parquet import ArrowFields, TableFile
from seedx_batch.sources.text import Record, TextFile, digest_of

_MOST_IN_MEMORY = 1 << 28
"""Bytes of a shard's text that are read and checked at once: an open shard holds its rows in memory anyway. A longer
one streams, and is checked only by its file's size and time."""
_REMEDY = "put it back as it was and run the same command again; finished rows are kept"


class Reader:
    """Reads shards, one after the other, and only rows that are what they were when they were counted.

    Args:
        files: those that the shards are of.
        id_column: the column that names rows, if there is one.
    """

    def __init__(self, files: Sequence[InputFile], id_column: str | None) -> None:
        self._files = {file.path: file for file in files}
        self._labels = _labels(list(self._files))
        self._id_column = id_column
        self._path: str | None = None
        self._status: tuple[int, int, int] | None = None
        self._opened: TextFile | TableFile | None = None
        self._records: Iterator[Record] = iter(())
        self._next_row = 0

    def rows(self, shard: Shard) -> Iterator[Row]:
        """The shard's rows in order; one that cannot be read has no fields and an error, "kind: reason".

        A row without an id is named by its file and its place there, from 0.

        Raises:
            InputError: the file is not what was counted, or cannot be read.
        """
        self._go_to(shard)
        label = self._labels[shard.path]
        is_checked = _is_checked(shard)
        batch = None
        for position in range(shard.num_rows):
            record = next(self._records, None)
            if record is None:
                raise InputError(
                    f"{shard.path}: ends before row {self._next_row:,}, and had {self._files[shard.path].num_rows:,} "
                    f"when its rows were counted; {_REMEDY}"
                )
            _, fields, error = record
            if not is_checked and not (isinstance(fields, ArrowFields) and fields.batch is batch):
                # After a batch was read and before a row of it is given.
                if _status(shard.path) != self._status:
                    raise InputError(f"{shard.path}: has changed while it was read; {_REMEDY}")
                batch = fields.batch if isinstance(fields, ArrowFields) else None
            row_id = id_text(fields, self._id_column) or f"{label}:{self._next_row}"
            self._next_row += 1
            yield Row(RowKey(shard.index, position), row_id, fields, error)

    def close(self) -> None:
        """Closes the file that is open."""
        if self._opened is not None:
            self._opened.close()
        self._opened = self._path = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _go_to(self, shard: Shard) -> None:
        status = _status(shard.path)
        if self._opened is None or self._path != shard.path or self._status != status:
            self.close()
            self._opened = _open(self._files[shard.path], is_checked=_is_checked(shard))
            self._path, self._status = shard.path, status
        elif self._next_row == shard.start_row and not shard.digest:
            return
        if isinstance(self._opened, TextFile) and _is_checked(shard):
            piece = self._opened.piece(shard.first_byte, shard.num_bytes)
            if digest_of(piece) != shard.digest:
                raise InputError(f"{shard.path}: {told(shard)} have changed since they were counted; {_REMEDY}")
            self._records = self._opened.records_in(piece[shard.start_byte - shard.first_byte :], shard.start_byte)
        else:
            self._opened.seek(shard.start_row, shard.start_byte)
            self._records = self._opened.records()
        self._next_row = shard.start_row


def id_text(fields: Mapping[str, Any], column: str | None) -> str | None:
    """What a record's id column says, as text; None where that is nothing."""
    return None if column is None else as_id(fields.get(column))


def as_id(value: Any) -> str | None:
    """A value as the id of a row; None where it is nothing."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def told(shard: Shard) -> str:
    """A shard's rows for a person, from 0 as they are in the ids of rows without one."""
    last = shard.start_row + shard.num_rows - 1
    return f"rows {shard.start_row:,} to {last:,}" if shard.num_rows > 1 else f"row {last:,}"


def _is_checked(shard: Shard) -> bool:
    """Whether a shard's text is checked by its digest before a row of it is given."""
    return bool(shard.digest) and shard.num_bytes <= _MOST_IN_MEMORY


def _status(path: str) -> tuple[int, int, int]:
    """What tells a file from what it was a moment ago."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {_REMEDY}") from error
    return status.st_ino, status.st_size, status.st_mtime_ns


def _open(file: InputFile, *, is_checked: bool) -> TextFile | TableFile:
    """The file, if it is what it was; where its shards are checked one by one, if it has the size that it had."""
    path = Path(file.path)
    num_bytes = _status(file.path)[1]
    change = f"was {file.num_bytes:,} bytes, is {num_bytes:,}" if num_bytes != file.num_bytes else None
    if change is None and not is_checked:
        change = changed(file)
    if change is not None:
        raise InputError(f"{path}: has changed since its rows were counted ({change}); {_REMEDY}")
    return TableFile(path) if file.format == "parquet" else TextFile(path, file.format)


def _labels(paths: list[str]) -> dict[str, str]:
    """A short name for each file, by which its rows are told apart: its name, or its path where names are equal."""
    names = {path: Path(path).name for path in paths}
    if len(set(names.values())) == len(names):
        return names
    root = os.path.commonpath([Path(path).absolute().parent for path in paths])
    return {path: os.path.relpath(path, root) for path in paths}
