"""A worker without an engine: its rows end at once, as a test says, and it is killed where a test says."""

from collections.abc import Collection
from contextlib import closing
from functools import cache
from pathlib import Path

from seedx_batch import launch, models, plan, retry
from seedx_batch.plan import Plan
from seedx_batch.prompts import Prompts
from seedx_batch.records import Completion
from seedx_batch.rundir import RunDirectory
from seedx_batch.shelf import Imprint, Shelf
from seedx_batch.sources import Reader
from seedx_batch.spec import JobSpec, PromptSpec
from tests.jobs import parts_of, write_job


@cache
def prompts_of_all() -> Prompts:
    """The prompts of every job here."""
    return Prompts.build(PromptSpec(preset="seed-x", source_lang="zh", target_lang="en"))


def planned(folder: Path, source: Path) -> tuple[RunDirectory, Plan, JobSpec]:
    """A run directory with the plan of a job over `source` in shards of three rows."""
    spec = launch.load(write_job(folder, source, output={"rows_per_shard": 3}), [], None)
    run = RunDirectory(spec.directory)
    run.create()
    made = plan.make(spec, prompts_of_all(), models.resolve(spec.model, fetch=False))
    run.write_text(run.plan, made.to_json())
    return run, made, spec


def shelf_of(run: RunDirectory, made: Plan, spec: JobSpec, reader: Reader) -> Shelf:
    """The shelf of a worker that does all that is left."""
    prompts = prompts_of_all()
    imprint = Imprint(
        part=plan.part_schema(made.columns, spec, prompts),
        completion=plan.completion_schema(spec, prompts),
        columns=made.columns,
        num_shards=len(made.shards),
        fingerprint=made.fingerprint,
        signature="signature",
        worker="rank-00000",
        versions={},
        round=made.retry.round if made.retry else 0,
    )
    todo = made.todo(run.committed() - retry.pending(run, made))
    return Shelf(run, todo, reader, imprint, made.retry.statuses if made.retry else ())


def work(run: RunDirectory, made: Plan, spec: JobSpec, failing: Collection[str], mark: str, most: int) -> int:
    """A worker that ends so many rows at most and is killed then; the number of rows that it ended.

    Args:
        failing: ids of rows that end as errors; mark: what the texts and errors begin with.
    """
    num_rows = 0
    with Reader(made.files, made.id_column) as reader, closing(shelf_of(run, made, spec, reader)) as shelf:
        for row in shelf.rows():
            if num_rows == most:
                break
            num_rows += 1
            if row.id in failing:
                shelf.put(Completion(row.key, "error", error=f"{mark}: {row.id}"))
            else:
                shelf.put(Completion(row.key, "ok", f"{mark} {row.id}", "stop", None, 5, 0, num_rows))
            shelf.save(lambda: None)
            shelf.publish_full()
        else:
            shelf.publish_full()
        shelf.wait()
    return num_rows


def outcome(run: RunDirectory) -> dict[str, str]:
    """What every row that can be seen ended as, by id."""
    if not any(run.parts.iterdir()):
        return {}
    rows = parts_of(run.path).to_pylist()
    ended = {row["id"]: row["translation"] or row["error"] for row in rows}
    assert len(ended) == len(rows), "a row is seen twice"
    return ended
