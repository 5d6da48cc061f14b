"""Stop signals in every phase, terminals that close, processes that stand still, clocks that run back: real ones."""

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest

from seedx_batch import ledger
from tests.jobs import environment, has_ended, parts_of, seedx_batch, wait_until, write_job, write_rows

pytestmark = pytest.mark.process
HOLD = Path(__file__).parent / "hold"
LOADING = "seedx_batch.worker:_engine"
FIRST_STEP = "seedx_batch.engine.simulated:SimulatedEngine.step"
PUBLISHING = "seedx_batch.parts:write_part"
NUM_ROWS = 57


class Run:
    """A run of a small job whose processes wait in a function: see hold/sitecustomize.py."""

    def __init__(self, folder: Path, hold: str, **sections: Any) -> None:
        rows = write_rows(folder / "rows.jsonl", [f"line {number}" for number in range(NUM_ROWS)])
        self.job = write_job(folder, rows, engine={"max_num_seqs": 2}, **sections)
        self.folder = folder / "run"
        self.mark = folder / "held"
        self._environ = environment({"HOLD": hold, "HELD": str(self.mark)})
        self._environ["PYTHONPATH"] += f":{HOLD}"
        self.process: subprocess.Popen[str]

    def start(self, prepare: Callable[[], object] = lambda: None, **streams: Any) -> "Run":
        """Starts it as a group of its own, to which SIGHUP means what it means by default, and waits until it waits."""

        def before() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            prepare()

        self.process = subprocess.Popen(
            [sys.executable, "-m", "seedx_batch", "run", str(self.job)],
            env=self._environ,
            text=True,
            start_new_session=True,
            preexec_fn=before,
            **{"stderr": subprocess.PIPE, **streams},
        )
        wait_until(lambda: self.mark.exists() or self.process.poll() is not None)
        assert self.mark.exists(), self.told()
        return self

    @property
    def held(self) -> int:
        """The process that waits."""
        return int(self.mark.read_text())

    def go_on(self) -> None:
        """Lets go what waits."""
        self.mark.unlink(missing_ok=True)

    def wait_for(self, words: str) -> None:
        """Waits until the run says this; what it said before is dropped."""
        assert self.process.stderr is not None
        assert any(words in line for line in self.process.stderr), f"it never said '{words}'"

    def told(self) -> str:
        """What it says until its end."""
        return self.process.communicate(timeout=120)[1] or ""

    def go_on_later(self, *arguments: str, **environ: str) -> None:
        """The same command again gives every row once."""
        self.go_on()
        values = {**environ, "PYTHONPATH": self._environ["PYTHONPATH"]}
        done = seedx_batch("run", self.job, *arguments, env=values)
        assert done.returncode == 0, done.stderr
        assert parts_of(self.folder)["number"].to_pylist() == list(range(NUM_ROWS))
        assert (self.folder / "README.md").is_file()
        assert (self.folder / "stats.parquet").is_file()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes runs; whatever of them is left is killed."""
    runs: list[Run] = []

    def make(hold: str, **sections: Any) -> Run:
        runs.append(Run(tmp_path, hold, **sections))
        return runs[-1]

    yield make
    for run in runs:
        with contextlib.suppress(ProcessLookupError, AttributeError):
            os.killpg(run.process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("hold", "number"),
    [
        ("seedx_batch.spec:load", signal.SIGHUP),
        ("seedx_batch.sources:scan", signal.SIGTERM),
        ("seedx_batch.card:finalize", signal.SIGUSR2),
    ],
    ids=["reading the job", "planning", "writing the card"],
)
def test_stopped_without_a_worker(held: Callable[..., Run], hold: str, number: signal.Signals) -> None:
    """Before there is a worker, and after, a stop signal ends the run at once with 75, and the same command goes on."""
    run = held(hold).start()
    run.process.send_signal(number)
    told = run.told()
    assert (run.process.returncode, told.count("the same command goes on")) == (75, 1), told
    run.go_on_later()


def test_stopped_while_the_model_is_prepared(held: Callable[..., Run]) -> None:
    """Whoever prepares a model ends with the run that wanted it."""
    run = held("seedx_batch.packaged:prepare", model={"name": "package:smollm2-135m"})
    run._environ["SEEDX_BATCH_CACHE"] = str(run.folder.parent / "cache")
    run.start()
    preparing = run.held
    run.process.send_signal(signal.SIGTERM)
    assert "the same command goes on" in run.told()
    assert run.process.returncode == 75
    wait_until(lambda: has_ended(preparing))


@pytest.mark.parametrize(
    ("hold", "number"),
    [
        ("seedx_batch.signals:end_with_parent", signal.SIGINT),
        (LOADING, signal.SIGUSR2),
        (FIRST_STEP, signal.SIGTERM),
        (PUBLISHING, signal.SIGHUP),
        ("seedx_batch.journal:Journal.remove", signal.SIGINT),
    ],
    ids=["starting", "loading", "first step", "publishing", "between shards"],
)
def test_stopped_with_a_worker(held: Callable[..., Run], hold: str, number: signal.Signals) -> None:
    """A stop signal to the whole group, as terminals and schedulers send it, ends the run in order, with 75."""
    run = held(hold, executor={"checkpoint_s": 600}).start()
    os.killpg(run.process.pid, number)
    run.wait_for("stopping: finished rows are being saved")
    run.go_on()
    told = run.told()
    assert (run.process.returncode, told.count("the same command goes on")) == (75, 1), told
    last = ledger.read(run.folder / ".state/ledger/rank-00000.jsonl")
    assert last[-1]["event"] == "stopped"
    if hold == FIRST_STEP:  # once is not twice, though the group and the launch told it: rows in flight may end
        assert (last[-2]["num_rows"] > 0, last[-2]["num_in_flight"]) == (True, 0)
    run.go_on_later()


def test_stopped_when_all_is_done(held: Callable[..., Run]) -> None:
    """A stop signal after the last row changes nothing: the run ends with its card and 0."""
    run = held("seedx_batch.writer:Writer.close").start()
    os.killpg(run.process.pid, signal.SIGTERM)
    run.wait_for("stopping")
    run.go_on()
    told = run.told()
    assert run.process.returncode == 0, told
    assert (run.folder / "README.md").is_file()


@pytest.mark.parametrize("twice", [True, False], ids=["hurried", "grace over"])
def test_a_worker_that_does_not_end(held: Callable[..., Run], twice: bool) -> None:
    """One that hangs in a write is killed at the second signal, or when the grace is over; the exit code is 75."""
    run = held(PUBLISHING, executor={"grace_s": 600 if twice else 1}).start()
    worker = run.held
    run.process.send_signal(signal.SIGTERM)
    if twice:
        run.wait_for("stopping")
        run.process.send_signal(signal.SIGTERM)
    assert "the same command goes on" in run.told()
    assert (run.process.returncode, has_ended(worker)) == (75, True)
    run.go_on_later()


def test_a_worker_that_hangs_does_not_outlive_a_killed_launch(held: Callable[..., Run]) -> None:
    """kill -9 of the main process alone: a worker that cannot end in order ends when the grace is over."""
    run = held(PUBLISHING, executor={"grace_s": 1}).start()
    worker = run.held
    run.process.kill()
    run.told()
    wait_until(lambda: has_ended(worker))
    run.go_on_later()


def test_the_terminal_closes(held: Callable[..., Run]) -> None:
    """The kernel's hang-up stops the run with 75, though there is no terminal any more that could be told."""
    ours, theirs = pty.openpty()
    run = held(LOADING)
    run.start(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), stdin=theirs, stdout=theirs, stderr=theirs)
    worker = run.held
    os.close(theirs)
    os.close(ours)
    run.process.wait(timeout=120)
    assert (run.process.returncode, has_ended(worker)) == (75, True)
    run.go_on_later()


def test_nobody_reads_what_is_shown(held: Callable[..., Run]) -> None:
    """A closed pipe at the other end of stderr does not stop a run: it ends with every row and 0."""
    run = held(LOADING).start()
    assert run.process.stderr is not None
    run.process.stderr.close()
    run.go_on()
    run.process.wait(timeout=120)
    assert run.process.returncode == 0
    assert parts_of(run.folder).num_rows == NUM_ROWS


def test_nohup(held: Callable[..., Run]) -> None:
    """Under nohup a closed terminal stops neither the launch nor its worker."""
    run = held(LOADING).start(lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    os.killpg(run.process.pid, signal.SIGHUP)
    run.go_on()
    told = run.told()
    assert run.process.returncode == 0, told
    assert "stopping" not in told


@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "worker"])
def test_stand_still_and_go_on(held: Callable[..., Run], whole_group: bool) -> None:
    """SIGSTOP and SIGCONT, of all processes or of the worker alone, cost time and nothing else."""
    run = held(PUBLISHING).start()
    launch, worker = psutil.Process(run.process.pid), psutil.Process(run.held)
    stilled = [launch, worker] if whole_group else [worker]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in stilled:
            process.send_signal(number)
        still = number == signal.SIGSTOP
        wait_until(lambda still=still: all((one.status() == psutil.STATUS_STOPPED) == still for one in stilled))
        run.go_on()  # while they stand still
    told = run.told()
    assert run.process.returncode == 0, told
    assert parts_of(run.folder)["number"].to_pylist() == list(range(NUM_ROWS))


def test_the_clock_runs_back(held: Callable[..., Run]) -> None:
    """A killed run goes on under a clock that is a year behind and runs back; nothing goes by the time of day."""
    run = held("seedx_batch.journal:Journal.remove").start()
    os.killpg(run.process.pid, signal.SIGKILL)
    run.told()
    run.go_on_later(CLOCK_RUNS_BACK="1")
    lines = ledger.read(run.folder / ".state/ledger/rank-00000.jsonl")
    assert lines[-1]["event"] == "finished"
    assert lines[-1]["t"] < lines[0]["t"]
    assert "57 of 57" in seedx_batch("status", run.folder).stdout


def test_a_card_of_half_a_run_is_made_again(held: Callable[..., Run]) -> None:
    """Where nothing is left to do, statistics and card that do not cover the run are made again."""
    run = held("none:none")
    job, card, stats = run.job, run.folder / "README.md", run.folder / "stats.parquet"
    assert seedx_batch("run", job).returncode == 0
    whole, told = pq.read_table(stats), card.read_text()
    pq.write_table(whole.slice(0, 2), stats)
    card.write_text("half")
    assert "nothing left to do" in seedx_batch("run", job).stderr
    assert (pq.read_table(stats), card.read_text()) == (whole, told)
