"""Memory and speed of the whole pipeline by the number of rows, with the simulated engine: python benchmarks/scale.py

Every size is a `seedx-batch run` of its own on freshly generated JSONL; peak memory is the kernel's figure for the
largest process of the run (wait4's ru_maxrss, which covers the worker).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

WORDS = [f"word{number:03d}" for number in range(997)]


def generate(path: Path, num_rows: int) -> None:
    """Rows with an id, a text of 5 to 40 words, and two more columns."""
    draw = random.Random(num_rows)
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            source = " ".join(draw.choices(WORDS, k=draw.randint(5, 40)))
            row = {"id": f"r{number:08d}", "source": source, "year": 1990 + number % 30, "domain": f"d{number % 7}"}
            file.write(json.dumps(row) + "\n")


def run(num_rows: int, folder: Path) -> tuple[float, float, int]:
    """Seconds, peak MiB and rows written of one run."""
    generate(folder / "rows.jsonl", num_rows)
    job = {
        "name": "scale",
        "run_dir": str(folder / "run"),
        "input": {"path": str(folder / "rows.jsonl")},
        "prompt": {"preset": "seed-x", "source_lang": "en", "target_lang": "zh"},
        "model": {"name": "simulated"},
        "decoding": {"temperature": 0, "max_tokens": 96},
    }
    (folder / "job.yaml").write_text(json.dumps(job), encoding="utf-8")
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "seedx_batch", "run", str(folder / "job.yaml")], stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the run of {num_rows:,} rows ended with exit code {process.returncode}")
    written = sum(pq.read_metadata(path).num_rows for path in (folder / "run" / "data").glob("*.parquet"))
    return seconds, usage.ru_maxrss / 1024, written


def main() -> None:
    """Prints a table; the ratio is of peak memory to that of the smallest size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    measured: dict[int, list[tuple[float, float]]] = {size: [] for size in options.sizes}
    for _ in range(options.rounds):
        for size in options.sizes:
            with tempfile.TemporaryDirectory() as folder:
                seconds, peak, written = run(size, Path(folder))
            if written != size:
                raise SystemExit(f"{size:,} rows went in, {written:,} came out")
            measured[size].append((seconds, peak))
    print("| rows | s | rows/s | peak MiB | ratio |\n|---:|---:|---:|---:|---:|")
    least = statistics.median(peak for _, peak in measured[options.sizes[0]])
    for size, figures in measured.items():
        seconds = statistics.median(figure[0] for figure in figures)
        peak = statistics.median(figure[1] for figure in figures)
        print(f"| {size:,} | {seconds:.1f} | {size / seconds:,.0f} | {peak:,.0f} | {peak / least:.2f} |")


if __name__ == "__main__":
    main()
