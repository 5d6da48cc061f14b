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
from seedx_batch.sources.files import InputFile
from seedx_batch.sources.parquet import TableFile
from seedx_batch.sources.text import Record, TextFile


class Reader:
    """Reads shards, one after the other; those that follow one another in a file are one stream.

    Args:
        files: those that the shards are of.
        id_column: the column that names rows, if there is one.
    """

    def __init__(self, files: Sequence[InputFile], id_column: str | None) -> None:
        self._files = {file.path: file for file in files}
        self._labels = _labels(list(self._files))
        self._id_column = id_column
        self._path: str | None = None
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
        for position in range(shard.num_rows):
            record = next(self._records, None)
            if record is None:
                raise InputError(
                    f"{shard.path}: ends before row {self._next_row:,}, and had {self._files[shard.path].num_rows:,} "
                    "when its rows were counted; put it back as it was"
                )
            _, fields, error = record
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
        if self._opened is None or self._path != shard.path:
            self.close()
            self._opened = _open(self._files[shard.path])
            self._path = shard.path
        elif self._next_row == shard.start_row:
            return
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


def _open(file: InputFile) -> TextFile | TableFile:
    """The file, if it has the size that it had."""
    path = Path(file.path)
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; put it back as it was when its rows were counted") from error
    if num_bytes != file.num_bytes:
        was = f"was {file.num_bytes:,} bytes when its rows were counted, is {num_bytes:,}"
        raise InputError(f"{path}: {was}; put it back as it was")
    return TableFile(path) if file.format == "parquet" else TextFile(path, file.format)


def _labels(paths: list[str]) -> dict[str, str]:
    """A short name for each file, by which its rows are told apart: its name, or its path where names are equal."""
    names = {path: Path(path).name for path in paths}
    if len(set(names.values())) == len(names):
        return names
    root = os.path.commonpath([Path(path).absolute().parent for path in paths])
    return {path: os.path.relpath(path, root) for path in paths}
