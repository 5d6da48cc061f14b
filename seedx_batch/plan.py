"""The plan: a job cut into shards, frozen with everything that decides its results; what is left of it; may it go on.

Must never know the engine or how rows become completions.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from seedx_batch import identity, parts, sources
from seedx_batch.errors import Fault, ResumeRefused, SpecError, StorageError
from seedx_batch.models import Model
from seedx_batch.prompts import Prompts
from seedx_batch.records import Shard
from seedx_batch.sources import CarriedColumn, InputFile
from seedx_batch.spec import BeamDecoding, JobSpec

FORMAT = 1
_BYTES_PER_TOKEN = 4
_DAMAGE = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Plan:
    """A job cut into shards.

    Args:
        facts: everything that decides results; the fingerprint is made of them.
        columns: the input columns that the parts carry.
        id_column: the input column that names rows, if there is one.
        warnings: what was noticed while the rows were counted.
    """

    fingerprint: str
    facts: Mapping[str, Any]
    files: tuple[InputFile, ...]
    shards: tuple[Shard, ...]
    columns: tuple[CarriedColumn, ...]
    id_column: str | None
    warnings: tuple[str, ...]
    created_at: str

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.num_rows for shard in self.shards)

    def todo(self, committed: Collection[int]) -> list[Shard]:
        """The shards without a part, in order."""
        return [shard for shard in self.shards if shard.index not in committed]

    def to_json(self) -> str:
        """The plan as it is kept in plan.json."""
        paths = {file.path: number for number, file in enumerate(self.files)}
        tree = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "created_at": self.created_at,
            "num_rows": self.num_rows,
            "id_column": self.id_column,
            "warnings": self.warnings,
            "facts": self.facts,
            "files": [file.to_json() for file in self.files],
            "columns": [column.to_json() for column in self.columns],
            "shards": [[paths[shard.path], shard.start_row, shard.num_rows, shard.start_byte] for shard in self.shards],
        }
        return json.dumps(tree, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str) -> "Plan":
        """The plan in the text of a plan.json.

        Raises:
            StorageError: it is none; `where` names the file.
        """
        try:
            tree = json.loads(text)
            files = tuple(InputFile.from_json(entry) for entry in tree["files"])
            return cls(
                fingerprint=tree["fingerprint"],
                facts=tree["facts"],
                files=files,
                shards=tuple(
                    Shard(index, files[file].path, start_row, num_rows, start_byte)
                    for index, (file, start_row, num_rows, start_byte) in enumerate(tree["shards"])
                ),
                columns=tuple(CarriedColumn.from_json(entry) for entry in tree["columns"]),
                id_column=tree["id_column"],
                warnings=tuple(tree["warnings"]),
                created_at=tree["created_at"],
            )
        except (*_DAMAGE, OSError, pa.ArrowException) as error:
            raise StorageError(f"{where}: is damaged ({error}); restore it, or start over in a new run_dir") from error


def make(spec: JobSpec, prompts: Prompts, model: Model, on_rows: Callable[[int], None] | None = None) -> Plan:
    """Counts the input in one pass and cuts it into shards.

    Args:
        on_rows: told how many rows have been counted, now and then.

    Raises:
        InputError: an input file is missing, empty or broken.
        SpecError: the job names columns that the input does not have, or that clash.
    """
    scan = sources.scan(sources.find(spec.input), spec.input, spec.output.rows_per_shard, on_rows)
    faults = _column_faults(spec, prompts, scan.input_columns)
    if faults:
        raise SpecError(faults)
    part_schema(scan.columns, spec, prompts)
    facts = facts_of(spec, prompts, model, scan.files)
    return Plan(
        fingerprint=identity.fingerprint(facts),
        facts=facts,
        files=scan.files,
        shards=scan.shards,
        columns=scan.columns,
        id_column=scan.id_column,
        warnings=scan.warnings,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def expected_output_tokens(plan: Plan, spec: JobSpec) -> int:
    """About how many tokens a job will generate: as many as a row's text is likely to have, at most its budget.

    No more than its order of magnitude is to be relied on: a row's bytes are also other columns, and may be compressed.
    """
    most = spec.decoding.max_tokens
    if spec.decoding.ignore_eos and most.column is None:
        return plan.num_rows * most.max
    num_rows = sum(file.num_rows for file in plan.files) or 1
    per_row = sum(file.num_bytes for file in plan.files) / num_rows / _BYTES_PER_TOKEN
    return round(plan.num_rows * max(1, min(per_row, most.max)))


def facts_of(spec: JobSpec, prompts: Prompts, model: Model, files: tuple[InputFile, ...]) -> dict[str, Any]:
    """Everything that decides the results of a job, as JSON values."""
    facts = spec.results()
    facts["input"]["files"] = {
        file.path: f"{file.num_rows} rows, {file.num_bytes} bytes, {file.digest}" for file in files
    }
    facts["prompt"]["preset_content"] = prompts.identity()
    facts["model"]["identity"] = model.identity
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return]  # as it will read back


def check_resume(plan: Plan, spec: JobSpec, prompts: Prompts, model: Model) -> None:
    """Makes sure that the job still is the one that was planned.

    Raises:
        ResumeRefused: it would give other results; every difference is a line of it.
    """
    lines = identity.differences(plan.facts, facts_of(spec, prompts, model, plan.files))
    planned = {file.path for file in plan.files}
    found = {str(path) for path in sources.find(spec.input)} if Path(plan.files[0].path).exists() else planned
    if spec.input.limit is None:
        lines += [f"input.files.{path}: (absent) -> new file" for path in sorted(found - planned)]
    for file in plan.files:
        change = sources.changed(file)
        if change is not None:
            lines.append(f"input.files.{file.path}: {change}")
    if lines:
        remedy = "take the change back, or give the job another run_dir; finished rows stay as they are"
        raise ResumeRefused(
            [Fault("the run directory holds another job", line) for line in lines] + [Fault("so", remedy)]
        )


def completion_schema(spec: JobSpec, prompts: Prompts) -> pa.Schema:
    """The columns of a part that completions fill."""
    candidates = isinstance(spec.decoding, BeamDecoding) or spec.decoding.n > 1
    text = spec.output.column or prompts.text_column
    return parts.completion_schema(text, prompts.extra_columns, candidates)


def part_schema(columns: tuple[CarriedColumn, ...], spec: JobSpec, prompts: Prompts) -> pa.Schema:
    """The columns of every part.

    Raises:
        SpecError: two of them have one name.
    """
    carried = pa.schema([pa.field(column.name, column.type) for column in columns])
    return parts.part_schema(carried, completion_schema(spec, prompts))


def _column_faults(spec: JobSpec, prompts: Prompts, input_columns: tuple[str, ...]) -> list[Fault]:
    needed = dict.fromkeys(prompts.input_columns, "prompt")
    budget = spec.decoding.max_tokens.column
    if budget is not None:
        needed[budget] = "decoding.max_tokens.column"
    return [
        Fault(section, f"the input has no column '{column}'", "it has: " + ", ".join(input_columns))
        for column, section in sorted(needed.items())
        if column not in input_columns
    ]
