"""Start-up: from the command to the first token of a small job, by process model and compilation.

python benchmarks/startup.py [--model package:smollm2-135m] [--rounds 3]: every start is a `seedx-batch run` of its own,
interleaved; compiled starts come in pairs over one cache, which is empty for the first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from seedx_batch import ledger

PHASES = ("worker", "engine", "first token")
"""When the worker has read its job, when the engine is there, and when the first row of one token has ended."""


def write_job(folder: Path, model: str) -> Path:
    """A job of eight rows of one token, each of which is on disk at once."""
    rows = [{"id": str(number), "source": f"text number {number}"} for number in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = {
        "name": "startup",
        "run_dir": str(folder / "run"),
        "input": {"path": str(folder / "rows.jsonl")},
        "prompt": {"preset": "raw", "template": "{{ source }}"},
        "model": {"name": model, "max_model_len": 1024},
        "decoding": {"temperature": 0, "ignore_eos": True, "max_tokens": 1},
        "engine": {"platform": "cpu", "max_num_seqs": 16},
        "executor": {"checkpoint_s": 0.001},
    }
    (folder / "job.yaml").write_text(json.dumps(job), encoding="utf-8")
    return folder / "job.yaml"


def start(model: str, cache: Path, own_process: bool, eager: bool) -> list[float]:
    """Seconds from the command to each of PHASES."""
    with tempfile.TemporaryDirectory() as name:
        job = write_job(Path(name), model)
        environ = {
            **os.environ,
            "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(own_process)),
            "VLLM_CACHE_ROOT": str(cache / "vllm"),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        }
        command = [
            sys.executable,
            "-m",
            "seedx_batch",
            "run",
            str(job),
            "--set",
            f"engine.enforce_eager={eager}".lower(),
        ]
        began = time.time()
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"a start failed:\n{done.stderr[-2000:]}")
        lines = ledger.read(Path(name) / "run/.state/ledger/rank-00000.jsonl")
    told = {
        "worker": [line["t"] for line in lines if line["event"] == "started"],
        "engine": [line["t"] for line in lines if line["event"] == "loaded"],
        "first token": [line["t"] for line in lines if line["event"] == "checkpoint" and line["num_output_tokens"]],
    }
    return [told[phase][0] - began for phase in PHASES]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eager-only", action="store_true", help="leave out what takes minutes")
    options = parser.parse_args()
    measured: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(options.rounds):
        for own_process in (False, True):
            process = "its own" if own_process else "this"
            with tempfile.TemporaryDirectory() as cache:
                figures = start(options.model, Path(cache), own_process, eager=True)
                measured.setdefault((process, "eager"), []).append(figures)
            if options.eager_only:
                continue
            with tempfile.TemporaryDirectory() as cache:
                for which in ("compiled, empty cache", "compiled, second start"):
                    figures = start(options.model, Path(cache), own_process, eager=False)
                    measured.setdefault((process, which), []).append(figures)
    first = statistics.median(figures[-1] for figures in measured["this", "eager"])
    print(f"| engine's process | | {' s | '.join(PHASES)} s | ratio | least-most s |")
    print("|---|---|" + "---:|" * (len(PHASES) + 2))
    for (process, which), rounds in measured.items():
        seconds = [statistics.median(phase) for phase in zip(*rounds, strict=True)]
        last = [figures[-1] for figures in rounds]
        told = " | ".join(f"{value:.1f}" for value in seconds)
        print(f"| {process} | {which} | {told} | {seconds[-1] / first:.2f} | {min(last):.1f}-{max(last):.1f} |")


if __name__ == "__main__":
    main()
