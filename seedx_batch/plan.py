"""The plan: a job cut into shards, frozen with everything that decides its results; what is left of it; may it go on.

Must never know the engine or how rows become completions.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from seedx_batch import identity, parts, seal, sources
from seedx_batch.errors import Fault, ResumeRefused, SpecError, StorageError
from seedx_batch.models import Model
from seedx_batch.prompts import Prompts
from seedx_batch.records import Shard
from seedx_batch.rundir import RunDirectory
from seedx_batch.sources import CarriedColumn, InputFile, Scan
from seedx_batch.spec import BeamDecoding, JobSpec

FORMAT = 1
_BYTES_PER_TOKEN = 4
_DAMAGE = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Retry:
    """Failed rows that run again.

    Args:
        round: how often failed rows of this run were told to run again, from 1.
        statuses: of the rows.
        shards: how many such rows a part had, by the shard's index.
    """

    round: int
    statuses: tuple[str, ...]
    shards: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """A job cut into shards.

    Args:
        facts: everything that decided results when the run began; the fingerprint is made of them, and neither is
            changed by rows that are added later or failed rows that run again.
        columns: the input columns that the parts carry.
        id_column: the input column that names rows, if there is one.
        warnings: what was noticed while the rows were counted.
        max_tokens: the budget that rows have now, where it was raised since.
        retry: the last round of failed rows that run again.
        earlier: how many shards there were before rows were added, each time; parts may still be named so.
    """

    fingerprint: str
    facts: Mapping[str, Any]
    files: tuple[InputFile, ...]
    shards: tuple[Shard, ...]
    columns: tuple[CarriedColumn, ...]
    id_column: str | None
    warnings: tuple[str, ...]
    created_at: str
    max_tokens: Mapping[str, Any] | None = None
    retry: Retry | None = None
    earlier: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.num_rows for shard in self.shards)

    def todo(self, committed: Collection[int]) -> list[Shard]:
        """The shards without a part that may stay, in order."""
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
            "max_tokens": self.max_tokens,
            "retry": None if self.retry is None else asdict(self.retry),
            "earlier": self.earlier,
            "files": [file.to_json() for file in self.files],
            "columns": [column.to_json() for column in self.columns],
            "shards": [
                [paths[shard.path], shard.start_row, shard.num_rows, shard.start_byte, shard.num_bytes, shard.digest]
                for shard in self.shards
            ],
        }
        text = json.dumps(tree, ensure_ascii=False, indent=1)
        return seal.closed(f"{text[:-2]},\n {seal.OPEN}\n}}")

    @classmethod
    def from_json(cls, text: str, where: str) -> "Plan":
        """The plan in the text of a plan.json.

        Raises:
            StorageError: it is none; `where` names the file.
        """
        try:
            seal.check(text.encode())
            tree = json.loads(text)
            files = tuple(InputFile.from_json(entry) for entry in tree["files"])
            return cls(
                fingerprint=tree["fingerprint"],
                facts=tree["facts"],
                files=files,
                shards=tuple(
                    Shard(index, files[file].path, *slice_) for index, (file, *slice_) in enumerate(tree["shards"])
                ),
                columns=tuple(CarriedColumn.from_json(entry) for entry in tree["columns"]),
                id_column=tree["id_column"],
                warnings=tuple(tree["warnings"]),
                created_at=tree["created_at"],
                max_tokens=tree.get("max_tokens"),
                retry=_retry(tree.get("retry")),
                earlier=tuple(tree.get("earlier", ())),
            )
        except (*_DAMAGE, OSError, pa.ArrowException) as error:
            raise StorageError(f"{where}: is damaged ({error}); restore it, or start over in a new run_dir") from error


def read(run: RunDirectory) -> Plan:
    """The plan of a run.

    Raises:
        SpecError: the folder holds no run.
        StorageError: the plan is damaged or cannot be read.
    """
    if not run.plan.is_file():
        raise SpecError(f"'{run.path}' holds no run: give the run_dir of a job that was started")
    return Plan.from_json(run.read_text(run.plan), str(run.plan))


def _retry(tree: Mapping[str, Any] | None) -> Retry | None:
    if tree is None:
        return None
    shards = {int(index): int(count) for index, count in tree["shards"].items()}
    return Retry(int(tree["round"]), tuple(tree["statuses"]), shards)


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
    files = {file.path: f"{file.num_rows} rows, {file.num_bytes} bytes, {file.digest}" for file in scan.files}
    facts = facts_of(spec, prompts, model, files)
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


def facts_of(spec: JobSpec, prompts: Prompts, model: Model, files: Mapping[str, str]) -> dict[str, Any]:
    """Everything that decides the results of a job, as JSON values.

    Args:
        files: what is known of the input files, by path.
    """
    facts = spec.results()
    facts["input"]["files"] = files
    facts["prompt"]["preset_content"] = prompts.identity()
    facts["model"]["identity"] = model.identity
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return]  # as it will read back


def is_raised(plan: Plan, spec: JobSpec) -> bool:
    """Whether the job's budget gives no row fewer output tokens than the plan's, and is another one."""
    before, now = _budget(plan), spec.results()["decoding"]["max_tokens"]

    def ratio(rule: Mapping[str, Any]) -> float:
        return math.inf if rule["ratio"] is None else float(rule["ratio"])

    is_no_less = now["max"] >= before["max"] and ratio(now) >= ratio(before) and now["plus"] >= before["plus"]
    return is_no_less and now["column"] == before["column"] and now != before


def _budget(plan: Plan) -> Mapping[str, Any]:
    """The budget that rows have now."""
    budget: Mapping[str, Any] = plan.max_tokens or plan.facts["decoding"]["max_tokens"]
    return budget


def resume(
    plan: Plan, spec: JobSpec, prompts: Prompts, model: Model, *, may_raise: bool = False, may_extend: bool = False
) -> Plan:
    """The plan to go on with, if the job still is the one that was planned: this one, or with rows that were added.

    Args:
        may_raise: take a larger budget of output tokens for no change.
        may_extend: take rows in that were added behind all others.

    Raises:
        ResumeRefused: it would give other results; every difference is a line of it.
    """
    # The files are compared by themselves, so as to tell more than that they differ.
    facts = facts_of(spec, prompts, model, plan.facts["input"]["files"])
    budget = facts["decoding"]["max_tokens"] if may_raise and is_raised(plan, spec) else _budget(plan)
    planned = {**plan.facts, "decoding": {**plan.facts["decoding"], "max_tokens": budget}}
    lines = identity.differences(planned, facts)
    changes = None
    if facts["input"] == plan.facts["input"]:
        changes = sources.compare(plan.files, plan.shards, spec.input, spec.output.rows_per_shard)
    remedy = "take the change back, or give the job another run_dir; finished rows stay as they are"
    if changes is not None:
        unlike = _unlike_columns(plan, changes.extended) if changes.extended is not None else []
        if changes.extended is not None and not lines and not unlike:
            if may_extend:
                return _extended(plan, changes.extended)
            remedy = f"run it with --extend to take the new rows in as they are now, or {remedy}"
        lines += [*changes.lines, *unlike]
    if lines:
        raise ResumeRefused(
            [Fault("the run directory holds another job", line) for line in lines] + [Fault("so", remedy)]
        )
    return plan


def _extended(plan: Plan, scan: Scan) -> Plan:
    """The plan with the shards that a scan has beyond it; those that were there are the same in both."""
    is_longer = len(scan.shards) > len(plan.shards)
    return replace(
        plan,
        files=scan.files,
        shards=scan.shards,
        warnings=scan.warnings,
        earlier=(*plan.earlier, len(plan.shards)) if is_longer else plan.earlier,
    )


def _unlike_columns(plan: Plan, scan: Scan) -> list[str]:
    """What columns the new rows have that the parts do not, a line each."""
    old = {column.source: column for column in plan.columns}
    new = {column.source: column for column in scan.columns}

    def shown(column: CarriedColumn | None) -> str:
        return "(absent)" if column is None else "JSON text" if column.as_json else str(column.type)

    lines = [
        f"column '{name}': {shown(old.get(name))} -> {shown(new.get(name))}, with the rows that were added"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    if scan.id_column != plan.id_column:
        lines.append(f"the column that names rows: {plan.id_column} -> {scan.id_column}, with the rows that were added")
    return lines


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
