"""Parquet files as records: rows that stay in their Arrow batch until a value is asked for.

Must never know shards, ids, or which records a job takes.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from seedx_batch.errors import InputError
from seedx_batch.sources.text import Record

_ROWS_PER_BATCH = 512
_BUFFER = 1 << 20


class Batch:
    """Some rows of a file; columns become Python values when they are first asked for."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.num_rows: int = batch.num_rows
        self._places = {name: place for place, name in enumerate(batch.schema.names)}
        self._columns = [_plain(column) for column in batch.columns]
        self._values: dict[str, list[Any]] = {}

    @property
    def names(self) -> Mapping[str, int]:
        """The columns' names, with their places."""
        return self._places

    def column(self, name: str) -> pa.Array:
        """A column as it is stored, of the type that `TableFile.types` gives."""
        return self._columns[self._places[name]]

    def values(self, name: str) -> list[Any]:
        """A column as Python values; times to the microsecond, and as text where Python has no such time."""
        if name not in self._values:
            column = self.column(name)
            try:
                values = column.cast(_python_type(column.type), safe=False).to_pylist()
            except (ValueError, OverflowError):
                values = column.cast(pa.string()).to_pylist()
            self._values[name] = values
        return self._values[name]


class ArrowFields(Mapping[str, Any]):
    """One row of a batch by column name."""

    __slots__ = ("batch", "row")

    def __init__(self, batch: Batch, row: int) -> None:
        self.batch = batch
        self.row = row

    def __getitem__(self, name: str) -> Any:
        return self.batch.values(name)[self.row]

    def __contains__(self, name: object) -> bool:
        return name in self.batch.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.batch.names)

    def __len__(self) -> int:
        return len(self.batch.names)


class TableFile:
    """An open parquet file, to be read from any row on; opening it reads no row.

    Args:
        only: the columns to read; default: all.

    Raises:
        InputError: it is no whole parquet file, or has two columns of one name.
    """

    def __init__(self, path: Path, only: Sequence[str] | None = None) -> None:
        self._path = path
        self._only = only
        try:
            # Buffered reads and no pre-buffering: a row group is streamed, not loaded.
            self._file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise InputError(f"{path}: is no whole parquet file ({error}); make it anew") from error
        metadata = self._file.metadata
        self.num_rows: int = metadata.num_rows
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._group_ends = list(accumulate(sizes))
        schema = self._file.schema_arrow
        if len(set(schema.names)) < len(schema):
            self.close()
            raise InputError(f"{path}: two of its columns have the same name; rename one")
        self.types: dict[str, pa.DataType] = {field.name: _plain_type(field.type) for field in schema}
        self._restart(0, 0)
        self._row = 0

    def records(self) -> Iterator[Record]:
        """The records from the file's present place on.

        Raises:
            InputError: a page cannot be read.
        """
        while self._load(self._row):
            first, batch, errors = self._start, self._batch, self._errors
            for place in range(self._row - first, batch.num_rows):
                self._row = first + place + 1
                error = errors.get(place)
                yield (0, ArrowFields(batch, place), None) if error is None else (0, {}, error)

    def values(self, name: str) -> Iterator[list[Any]]:
        """A column's values from the file's present place on, some rows at a time; None where a row cannot be read.

        Raises:
            InputError: a page cannot be read.
        """
        while self._load(self._row):
            yield self._batch.values(name)[self._row - self._start :]
            self._row = self._end

    def seek(self, row: int, byte: int) -> None:
        """Goes to a row; there a new `records` begins."""
        group = bisect_right(self._group_ends, row)
        group_start = self._group_ends[group - 1] if group else 0
        # Forward within a row group reads on, as a group can only be decoded from its beginning.
        if row < self._start or group_start > self._end:
            self._restart(group, group_start)
        self._row = row

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _restart(self, group: int, row: int) -> None:
        groups = range(group, len(self._group_ends))
        self._batches: Iterator[pa.RecordBatch] = self._file.iter_batches(
            _ROWS_PER_BATCH, row_groups=groups, columns=self._only, use_threads=False
        )
        self._start = self._end = row
        self._batch = Batch(pa.RecordBatch.from_arrays([], names=[]))
        self._errors: dict[int, str] = {}

    def _load(self, row: int) -> bool:
        """Reads on to the batch that holds a row; whether there is one."""
        batch = None
        try:
            while self._end <= row:
                batch = next(self._batches, None)
                if batch is None:
                    return False
                self._start, self._end = self._end, self._end + batch.num_rows
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self._path}: is damaged after row {self._end:,} ({error}); make it anew") from error
        if batch is not None:
            self._errors = _invalid_texts(batch)
            if self._errors:  # nulls in their place, so that the columns can be read at all
                readable = [None if row in self._errors else row for row in range(batch.num_rows)]
                batch = batch.take(pa.array(readable, pa.int64()))
            self._batch = Batch(batch)
        return True


def _invalid_texts(batch: pa.RecordBatch) -> dict[int, str]:
    """Rows that hold text which is no UTF-8 (Arrow does not check when it reads), with their errors."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        return {
            row: f"invalid_utf8: {error}" for row in range(batch.num_rows) if (error := _fault(batch.slice(row, 1)))
        }
    return {}


def _fault(row: pa.RecordBatch) -> str | None:
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            return f"column '{name}': {error}"
    return None


def _plain(column: pa.Array) -> pa.Array:
    """A column without dictionary and extension, which files differ in while their values are alike."""
    if isinstance(column, pa.ExtensionArray):
        return _plain(column.storage)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _python_type(kind: pa.DataType) -> pa.DataType:
    """The type whose Python values need no pandas."""
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    return pa.time64("us") if pa.types.is_time64(kind) else kind
