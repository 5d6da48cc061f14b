"""What a row costs beside the engine: python benchmarks/own_cost.py

The same work on the same file with an engine that answers at once: read JSONL, render the prompt, answer with it, write
parquet. Whole processes, interleaved; peak memory is of the whole tree of processes, shared pages counted once.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import generated
import measuring
import pyarrow as pa
import pyarrow.parquet as pq
from environments import FOLDER, python_of, versions_of

ECHO = Path(__file__).parent / "echo"
REPOSITORY = Path(__file__).parent.parent
PROMPT = "Translate the following English sentence into Chinese:\n{} <zh>"
SLOW = "datatrove"
PEERS = {
    "Ray Data": ("ray", ["ray[data]==2.60.0"], "ray_data.py", ["ray", "pyarrow"]),
    SLOW: (
        "datatrove",
        ["datatrove==0.10.1", "aiosqlite", "orjson", "xxhash", "aiofiles", "pyarrow", "httpx"],
        "datatrove_runner.py",
        ["datatrove"],
    ),
}
TARGET_US = 25  # 1 % of what a row takes on an engine that does 400 rows/s


def output_of(system: str, folder: Path) -> Iterator[pa.RecordBatch]:
    """What a system has written: ids and answers, in the order of its files' names."""
    places = {"seedx-batch": folder / "run" / "data", "datasets.map": folder / "rows.parquet"}
    place = places.get(system, folder / "rows")
    for path in sorted(place.glob("**/*.parquet")) if place.is_dir() else [place]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(10_000, columns=["id"] if system == SLOW else ["id", "translation"])


def check(system: str, folder: Path, rows: Path) -> bool:
    """Whether the input's order was kept; every row must be there, with its answer.

    Raises:
        SystemExit: the system has not done the work.
    """
    kept = is_all(output_of(system, folder), rows)
    if not kept and not is_all(pa.Table.from_batches(output_of(system, folder)).sort_by("id").to_batches(), rows):
        raise SystemExit(f"{system} has not written every row once, with its answer")
    return kept


def is_all(written: Iterable[pa.RecordBatch], rows: Path) -> bool:
    """Whether what was written is every row in order, each with its prompt as its answer where there are answers."""
    with rows.open(encoding="utf-8") as lines:
        for batch in written:
            wanted = [json.loads(line) for line in islice(lines, batch.num_rows)]
            if batch.column("id").to_pylist() != [row["id"] for row in wanted]:
                return False
            answers = [PROMPT.format(row["source"]) for row in wanted]
            if batch.num_columns > 1 and batch.column("translation").to_pylist() != answers:
                return False
        return not lines.readline()


def cpu_s() -> float:
    """Seconds of processors of everything that this process has run and that has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def own_versions() -> str:
    """What this process, and so seedx-batch and datasets.map, runs on."""
    found = versions_of(Path(sys.executable), ["pyarrow", "datasets"])
    return f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version}" for name, version in found.items())


def measure(rows: Path, num_rows: int, systems: list[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What each round of each system took."""
    found: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}

    for number in range(rounds):
        for system in systems:
            folder = Path(tempfile.mkdtemp(prefix="own-cost-"))
            log = FOLDER / "logs" / f"own-cost-{system}-{num_rows}-{number}.log"
            log.unlink(missing_ok=True)
            if system in PEERS:
                name, requirements, script, _ = PEERS[system]
                python = python_of(name, requirements)
            else:
                python = Path(sys.executable)
                script = "own.py" if system == "seedx-batch" else "datasets_map.py"
            env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_DEDUP_LOGS": "0"}
            before = cpu_s()
            ran = measuring.run([python, ECHO / script, rows, folder / "out"], log, env)
            if ran.exit_code:
                raise SystemExit(f"{system} ended with {ran.exit_code}; see {log}")
            used = cpu_s() - before
            kept = check(system, folder / "out", rows)
            told = json.loads(log.read_text().splitlines()[-1]) if system == "seedx-batch" else {}
            found[system].append({"seconds": ran.seconds, "cpu": used, "peak": ran.peak_mib, "kept": kept, **told})
            shutil.rmtree(folder)
            print(f"{system}, {num_rows:,} rows, round {number}: {ran.seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def lines_of(num_rows: int, found: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """The lines of the table for one number of rows; ratios are of medians, ours over theirs."""
    own = statistics.median(run["seconds"] for run in found["seedx-batch"])
    lines = []
    for system, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        lines.append(
            [
                f"{system}, {num_rows:,} rows",
                measuring.middle(run["seconds"] for run in runs),
                f"{num_rows / seconds:,.0f}",
                f"{own / seconds:.2f}",
                measuring.middle(run["cpu"] for run in runs),
                measuring.middle((run["peak"] for run in runs), 0),
                "yes" if all(run["kept"] for run in runs) else "no",
            ]
        )
    return lines


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="*", default=[2_000, 200_000])
    parser.add_argument("--without", nargs="*", default=[], help="Systems to leave out.")
    parser.add_argument("--most-for-datatrove", type=int, default=5_000, help="It takes milliseconds for a row.")
    options = parser.parse_args()
    lines, costs = [], []
    for num_rows in options.rows:
        systems = [name for name in ("seedx-batch", "datasets.map", *PEERS) if name not in options.without]
        if num_rows > options.most_for_datatrove and SLOW in systems:
            systems.remove(SLOW)
        rows = generated.write(FOLDER / "rows" / f"{num_rows}.jsonl", num_rows)
        found = measure(rows, num_rows, systems, options.rounds)
        lines += lines_of(num_rows, found)
        if num_rows > options.most_for_datatrove:
            lines.append([f"{SLOW}, {num_rows:,} rows", "not run: it takes milliseconds for a row", *["-"] * 5])
        costs += [
            [
                f"{num_rows:,}",
                name,
                measuring.middle(1e6 * run[f"{name}_s"] / num_rows for run in found["seedx-batch"]),
                measuring.middle(1e6 * run[f"{name}_cpu_s"] / num_rows for run in found["seedx-batch"]),
            ]
            for name in ("plan", "work", "finalize")
        ]
        waits = [1e6 * run["waits_s"] / num_rows for run in found["seedx-batch"]]
        longest = [1e3 * run["longest_wait_s"] for run in found["seedx-batch"]]
        costs.append([f"{num_rows:,}", "of work: between steps", measuring.middle(waits), "-"])
        costs.append([f"{num_rows:,}", "longest of these, ms", measuring.middle(longest), "-"])
    versions = [
        f"{package} {version}"
        for name, _, _, packages in PEERS.values()
        if (FOLDER / name).is_dir()
        for package, version in versions_of(FOLDER / name / "bin" / "python", packages).items()
    ]
    print(f"{datetime.now(UTC):%Y-%m-%d}, {measuring.machine()}; {own_versions()}; in their own: {', '.join(versions)}")
    head = ["whole process", "s", "rows/s", "ours / theirs", "CPU s", "peak MiB", "order kept"]
    print("\n" + measuring.table(head, lines))
    print(f"\nseedx-batch alone, microseconds for a row (1 % of 400 rows/s is {TARGET_US}):\n")
    print(measuring.table(["rows", "phase", "elapsed", "CPU"], costs))


if __name__ == "__main__":
    main()
