"""Parts: the columns of the output, the rows of a shard on their way to being whole, and the file with its footer.

Must never know how a completion came about, or where parts lie.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seedx_batch import seal
from seedx_batch.durable import write, writing
from seedx_batch.errors import Fault, SpecError, StorageError
from seedx_batch.records import Candidate, Completion, RowKey, Shard
from seedx_batch.stats import TokenStats

FORMAT = 1
"""Of the footer and of what a part promises; a part of another format is not read."""

_FOOTER_KEY = b"seedx_batch"
_SEAL_KEY = b"seedx_batch_seal"
_ROWS_PER_GROUP = 10_000
_ROWS_PER_BATCH = 1_000
_CANDIDATES = pa.list_(
    pa.struct(
        [
            pa.field("text", pa.string()),
            pa.field("finish_reason", pa.string()),
            pa.field("num_output_tokens", pa.int32()),
            pa.field("score", pa.float64()),
        ]
    )
)
_OUTCOME = pa.schema(
    [
        pa.field("finish_reason", pa.string()),
        pa.field("status", pa.string()),
        pa.field("error", pa.string()),
        pa.field("num_prompt_tokens", pa.int32()),
        pa.field("num_cached_tokens", pa.int32()),
        pa.field("num_output_tokens", pa.int32()),
        pa.field("deduplicated", pa.bool_()),
    ]
)
"""The columns that end every part; each is named as the field of a Completion."""

_REMEDY = "remove it and run the same command again; its rows are then generated again"


def completion_schema(text_column: str, extra_columns: Sequence[str], with_candidates: bool) -> pa.Schema:
    """The columns that completions fill: the text, the preset's further texts, all candidates if asked, the outcome."""
    fields = [pa.field(name, pa.string()) for name in (text_column, *extra_columns)]
    if with_candidates:
        fields.append(pa.field("candidates", _CANDIDATES))
    return pa.schema([*fields, *_OUTCOME])


def part_schema(carried: pa.Schema, completion: pa.Schema) -> pa.Schema:
    """The columns of a part: `id`, the carried ones (without the row's id), those that completions fill.

    Raises:
        SpecError: a name occurs twice.
    """
    columns = [("id", pa.string()), *((field.name, field.type) for field in [*carried, *completion])]
    clashes = sorted(name for name, count in Counter(name for name, _ in columns).items() if count > 1)
    if clashes:
        raise SpecError(
            Fault(
                "input.columns",
                f"the output would have more than one column named {', '.join(map(repr, clashes))}",
                "rename a carried column with `input.columns: {other_name: column}`, "
                "or the text column with `output.column`",
            )
        )
    return pa.schema([pa.field(name, kind) for name, kind in columns])


def journal_schema(completion: pa.Schema) -> pa.Schema:
    """The columns of a journal: the row's position in its shard, then those that completions fill."""
    return pa.schema([pa.field("position", pa.int32()), *completion])


def to_batch(completions: Sequence[Completion], schema: pa.Schema) -> pa.RecordBatch:
    """Completions as rows of `journal_schema(schema)`.

    Args:
        schema: from `completion_schema`.

    Raises:
        ValueError: a completion has something that the schema has no column for.
    """
    extra_columns, with_candidates = _variable_columns(schema)
    known = set(extra_columns)
    for completion in completions:
        if completion.extra.keys() - known or (completion.candidates and not with_candidates):
            raise ValueError(f"no column for all of {completion} in {schema.names}")
    columns: list[list[Any]] = [
        [completion.key.position for completion in completions],
        [completion.text for completion in completions],
        *([completion.extra.get(name) for completion in completions] for name in extra_columns),
    ]
    if with_candidates:
        columns.append([[asdict(candidate) for candidate in completion.candidates] for completion in completions])
    columns += [[getattr(completion, name) for completion in completions] for name in _OUTCOME.names]
    stored = journal_schema(schema)
    arrays = [_array(values, field.type) for values, field in zip(columns, stored, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=stored)


def from_batch(batch: pa.RecordBatch, shard_index: int) -> list[Completion]:
    """The completions that `to_batch` made rows of; `extra` has every extra column, None where there was nothing."""
    extra_columns, with_candidates = _variable_columns(pa.schema(list(batch.schema)[1:]))
    # By place, not by name: a text column may well be named `position`.
    positions, texts, *middle = [column.to_pylist() for column in batch.columns]
    outcomes = middle[len(middle) - len(_OUTCOME) :]
    extras = middle[: len(extra_columns)]
    candidates = middle[len(extra_columns)] if with_candidates else [[]] * batch.num_rows
    return [
        Completion(
            key=RowKey(shard_index, positions[row]),
            text=texts[row],
            candidates=tuple(Candidate(**fields) for fields in candidates[row]),
            extra={name: column[row] for name, column in zip(extra_columns, extras, strict=True)},
            **{name: column[row] for name, column in zip(_OUTCOME.names, outcomes, strict=True)},
        )
        for row in range(batch.num_rows)
    ]


def divide(table: pa.Table, completion: pa.Schema) -> tuple[pa.Table, list[pa.RecordBatch]]:
    """A part's rows as what they carry and, as batches of `journal_schema`, what they ended as.

    Args:
        completion: from `completion_schema`.
    """
    num_carried = table.num_columns - len(completion)
    positions = pa.array(range(table.num_rows), pa.int32())
    ended = pa.Table.from_arrays([positions, *table.columns[num_carried:]], schema=journal_schema(completion))
    return table.select(range(num_carried)), ended.to_batches(_ROWS_PER_BATCH)


class OpenShard:
    """The rows of one shard until they are a part: what they carry, in input order, and what they ended as, in any.

    Args:
        schema: from `part_schema`.
        completion: from `completion_schema`.
    """

    def __init__(self, shard: Shard, schema: pa.Schema, completion: pa.Schema) -> None:
        self.shard = shard
        self._schema = schema
        self._completion = completion
        self._carried = pa.schema(list(schema)[: len(schema) - len(completion)])
        self._carried_batches: list[pa.RecordBatch] = []
        self._small_batches: list[pa.RecordBatch] = []
        self._num_small = 0
        self._num_carried = 0
        self._completions: list[Completion | None] = [None] * shard.num_rows
        self._num_completed = 0
        self._unwritten: list[Completion] = []

    def carry(self, batch: pa.RecordBatch) -> None:
        """Takes what the next rows carry: `id` and the carried columns.

        Raises:
            ValueError: the columns are others, or more rows come than the shard has.
        """
        if self._num_carried + batch.num_rows > self.shard.num_rows:
            raise ValueError(f"shard {self.shard.index} has {self.shard.num_rows} rows, and more are to be carried")
        self._num_carried += batch.num_rows
        self._small_batches.append(batch.cast(self._carried))
        self._num_small += batch.num_rows
        # A row in a batch of its own would take kilobytes.
        if self._num_small >= _ROWS_PER_BATCH:
            table = pa.Table.from_batches(self._small_batches, self._carried)
            self._carried_batches += table.combine_chunks().to_batches()
            self._small_batches.clear()
            self._num_small = 0

    def complete(self, completion: Completion) -> None:
        """Takes what a row ended as.

        Raises:
            RuntimeError: the row is not of this shard, or has ended before; that is an error of this program.
        """
        self._put(completion)
        self._unwritten.append(completion)

    def restore(self, completions: Iterable[Completion]) -> None:
        """Takes what the shard's journal holds.

        Raises:
            StorageError: the journal contradicts the plan or itself.
        """
        try:
            for completion in completions:
                self._put(completion)
        except RuntimeError as error:
            raise StorageError(f"the journal of shard {self.shard.index}: {error}; {_REMEDY}") from error

    def take_unwritten(self) -> list[Completion]:
        """The completions since the last call, restored ones left out."""
        unwritten, self._unwritten = self._unwritten, []
        return unwritten

    @property
    def num_completed(self) -> int:
        """How many rows have ended."""
        return self._num_completed

    @property
    def missing(self) -> list[int]:
        """The positions of the rows that have not ended, in order."""
        return [position for position, completion in enumerate(self._completions) if completion is None]

    @property
    def is_full(self) -> bool:
        """Whether every row is there, both what it carries and what it ended as."""
        return self._num_completed == self._num_carried == self.shard.num_rows

    def table(self) -> pa.Table:
        """The rows of the part, in input order.

        Raises:
            RuntimeError: the shard is not full.
        """
        completions = self._all()
        carried = pa.Table.from_batches([*self._carried_batches, *self._small_batches], self._carried)
        batches = [
            to_batch(completions[start : start + _ROWS_PER_BATCH], self._completion)
            for start in range(0, len(completions), _ROWS_PER_BATCH)
        ]
        ended = pa.Table.from_batches(batches, journal_schema(self._completion))
        return pa.Table.from_arrays([*carried.columns, *ended.columns[1:]], schema=self._schema)

    def stats(self) -> TokenStats:
        """The statistics of the shard.

        Raises:
            RuntimeError: the shard is not full.
        """
        return TokenStats.of(self._all())

    def _all(self) -> list[Completion]:
        completions = [completion for completion in self._completions if completion is not None]
        if not self.is_full:
            raise RuntimeError(
                f"shard {self.shard.index} is not full: of {self.shard.num_rows} rows, "
                f"{self._num_carried} are carried and {self._num_completed} have ended"
            )
        return completions

    def _put(self, completion: Completion) -> None:
        shard, position = completion.key
        if shard != self.shard.index or not 0 <= position < self.shard.num_rows:
            raise RuntimeError(f"{completion.key} is no row of {self.shard}")
        if self._completions[position] is not None:
            raise RuntimeError(f"{completion.key} has ended twice")
        self._completions[position] = completion
        self._num_completed += 1


@dataclass(frozen=True, slots=True)
class Footer:
    """What a part says about itself.

    Args:
        fingerprint: of the job; a part of another one does not belong here.
        signature: one line by which the rows can be made again.
        started_at, committed_at: ISO 8601, UTC.
        worker: who made it.
        versions: of the software that made it, by name.
        round: how often failed rows of the run had been told to run again.
    """

    format: int
    fingerprint: str
    signature: str
    shard: Shard
    stats: TokenStats
    started_at: str
    committed_at: str
    worker: str
    versions: Mapping[str, str]
    round: int = 0

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, for `json.dumps`."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"shard": asdict(self.shard), "stats": self.stats.to_json(), "versions": dict(self.versions)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else, or of another format.
        """
        if values["format"] != FORMAT:
            raise ValueError(f"it has format {values['format']}, and this version reads format {FORMAT}")
        parsed = {"shard": Shard(**values["shard"]), "stats": TokenStats.from_json(values["stats"])}
        return cls(**{**values, **parsed})


def write_part(tmp: Path, table: pa.Table, footer: Footer) -> None:
    """Writes a part whole and waits until it is on disk; it is for others to make it visible.

    Raises:
        RuntimeError: the footer counts other rows than the table has; that is an error of this program.
        StorageError: it cannot be written.
    """
    if not table.num_rows == footer.shard.num_rows == footer.stats.num_rows:
        raise RuntimeError(f"{tmp}: {table.num_rows} rows for {footer.shard}, {footer.stats.num_rows} rows counted")
    text = json.dumps(footer.to_json(), ensure_ascii=False, separators=(",", ":"))
    content = sealed(table, {_FOOTER_KEY: text.encode()})
    with writing(tmp):
        write(tmp, content)


def sealed(table: pa.Table, metadata: Mapping[bytes, bytes]) -> bytearray:
    """A parquet file with these metadata, a checksum in every page, and a seal over all of it."""
    table = table.replace_schema_metadata({**metadata, _SEAL_KEY: seal.OPEN.encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=_ROWS_PER_GROUP, compression="zstd", write_page_checksum=True)
    content = bytearray(memoryview(sink.getvalue()))
    seal.close(content)
    return content


def read_footer(path: Path) -> Footer:
    """A part's footer; reads no rows.

    Raises:
        StorageError: the file is no part, or is damaged.
    """
    try:
        return _footer(pq.read_metadata(path))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise StorageError(f"{path}: is no part of this program's, or is damaged ({error}); {_REMEDY}") from error


def examine(content: bytes) -> tuple[Footer, pa.Table]:
    """The footer and the rows of a part's whole content; every byte of it is checked.

    Raises:
        ValueError: it is damaged, or no part; the message says how that shows.
    """
    # First, as what is read after it is then as it was written, and no trap for the reader.
    seal.check(content)
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            footer, table = _footer(file.metadata), file.read().replace_schema_metadata(None)
    except (OSError, pa.ArrowException, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it cannot be read ({error})") from error
    if list(table.schema)[-len(_OUTCOME) :] != list(_OUTCOME):
        raise ValueError("its last columns are not those of a part")
    return footer, table


def recount(table: pa.Table) -> TokenStats:
    """The statistics of a part's rows."""
    columns = [column.to_pylist() for column in table.columns[-len(_OUTCOME) :]]
    return TokenStats.of(
        Completion(RowKey(0, position), **dict(zip(_OUTCOME.names, row, strict=True)))
        for position, row in enumerate(zip(*columns, strict=True))
    )


def read_part(path: Path) -> pa.Table:
    """A part's rows, each page checked against its checksum; the schema without the footer.

    Raises:
        StorageError: the file is damaged or cannot be read.
    """
    with _opened(path) as file:
        return file.read().replace_schema_metadata(None)


def rows_at(path: Path, positions: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Single rows of a part, of these columns, without what is around them; memory is that of `_ROWS_PER_BATCH` rows.

    Args:
        positions: in the part, ascending.

    Raises:
        StorageError: the file is damaged or cannot be read.
    """
    rows, first = [], 0
    wanted = list(positions)
    with _opened(path) as file:
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if wanted and wanted[0] < first + num_rows:
                start = first
                for batch in file.iter_batches(_ROWS_PER_BATCH, row_groups=[group], columns=list(columns)):
                    while wanted and wanted[0] < start + batch.num_rows:
                        rows += batch.slice(wanted.pop(0) - start, 1).to_pylist()
                    start += batch.num_rows
                    if not wanted or wanted[0] >= first + num_rows:
                        break
            first += num_rows
    return rows


def error_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a part that are errors, in order, of these columns and `error`; memory as for `rows_at`.

    Raises:
        StorageError: the file is damaged or cannot be read.
    """
    wanted = list(dict.fromkeys([*columns, "status", "error"]))
    with _opened(path) as file:
        for batch in file.iter_batches(_ROWS_PER_BATCH, columns=wanted):
            yield from batch.filter(pc.equal(batch["status"], "error")).to_pylist()


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A part, each page checked against its checksum; what goes wrong with it is told with a remedy."""
    try:
        # As one file: read_table would take a folder named `key=value` in the path for a column.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: is damaged ({error}); {_REMEDY}") from error


def _footer(metadata: pq.FileMetaData) -> Footer:
    return Footer.from_json(json.loads((metadata.metadata or {})[_FOOTER_KEY]))


def _variable_columns(completion: pa.Schema) -> tuple[list[str], bool]:
    """What is between the text and the outcome: the extra columns' names, and whether there are candidates."""
    between = list(completion)[1 : len(completion) - len(_OUTCOME)]
    with_candidates = bool(between) and between[-1].type == _CANDIDATES
    return [field.name for field in between[: len(between) - with_candidates]], with_candidates


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The values as a column; half a surrogate pair, which no file can hold, becomes U+FFFD."""
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array(_encodable(values), kind)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_encodable(each) for each in value]
    if isinstance(value, dict):
        return {name: _encodable(each) for name, each in value.items()}
    return value
