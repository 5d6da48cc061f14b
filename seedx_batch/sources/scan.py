"""The one pass over the input: what is counted, cut into shards and described before any row is used.

Must never know prompts, or what is done with the shards.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice, takewhile
from pathlib import Path

import pyarrow as pa

from seedx_batch.errors import InputError
from seedx_batch.records import Shard
from seedx_batch.sources.columns import STRING, CarriedColumn, ColumnType, JsonTypes, carried, id_column
from seedx_batch.sources.files import InputFile, Tap, format_of, parquet_digest
from seedx_batch.sources.ids import IdCounter
from seedx_batch.sources.parquet import TableFile
from seedx_batch.sources.reader import Reader, as_id, id_text
from seedx_batch.sources.text import TextFile, Trail
from seedx_batch.spec import InputSpec

_ROWS_PER_CALL = 10_000
_BYTES_PER_CALL = 1 << 20
_SHOWN_OF_ID = 60
_ALIKE = "make the files alike, or give each a job of its own"


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over the input found.

    Args:
        columns: those that the parts carry.
        input_columns: all columns of the input, in its order.
        id_column: the one that names rows, if there is one.
        num_rows: of all files together, those that cannot be read included.
        warnings: what its user may want to know, a sentence each.
    """

    files: tuple[InputFile, ...]
    shards: tuple[Shard, ...]
    columns: tuple[CarriedColumn, ...]
    input_columns: tuple[str, ...]
    id_column: str | None
    num_rows: int
    warnings: tuple[str, ...]


def scan(
    paths: Sequence[Path],
    spec: InputSpec,
    rows_per_shard: int,
    on_rows: Callable[[int], None] | None = None,
    known: Sequence[Shard] = (),
) -> Scan:
    """Counts the rows, cuts them into shards that lie in one file each, and finds columns and ids, in bounded memory.

    Of parquet only the metadata is read, and the id column if there is one.

    Args:
        paths: from `find`.
        on_rows: told how many rows have been counted, now and then.
        known: shards of an earlier scan; files are cut where these end, and only behind the last one anew.

    Raises:
        InputError: a file is broken, files do not fit one another, or there is no row that can be read.
        SpecError: the job names columns that the input does not have.
    """
    scanner = _Scanner(spec, rows_per_shard, on_rows or _ignore, known)
    for path in paths:
        if scanner.is_full:
            break
        try:
            scanner.take(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}; make it readable") from error
    return scanner.result()


def _ignore(num_rows: int) -> None:
    pass


class _Scanner:
    """What is known of the input so far."""

    def __init__(
        self, spec: InputSpec, rows_per_shard: int, on_rows: Callable[[int], None], known: Sequence[Shard]
    ) -> None:
        self._spec = spec
        self._rows_per_shard = rows_per_shard
        self._on_rows = on_rows
        self._known_ends: dict[str, list[int]] = {}
        for shard in known:
            self._known_ends.setdefault(shard.path, []).append(shard.start_row + shard.num_rows)
        self._files: list[InputFile] = []
        self._shards: list[Shard] = []
        self._num_rows = 0
        self._ids = IdCounter()
        self._json_types = JsonTypes()
        self._columns: dict[str, ColumnType] = {}
        self._columns_of: Path | None = None
        self._num_unreadable = 0
        self._first_unreadable = ""

    @property
    def _left(self) -> int | None:
        """How many more rows the job takes; None: all."""
        return None if self._spec.limit is None else self._spec.limit - self._num_rows

    @property
    def is_full(self) -> bool:
        """Whether the job takes no more rows."""
        return self._left == 0

    def take(self, path: Path) -> None:
        """Counts one file."""
        format = format_of(path, self._spec.format)
        if format == "parquet":
            self._take_table(path)
        else:
            self._take_text(path, format)
        self._on_rows(self._num_rows)

    def _take_table(self, path: Path) -> None:
        status = path.stat()
        with TableFile(path) as file:
            num_rows = file.num_rows if self._left is None else min(file.num_rows, self._left)
            types = {name: ColumnType(kind) for name, kind in file.types.items()}
        if num_rows:
            self._fit(path, types)
            column = id_column(self._spec, types)
            if column in types:
                with TableFile(path, only=[column]) as file:
                    num_seen = 0
                    for values in file.values(column):
                        texts = (as_id(value) for value in values[: num_rows - num_seen])
                        self._ids.add([text for text in texts if text is not None])
                        num_seen += len(values)
                        if num_seen >= num_rows:
                            break
        known = InputFile(str(path), "parquet", num_rows, status.st_size, status.st_mtime_ns, parquet_digest(path))
        whole = takewhile(lambda end: end < num_rows, self._ends(path))
        self._cut(known, ((end, 0, 0, "") for end in (*whole, *([num_rows] if num_rows else ()))))

    def _take_text(self, path: Path, format: str) -> None:
        pieces: list[tuple[int, int, int, str]] = []
        ids: list[str] = []
        num_rows = 0
        column = self._spec.id or "id"
        trail = Trail()
        ends = self._ends(path)
        start_byte, end, reached = 0, -1, 0
        with Tap(path) as tap, TextFile(path, format, tap, trail) as file:
            if file.columns is not None:
                self._fit(path, dict.fromkeys(file.columns, STRING))
            records = file.records()
            for start, fields, error in islice(records, self._left):
                if start >= reached:
                    trail.reach(start)
                    reached = start + _BYTES_PER_CALL
                if num_rows == end:
                    pieces.append((end, start_byte, *trail.cut(start)))
                if num_rows in (0, end):
                    start_byte, end = start, next(ends)
                if error is not None:
                    self._num_unreadable += 1
                    self._first_unreadable = self._first_unreadable or f"row {num_rows:,} of {path}: {error}"
                else:
                    if file.columns is None:
                        self._json_types.add(fields)
                    text = id_text(fields, column)
                    if text is not None:
                        ids.append(text)
                num_rows += 1
                if num_rows % _ROWS_PER_CALL == 0:
                    self._ids.add(ids)
                    ids.clear()
                    self._on_rows(self._num_rows + num_rows)
            self._ids.add(ids)
            if num_rows:
                # The last record that a job takes ends where the next one begins.
                behind = None if num_rows != self._left else next(records, None)
                pieces.append((num_rows, start_byte, *trail.cut(None if behind is None else behind[0])))
            status = tap.status
            known = InputFile(
                str(path), format, num_rows, status.st_size, status.st_mtime_ns, tap.digest(), trail.lines
            )
        self._cut(known, pieces)

    def _ends(self, path: Path) -> Iterator[int]:
        """The rows before which a file is to be cut: where it was, and then after every so many."""
        known = self._known_ends.get(str(path), [])
        yield from known
        yield from count((known[-1] if known else 0) + self._rows_per_shard, self._rows_per_shard)

    def _cut(self, file: InputFile, pieces: Iterable[tuple[int, int, int, str]]) -> None:
        """Takes a file, cut into pieces: each one's end, in rows, its first byte, its length and its digest."""
        self._files.append(file)
        self._num_rows += file.num_rows
        start_row = 0
        for end, start_byte, num_bytes, digest in pieces:
            num_rows = end - start_row
            self._shards.append(Shard(len(self._shards), file.path, start_row, num_rows, start_byte, num_bytes, digest))
            start_row = end

    def _fit(self, path: Path, columns: Mapping[str, ColumnType]) -> None:
        """Takes a file's columns, which must be those of the files before; a column of nulls fits any type."""
        if self._columns_of is None:
            self._columns_of, self._columns = path, dict(columns)
        for name in dict.fromkeys([*self._columns, *columns]):
            for known, where, other in ((columns, path, self._columns_of), (self._columns, self._columns_of, path)):
                if name not in known:
                    raise InputError(f"{where}: has no column '{name}', and {other} has; {_ALIKE}")
            new, old = columns[name].type, self._columns[name].type
            if pa.types.is_null(old):
                self._columns[name] = columns[name]
            elif new != old and not pa.types.is_null(new):
                raise InputError(f"{path}: column '{name}' is {new}, and {old} in {self._columns_of}; {_ALIKE}")

    def result(self) -> Scan:
        """What was found in all files."""
        paths = ", ".join(file.path for file in self._files[:3]) + (", ..." if len(self._files) > 3 else "")
        if not self._num_rows:
            raise InputError(f"{paths}: no rows in it; give the job an input that has some")
        if self._num_unreadable == self._num_rows:
            raise InputError(
                f"{paths}: none of {self._num_rows:,} rows can be read ({self._first_unreadable}); "
                "correct the file, or say what it is with input.format"
            )
        columns = {
            name: STRING if pa.types.is_null(column.type) else column
            for name, column in (self._columns or self._json_types.columns()).items()
        }
        chosen = carried(self._spec, columns)
        return Scan(
            files=tuple(self._files),
            shards=tuple(self._shards),
            columns=chosen,
            input_columns=tuple(columns),
            id_column=id_column(self._spec, columns),
            num_rows=self._num_rows,
            warnings=tuple(self._warnings(id_column(self._spec, columns))),
        )

    def _warnings(self, column: str | None) -> list[str]:
        found = [f"{file.path}: no rows in it" for file in self._files if not file.num_rows]
        if self._num_unreadable:
            found.append(
                f"{_counted(self._num_unreadable, 'row')} cannot be read and will be error rows; "
                f"the first is {self._first_unreadable}"
            )
        num_repeated = self._ids.num_repeated()
        if num_repeated:
            repeated = _counted(num_repeated * self._ids.sampled_from, "id")
            occur, which = "occurs" if num_repeated == 1 else "occur", "the first"
            if self._ids.sampled_from > 1:
                repeated, occur, which = f"about {repeated} (estimated from a sample)", "occur", "one"
            example = self._first_repeated(column)
            found.append(
                f"{repeated} {occur} more than once, {which} is {example!r}; "
                "rows are told apart by their place, nothing is lost"
            )
        return found

    def _first_repeated(self, column: str | None) -> str:
        # Hashes do not give the id back: it is read again, which ends where the first one is.
        with Reader(self._files, column) as reader:
            rows = (row for shard in self._shards for row in reader.rows(shard))
            return next((row.id[:_SHOWN_OF_ID] for row in rows if self._ids.is_repeated(row.id)), "unknown")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
