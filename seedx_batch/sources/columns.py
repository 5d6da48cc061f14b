"""Columns of the input: their types over all records, which are carried to the output, and their values as Arrow.

Must never know files or shards.
"""

import base64
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, Self

import pyarrow as pa

from seedx_batch.errors import Fault, InputError, SpecError
from seedx_batch.records import Row
from seedx_batch.sources.parquet import ArrowFields, Batch
from seedx_batch.spec import InputSpec

_EXACT_IN_DOUBLE = 1 << 53
_INT64 = 1 << 63
_MAX_SHAPES = 1024


class ColumnType(NamedTuple):
    """How a column is stored: its Arrow type, and whether its values become JSON text first."""

    type: pa.DataType
    as_json: bool = False


STRING = ColumnType(pa.string())


@dataclass(frozen=True, slots=True)
class CarriedColumn:
    """An input column that every part has.

    Args:
        name: in the output; `source`: in the input.
        type: in every part.
        as_json: the values differ in type or are nested: texts are stored as they are, all else as its JSON text.
    """

    name: str
    source: str
    type: pa.DataType
    as_json: bool = False

    def to_json(self) -> dict[str, Any]:
        """Every field by its name; `arrow` is the exact type, `type` is for people."""
        schema = pa.schema([pa.field("", self.type)]).serialize().to_pybytes()
        arrow = base64.b64encode(schema).decode()
        return {
            "name": self.name,
            "source": self.source,
            "type": str(self.type),
            "as_json": self.as_json,
            "arrow": arrow,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["arrow"])))
        return cls(values["name"], values["source"], schema.field(0).type, values["as_json"])


class JsonTypes:
    """The types of columns over all JSON objects seen."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._kinds: set[tuple[str, object]] = set()
        # The columns of whole numbers, by the names and types of a record: most records are like one that was there.
        self._shapes: dict[tuple[object, ...], list[str]] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes a record into account."""
        types = tuple(map(type, record.values()))
        numbers = self._shapes.get((*record, *types))
        if numbers is None:
            numbers = self._take(record, types)
        for name in numbers:
            if not -_EXACT_IN_DOUBLE <= record[name] <= _EXACT_IN_DOUBLE:
                self._kinds.add((name, "long" if -_INT64 <= record[name] < _INT64 else "huge"))

    def _take(self, record: Mapping[str, Any], types: tuple[type, ...]) -> list[str]:
        self._names |= dict.fromkeys(record)
        self._kinds |= set(zip(record, types, strict=True))
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        numbers = [name for name, kind in zip(record, types, strict=True) if kind is int]
        self._shapes[(*record, *types)] = numbers
        return numbers

    def columns(self) -> dict[str, ColumnType]:
        """The columns in the order in which they were first met."""
        kinds: dict[str, set[object]] = {name: set() for name in self._names}
        for name, kind in self._kinds:
            kinds[name].add(kind)
        return {name: _json_type(found - {type(None)}) for name, found in kinds.items()}


def _json_type(kinds: set[object]) -> ColumnType:
    for type_, allowed in (
        (pa.string(), {str}),
        (pa.bool_(), {bool}),
        (pa.int64(), {int, "long"}),
        (pa.float64(), {int, float}),
    ):
        if kinds <= allowed:
            return ColumnType(type_)
    return ColumnType(pa.string(), as_json=True)


def id_column(spec: InputSpec, columns: Iterable[str]) -> str | None:
    """The column that names rows: the job's own, else `id` if there is one."""
    return spec.id if spec.id is not None else ("id" if "id" in columns else None)


def carried(spec: InputSpec, columns: Mapping[str, ColumnType]) -> tuple[CarriedColumn, ...]:
    """The columns to carry, in the order that the job or else the input has them; the output's `id` is not among them.

    Raises:
        SpecError: the job names columns that the input does not have.
    """
    row_id = id_column(spec, columns)
    if spec.columns is None:
        pairs = [(name, name) for name in columns if name != row_id]
    elif isinstance(spec.columns, Mapping):
        pairs = list(spec.columns.items())
    else:
        pairs = [(name, name) for name in spec.columns]
    wanted = [("input.columns", source) for _, source in pairs]
    if spec.id is not None:
        wanted.append(("input.id", spec.id))
    faults = [
        Fault(where, f"the input has no column '{name}'", _suggest(name, list(columns)))
        for where, name in dict.fromkeys(wanted)
        if name not in columns
    ]
    if faults:
        raise SpecError(faults)
    return tuple(
        CarriedColumn(name, source, columns[source].type, columns[source].as_json)
        for name, source in pairs
        if (name, source) != ("id", row_id)
    )


def schema(columns: Sequence[CarriedColumn]) -> pa.Schema:
    """The carried columns as parts store them."""
    return pa.schema([pa.field(column.name, column.type) for column in columns])


def carry(columns: Sequence[CarriedColumn], rows: Sequence[Row]) -> pa.RecordBatch:
    """What rows carry, in their order and in the schema of `columns`; null where a row could not be read.

    Raises:
        InputError: a value is of another type than when the rows were counted.
    """
    target = schema(columns)
    pieces = [
        pa.RecordBatch.from_arrays([_array(column, origin, alike) for column in columns], schema=target)
        for origin, alike in ((origin, list(group)) for origin, group in groupby(rows, _origin))
    ]
    table = pa.Table.from_batches(pieces, target).combine_chunks()
    batches: list[pa.RecordBatch] = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], target)


def _origin(row: Row) -> Batch | None:
    return row.fields.batch if isinstance(row.fields, ArrowFields) else None


def _array(column: CarriedColumn, origin: Batch | None, rows: list[Row]) -> pa.Array:
    try:
        if origin is not None:
            # As it is stored: what becomes of it in Python (no nanoseconds, say) is for prompts only.
            places = [row.fields.row for row in rows if isinstance(row.fields, ArrowFields)]
            # The cast is for a file in which the column is nothing but null.
            return origin.column(column.source).take(pa.array(places)).cast(column.type)
        values = [row.fields.get(column.source) for row in rows]
        if column.as_json:
            values = [_as_text(value) for value in values]
        return pa.array(values, column.type)
    except (pa.ArrowException, KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f"column '{column.source}' at row {rows[0].id} or soon after: is not {column.type}, which it was when the "
            f"rows were counted ({error}); put the input back as it was"
        ) from error


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else "it has: " + ", ".join(known[:30])
