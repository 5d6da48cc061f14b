"""Small jobs for tests: rows, a yaml, and the command line in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedx_batch import launch, ledger, signals, worker
from seedx_batch.cli import main
from seedx_batch.rundir import RunDirectory
from seedx_batch.spec import JobSpec
from seedx_batch.status import Status

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


class Silent:
    """A view that shows nothing."""

    def say(self, message: str) -> None:
        """Nothing."""

    def show(self, status: Status) -> None:
        """Nothing."""


def run_here(job: Path | JobSpec) -> launch.Outcome:
    """The command `run` within this process, its worker too, which is quicker and can be watched at every call.

    Raises:
        SeedxBatchError: what the command line would tell.
    """

    def watch(directory: RunDirectory, *_: object) -> tuple[int, tuple[str, int] | None, bool]:
        hear, say = os.pipe()
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals() if number < 32}
        try:
            with mock.patch.dict(os.environ, {worker.LAST_WORDS: str(say)}):
                code = worker.work(directory.path, 0, 1)
            os.write(say, b" ")
            words = os.read(hear, 1 << 16).strip()
            return code, tuple(json.loads(words)) if words else None, False  # type: ignore[return-value]
        finally:
            os.close(hear)
            os.close(say)
            for number, handler in handlers.items():
                if signal.getsignal(number) is not handler:
                    signal.signal(number, handler)

    with mock.patch.object(launch, "_watch", watch), mock.patch.object(worker, "_spare_collections"):
        spec = launch.load(job, (), None) if isinstance(job, Path) else job
        return launch.run(spec, fresh=False, progress=Silent())


def environment(values: Mapping[str, str]) -> dict[str, str]:
    """The environment in which the command line finds this repository."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **values}


def start(job: Path, *options: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """The command line as a process group of its own, as a shell or a scheduler starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "seedx_batch", "run", str(job), *options],
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
