"""The few rows that a report shows: samples spread evenly over the run, and examples of its errors.

Must never read a part whole into memory, nor know how a page looks.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seedx_batch import parts
from seedx_batch.errors import SpecError
from seedx_batch.footers import CommittedShard
from seedx_batch.plan import Plan
from seedx_batch.prompts import Prompts
from seedx_batch.spec import JobSpec

NUM_SAMPLES = 20
_EXAMPLES_OF_A_KIND = 3
_MOST_KINDS = 20
_MOST_PARTS = 10
_MOST_CHARACTERS = 1_200
_OUTCOME = ("status", "finish_reason", "error", "num_prompt_tokens", "num_output_tokens", "deduplicated")


@dataclass(frozen=True, slots=True)
class ShownRow:
    """One row: what was given and what was made of it, by column, cut where it is long.

    Args:
        number: of the row in the job's input, from 1; None where it was not looked up.
        outcome: the columns that tell how it ended.
    """

    id: str
    number: int | None
    given: Mapping[str, str]
    made: Mapping[str, str]
    outcome: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a part that are worth reading side by side: the prompt's, and the texts."""

    given: tuple[str, ...]
    made: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan, spec: JobSpec) -> "Columns":
        """Those of a job; where its preset cannot be read any more, all carried columns count as the prompt's."""
        try:
            prompts = Prompts.build(spec.prompt)
        except SpecError:
            texts = plan.facts["prompt"]["preset_content"]["output"]["columns"]
            return cls(tuple(column.name for column in plan.columns), (spec.output.column or texts[0], *texts[1:]))
        given = tuple(column.name for column in plan.columns if column.source in prompts.input_columns)
        return cls(given, (spec.output.column or prompts.text_column, *prompts.extra_columns))


def samples(shards: Iterable[CommittedShard], columns: Columns) -> list[ShownRow]:
    """At most `NUM_SAMPLES` committed rows, spread evenly, in order."""
    shards = list(shards)
    num_rows = sum(shard.num_rows for shard in shards)
    num = min(NUM_SAMPLES, num_rows)
    places = [int((place + 0.5) * num_rows / num) for place in range(num)]
    shown: list[ShownRow] = []
    first = 0
    for shard in shards:
        positions = [place - first for place in places if first <= place < first + shard.num_rows]
        if positions:
            found = parts.rows_at(shard.part, positions, ["id", *columns.given, *columns.made, *_OUTCOME])
            shown += [
                _shown(row, columns, shard.start_row + position + 1)
                for row, position in zip(found, positions, strict=True)
            ]
        first += shard.num_rows
    return shown


def error_examples(shards: Iterable[CommittedShard], columns: Columns) -> dict[str, list[ShownRow]]:
    """Up to three rows of each kind of error, from the first parts that have them."""
    examples: dict[str, list[ShownRow]] = {}
    num_parts = 0
    for shard in shards:
        for kind in list(shard.errors)[: _MOST_KINDS - len(examples)]:
            examples.setdefault(kind, [])
        left = {
            kind: min(shard.errors[kind], _EXAMPLES_OF_A_KIND - len(examples[kind]))
            for kind in examples
            if kind in shard.errors
        }
        if not any(left.values()):
            continue
        if num_parts == _MOST_PARTS:
            break
        num_parts += 1
        for row in parts.error_rows(shard.part, ["id", *columns.given, *_OUTCOME]):
            kind = (row["error"] or "unknown").partition(":")[0].strip()
            if left.get(kind):
                examples[kind].append(_shown(row, columns, None))
                left[kind] -= 1
            if not any(left.values()):
                break
    return {kind: rows for kind, rows in examples.items() if rows}


def _shown(row: Mapping[str, Any], columns: Columns, number: int | None) -> ShownRow:
    def texts(names: Sequence[str]) -> dict[str, str]:
        return {name: _text(row[name]) for name in names if row.get(name) is not None}

    outcome = {name: row[name] for name in _OUTCOME} | {"error": _text(row["error"] or "")}
    return ShownRow(_text(row["id"]), number, texts(columns.given), texts(columns.made), outcome)


def _text(value: Any) -> str:
    """A value as text, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} … ({len(text):,})"
