"""Run directories as workers leave them, made in a moment: parts with footers, ledgers with times of one's choice."""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from seedx_batch import identity, launch, parts, plan
from seedx_batch.parts import FORMAT, Footer, OpenShard
from seedx_batch.records import Completion, RowKey
from seedx_batch.rundir import RunDirectory
from tests.jobs import write_job, write_rows

BEGAN = 1_750_000_000.0
"""When the first worker of a made run started (Unix time)."""

VERSIONS = {"vllm": "simulated", "seedx-batch": "0"}
MACHINE = {"cpu": "Kunpeng 920", "num_cpus": 192, "memory_bytes": 1 << 40, "devices": {"Ascend NPU": 8}}


def make_run(
    folder: Path, texts: Sequence[str], completions: Sequence[Completion], num_committed: int, **sections: Any
) -> RunDirectory:
    """A run over these texts, of ten rows a shard, whose first shards are committed.

    Args:
        completions: one for each text, in order, whatever keys they have.
        sections: of the job, see `write_job`.
    """
    job = write_job(folder, write_rows(folder / "rows.jsonl", texts), **sections)
    return plan_and_commit(job, texts, completions, num_committed)


def plan_and_commit(
    job: Path, texts: Sequence[str], completions: Sequence[Completion], num_committed: int
) -> RunDirectory:
    """As `make_run`, for a job that is written already, over rows with `id`, the text and a number."""
    spec = launch.load(job, (), None)
    prompts, model = launch.understand(spec, fetch=False)
    planned = plan.make(spec, prompts, model)
    run = RunDirectory(spec.directory)
    run.create()
    run.write_text(run.plan, planned.to_json())
    run.write_text(run.job, spec.to_yaml())
    schema, completion_schema = plan.part_schema(planned.columns, spec, prompts), plan.completion_schema(spec, prompts)
    signature = identity.signature(spec.name, spec.results(), model.identity, planned.fingerprint, VERSIONS)
    for shard in planned.shards[:num_committed]:
        open_shard = OpenShard(shard, schema, completion_schema)
        numbers = range(shard.start_row, shard.start_row + shard.num_rows)
        carried = pa.schema(list(schema)[: len(schema) - len(completion_schema)])
        values: list[list[Any]] = [[f"r{number}" for number in numbers], [texts[number] for number in numbers]]
        arrays = [pa.array(each, field.type) for each, field in zip([*values, numbers], carried, strict=True)]
        open_shard.carry(pa.RecordBatch.from_arrays(arrays, schema=carried))
        for position, number in enumerate(numbers):
            open_shard.complete(replace(completions[number], key=RowKey(shard.index, position)))
        told = Footer(
            format=FORMAT,
            fingerprint=planned.fingerprint,
            signature=signature,
            shard=shard,
            stats=open_shard.stats(),
            started_at="2025-06-15T15:06:40+00:00",
            committed_at="2025-06-15T15:07:00+00:00",
            worker="rank-00000",
            versions=VERSIONS,
        )
        tmp = run.temporary("part")
        parts.write_part(tmp, open_shard.table(), told)
        run.publish(tmp, run.part(shard.index, len(planned.shards)))
    return run


def write_ledger(run: RunDirectory, lines: Sequence[tuple[str, str, float, dict[str, Any]]], rank: int = 0) -> None:
    """A ledger of lines: start, event, seconds since `BEGAN`, values."""
    text = [json.dumps({"launch": start, "event": event, "t": BEGAN + t, **more}) for start, event, t, more in lines]
    run.ledger(rank).write_text("".join(line + "\n" for line in text), encoding="utf-8")


def hold(run: RunDirectory, pid: int | None = None) -> None:
    """Says that a process holds the run: this one unless told otherwise."""
    holder = {"pid": pid or os.getpid(), "host": socket.gethostname(), "started_at": "now"}
    (run.path / ".state/lock.json").write_text(json.dumps(holder))


def ok(text: str = "a text", **more: Any) -> Completion:
    """A row that ended well."""
    values: dict[str, Any] = {"finish_reason": "stop", "num_prompt_tokens": 20, "num_output_tokens": 10, **more}
    return Completion(RowKey(0, 0), "ok", text=text, **values)


def failed(error: str) -> Completion:
    """A row that is an error."""
    return Completion(RowKey(0, 0), "error", error=error)
