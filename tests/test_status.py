"""`status`: rates, time left, workers and ends, told from ledgers that the tests write, and shown without harm."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seedx_batch import cli, parts, status
from seedx_batch.footers import Footers
from seedx_batch.rundir import RunDirectory
from seedx_batch.stats import TokenStats
from seedx_batch.status import Reading
from tests.jobs import ask
from tests.runs import BEGAN, failed, hold, make_run, ok, write_ledger

TEXTS = [f"第{number}句话" for number in range(45)]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def running(tmp_path: Path) -> RunDirectory:
    """A run with 20 of 45 rows committed, held by this process; its worker has started twice and worked for 40 s."""
    run = make_run(tmp_path, TEXTS, [failed("empty_text: x"), *[ok()] * 44], 2)
    hold(run)
    ago = time.time() - BEGAN - 42
    write_ledger(
        run,
        [
            ("a", "started", ago - 500, {}),
            ("a", "loaded", ago - 490, {}),
            ("a", "checkpoint", ago - 15, {"num_rows": 1, "num_output_tokens": 10}),
            ("l", "restarting", ago - 12, {"num_restarts": 3}),
            ("b", "started", ago - 10, {}),
            ("b", "loaded", ago, {"load_s": 10}),
            ("b", "checkpoint", ago + 20, {"num_rows": 9, "num_output_tokens": 80, "busy_s": 10.0}),
            (
                "b",
                "checkpoint",
                ago + 40,
                {"num_rows": 20, "num_output_tokens": 200, "num_in_flight": 7, "busy_s": 30.0, "idle_s": 10.0},
            ),
        ],
    )
    return run


def dead_pid() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_rates_and_time_left(running: RunDirectory) -> None:
    """Rates are those of the last minute of the worker's present start, and the time left follows from them."""
    seen = status.read(running.path)
    assert (seen.phase, seen.is_running, seen.num_done, seen.num_restarts) == ("running", True, 20, 3)
    assert seen.rows_per_s == pytest.approx(20 / 40, rel=1e-3)
    assert seen.tokens_per_s == pytest.approx(200 / 40, rel=1e-3)
    assert seen.eta_s == pytest.approx(25 / 0.5, rel=1e-3)
    (worker,) = seen.workers
    assert (worker.rank, worker.phase, worker.num_in_flight, worker.num_restarts) == (0, "running", 7, 3)
    assert worker.idle == pytest.approx(0.25)


def test_it_is_told_in_words_and_as_json(running: RunDirectory, capsys: Capture) -> None:
    """The terminal shows bar, rates, time left, a line for each worker and errors by kind; JSON has the same."""
    write_ledger(running, [("z", "started", 0, {})], rank=3)
    _, told, _ = ask(capsys, "status", running.path)
    for wanted in (
        "run: running",
        "█" * 17 + "░" * 23 + " 44.4 %",
        "0.5 rows/s in the last minute, ETA 0:00:50",
        "worker 0  running, 0.5 rows/s, 5 tok/s, 7 in flight, engine idle 25.0 %, 3 restarts",
        "worker 3  loading the model",
        "error     1 x empty_text",
    ):
        assert wanted in told
    shown = json.loads(ask(capsys, "status", running.path, "--json")[1])
    assert (shown["num_done"], shown["is_running"], len(shown["workers"])) == (20, True, 2)
    assert shown["eta_s"] == pytest.approx(50, rel=1e-2)


def test_a_launch_that_was_killed_does_not_run(running: RunDirectory) -> None:
    """Where the process that held the run is gone, nothing runs, whatever the ledger said last."""
    hold(running, dead_pid())
    seen = status.read(running.path)
    assert (seen.phase, seen.is_running, seen.eta_s) == ("ended without a word", False, None)
    assert seen.workers[0].phase == "ended without a word"
    assert seen.num_in_flight == 0


def test_watching_ends_with_the_run(running: RunDirectory, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """--watch tells a line while it runs, and the whole status when it has ended."""
    waits: list[float] = []

    def end(seconds: float) -> None:
        waits.append(seconds)
        hold(running, dead_pid())

    monkeypatch.setattr(cli.time, "sleep", end)
    _, told, _ = ask(capsys, "status", running.path, "--watch")
    first, *rest = told.splitlines()
    assert first == "run: running, 20/45 rows, 5 output tok/s, 7 in flight, 0 errors, ETA 0:00:50"
    assert rest[0] == "run: ended without a word"
    assert waits == [cli.WATCH_S]


def test_a_terminal_never_gets_control_characters(tmp_path: Path, capsys: Capture) -> None:
    """Names, messages and kinds of errors are shown with their control characters written out, also as JSON."""
    evil = "\x1b]0;title\x07\x9b31m\u202e"
    run = make_run(tmp_path / f"a{evil}", TEXTS[:10], [failed(f"{evil}: x")] * 10, 1, output={"rows_per_shard": 10})
    os.rename(run.path, run.path.with_name(f"run{evil}"))
    run = RunDirectory(run.path.with_name(f"run{evil}"))
    write_ledger(run, [("l", "failed", 1, {"message": evil, "exit_code": 69})])
    for option in ([], ["--json"], ["--watch"]):
        code, told, _ = ask(capsys, "status", run.path, *option)
        assert code == 0
        assert not set(told) & set(evil.replace("]0;title", "").replace("31m", ""))
        assert "\\u001b" in told


def test_footers_are_read_once(running: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read again and again reads new parts alone, and all of them where one was made again."""
    reading = Reading(running.path)
    read: list[Path] = []
    original = parts.read_footer

    def count(path: Path) -> parts.Footer:
        read.append(path)
        return original(path)

    monkeypatch.setattr(parts, "read_footer", count)
    first, second = reading.status(), reading.status()
    assert first.stats == second.stats
    assert (first.stats or TokenStats()).num_rows == 20
    assert read == [running.part(0, 5), running.part(1, 5)]
    os.utime(running.part(1, 5))
    assert reading.status().stats == first.stats
    assert len(read) == 4
    running.part(1, 5).unlink()
    assert (reading.status().stats or TokenStats()).num_rows == 10
    assert list(reading.footers.shards) == [0]


def test_footers_tell_of_every_shard(running: RunDirectory) -> None:
    """A shard's entry has the counts of its part."""
    footers = Footers(running, Reading(running.path).plan)
    footers.refresh()
    assert list(footers.shards) == [0, 1]
    shard = footers.shards[0]
    assert (shard.num_rows, shard.start_row, shard.num_output_tokens) == (10, 0, 90)
    assert (shard.statuses, shard.errors) == ({"error": 1, "ok": 9}, {"empty_text": 1})
    assert len(footers.signatures) == 1
