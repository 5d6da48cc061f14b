"""Small jobs for tests: rows, a yaml, and the command line in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedx_batch import signals
from seedx_batch.cli import main

REPOSITORY = Path(__file__).parent.parent


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
    before, handlers = sys.argv, {number: signal.getsignal(number) for number in signals.STOP}
    sys.argv = ["seedx-batch", *map(str, arguments)]
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
        for number, handler in handlers.items():
            signal.signal(number, handler)
    printed = capsys.readouterr()
    return int(code or 0), printed.out, printed.err


def environment(values: Mapping[str, str]) -> dict[str, str]:
    """The environment in which the command line finds this repository."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **values}


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits to be noticed by whoever took it over when its parent died."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Goes on once this holds; fails the test where it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"waited for {seconds} s in vain")
        time.sleep(0.02)


def parts_of(run: Path) -> pa.Table:
    """All rows of a run, in order."""
    return pa.concat_tables(pq.read_table(path) for path in sorted((run / "data").glob("*.parquet")))
