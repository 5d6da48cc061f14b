"""Memory and time of planning, resuming, status and whole runs by the number of rows: python benchmarks/scale.py

Every figure is of a `seedx-batch` command of its own on generated files, with the simulated engine; peak memory is of
the whole tree of processes, shared pages counted once.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import generated
import measuring
import pyarrow as pa
import pyarrow.parquet as pq
from environments import FOLDER, versions_of

from seedx_batch import launch, parts, plan, sources
from seedx_batch.parts import Footer, OpenShard
from seedx_batch.plan import Plan
from seedx_batch.records import Completion, RowKey
from seedx_batch.rundir import RunDirectory
from seedx_batch.sources import Reader

REPOSITORY = Path(__file__).parent.parent
NUM_LEFT = 3
ROWS_PER_SHARD = 5_000
SLOW_FROM = 1_000_000


@dataclass(frozen=True, slots=True)
class Took:
    """What a command took: seconds, seconds of processors, and its tree's memory at the most."""

    seconds: float
    cpu_s: float
    peak_mib: float


Measured = dict[tuple[str, int], list[Took]]


def write_job(folder: Path, rows: Path) -> Path:
    """A job over the file, in a folder that is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    job = {
        "name": "scale",
        "run_dir": str(folder / "run"),
        "input": {"path": str(rows)},
        "prompt": {"preset": "seed-x", "source_lang": "en", "target_lang": "zh"},
        "model": {"name": "simulated"},
        "decoding": {"temperature": 0, "max_tokens": 96},
        "output": {"rows_per_shard": ROWS_PER_SHARD},
    }
    folder.mkdir(parents=True)
    path = folder / "job.yaml"
    path.write_text(json.dumps(job), encoding="utf-8")
    return path


def command(log: Path, *arguments: str | Path) -> Took:
    """A `seedx-batch` command, measured.

    Raises:
        SystemExit: it failed.
    """
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = measuring.run([sys.executable, "-m", "seedx_batch", *arguments], log, env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.exit_code:
        raise SystemExit(f"{' '.join(map(str, arguments))} ended with {ran.exit_code}; see {log}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(ran.seconds, cpu_s, ran.peak_mib)


def commit_most(job: Path) -> RunDirectory:
    """A run directory as a run leaves it that was stopped with only the last shards to do.

    All parts hold the completions of one and the same shard, each with its own footer: nothing reads more than footers.
    """
    spec = launch.load(job, [], None)
    prompts, model = launch.understand(spec, fetch=False)
    run = RunDirectory(spec.directory)
    run.create()
    planned = plan.make(spec, prompts, model)
    run.write_text(run.plan, planned.to_json())
    run.write_text(run.job, spec.to_yaml())
    schema = plan.part_schema(planned.columns, spec, prompts)
    shard = _full(planned, schema, plan.completion_schema(spec, prompts))
    table = shard.table()
    footer = Footer(parts.FORMAT, planned.fingerprint, "none", shard.shard, shard.stats(), "", "", "rank-00000", {})
    for left in planned.shards[: len(planned.shards) - NUM_LEFT]:
        final = run.part(left.index, len(planned.shards))
        temporary = run.temporary(final.name)
        parts.write_part(temporary, table, replace(footer, shard=left))
        run.publish(temporary, final)
    return run


def _full(planned: Plan, schema: pa.Schema, completion: pa.Schema) -> OpenShard:
    opened = OpenShard(planned.shards[0], schema, completion)
    with Reader(planned.files, planned.id_column) as reader:
        rows = list(reader.rows(planned.shards[0]))
    carried = sources.carry(planned.columns, rows)
    ids = pa.array([row.id for row in rows], pa.string())
    opened.carry(pa.RecordBatch.from_arrays([ids, *carried.columns], names=["id", *carried.schema.names]))
    for row in rows:
        ended = Completion(
            RowKey(0, row.key.position), "ok", "a text " * 20, "stop", None, 75, 0, 1 + hash(row.id) % 96
        )
        opened.complete(ended)
    return opened


def measure_planning(num_rows: int, ending: str, folder: Path, measured: Measured) -> None:
    """`seedx-batch plan` over a file."""
    rows = generated.write(FOLDER / "rows" / f"{num_rows}.{ending}", num_rows)
    job = write_job(folder, rows)
    measured.setdefault((f"plan {ending}", num_rows), []).append(command(folder / "log", "plan", job))


def measure_resuming(num_rows: int, folder: Path, measured: Measured) -> None:
    """`status`, then `run` with three shards left, then `run` with nothing left."""
    rows = generated.write(FOLDER / "rows" / f"{num_rows}.jsonl", num_rows)
    job = write_job(folder, rows)
    run = commit_most(job)

    def note(what: str, *arguments: str | Path) -> Took:
        took = command(folder / "log", *arguments)
        measured.setdefault((what, num_rows), []).append(took)
        return took

    note("status", "status", run.path)
    began = time.time()
    took = note("resume, with the last three shards and the card", "run", job)
    lines = [json.loads(line) for line in run.ledger(0).read_text(encoding="utf-8").splitlines()]
    loaded = next(line["t"] for line in lines if line["event"] == "loaded")
    measured.setdefault(("resume, until rows are fed", num_rows), []).append(replace(took, seconds=loaded - began))
    note("run with nothing left", "run", job)
    _check(run, num_rows)


def measure_run(num_rows: int, folder: Path, measured: Measured) -> None:
    """A whole run."""
    rows = generated.write(FOLDER / "rows" / f"{num_rows}.jsonl", num_rows)
    job = write_job(folder, rows)
    measured.setdefault(("whole run", num_rows), []).append(command(folder / "log", "run", job))
    _check(RunDirectory(folder / "run"), num_rows)


def _check(run: RunDirectory, num_rows: int) -> None:
    written = sum(pq.read_metadata(path).num_rows for path in run.parts.glob("*.parquet"))
    if written != num_rows:
        raise SystemExit(f"{num_rows:,} rows went in, {written:,} came out")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most-run", type=int, default=SLOW_FROM, help="Whole runs of no more rows than this.")
    options = parser.parse_args()
    measured: Measured = {}
    folder = FOLDER / "scale"
    for number in range(options.rounds):
        for num_rows in options.sizes:
            measure_planning(num_rows, "jsonl", folder, measured)
            measure_planning(num_rows, "parquet", folder, measured)
            measure_resuming(num_rows, folder, measured)
            if num_rows <= options.most_run:
                measure_run(num_rows, folder, measured)
            shutil.rmtree(folder)
            print(f"{num_rows:,} rows, round {number}: done", file=sys.stderr, flush=True)
    found = versions_of(Path(sys.executable), ["pyarrow"])
    python = f"Python {sys.version.split()[0]}, pyarrow {found['pyarrow']}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {measuring.machine()}; {python}; rounds: {options.rounds}\n")
    lines = [
        [
            what,
            f"{num_rows:,}",
            measuring.middle((run.seconds for run in runs), 2),
            "-" if "until" in what else measuring.middle((run.cpu_s for run in runs), 2),
            measuring.middle((run.peak_mib for run in runs), 0),
        ]
        for (what, num_rows), runs in sorted(measured.items())
    ]
    print(measuring.table(["", "rows", "s", "CPU s", "peak MiB"], lines))


if __name__ == "__main__":
    main()
