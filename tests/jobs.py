"""Small jobs for tests: rows, a yaml, and the command line in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedx_batch import ledger
from seedx_batch.cli import main

REPOSITORY = Path(__file__).parent.parent
LEDGER = "run/.state/ledger/rank-00000.jsonl"
"""Where a job of `write_job` has its worker's ledger, from the job's folder."""


def write_rows(path: Path, texts: Sequence[str]) -> Path:
    """A JSONL file with `id`, `source` and a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"r{number}", "source": text, "number": number} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_job(folder: Path, source: Path | str, **sections: Mapping[str, Any]) -> Path:
    """A job over `source` with the simulated engine, in `folder`/run; sections are merged into it."""
    job: dict[str, Any] = {
        "name": "small",
        "run_dir": str(folder / "run"),
        "input": {"path": str(source)},
        "prompt": {"preset": "seed-x", "source_lang": "zh", "target_lang": "en"},
        "model": {"name": "simulated"},
        "decoding": {"temperature": 0, "max_tokens": 16},
        "output": {"rows_per_shard": 10},
    }
    for section, values in sections.items():
        job[section] = {**job.get(section, {}), **values}
    path = folder / "job.yaml"
    path.write_text(json.dumps(job), encoding="utf-8")
    return path


def seedx_batch(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command line and gives what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "seedx_batch", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=options.pop("timeout", 300),
        env=environment(options.pop("env", {})),
        check=False,
        **options,
    )


def ask(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Calls the command line within this process, which is quicker: its exit code, output and messages."""
    before = sys.argv
    sys.argv = ["seedx-batch", *map(str, arguments)]
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
    printed = capsys.readouterr()
    return int(code or 0), printed.out, printed.err


def environment(values: Mapping[str, str]) -> dict[str, str]:
    """The environment in which the command line finds this repository."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **values}


def start(job: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """The command line as a process group of its own, as a shell or a scheduler starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "seedx_batch", "run", str(job)],
        env=environment(env or {}),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_rows(job: Path, least: int, earlier: Collection[str] = ()) -> None:
    """Waits until a launch that is none of the earlier ones tells of so many finished rows."""
    path = job.parent / LEDGER
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        last = ledger.read_last(path) or {}
        if last.get("launch") not in earlier and last.get("num_rows", 0) >= least:
            return
        time.sleep(0.02)
    raise TimeoutError(f"no {least} rows within a minute")


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits to be noticed by whoever took it over when its parent died."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def parts_of(run: Path) -> pa.Table:
    """All rows of a run, in order."""
    return pa.concat_tables(pq.read_table(path) for path in sorted((run / "data").glob("*.parquet")))
