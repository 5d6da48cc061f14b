"""Deaths of engines: noticed, survived, blamed on the row that causes them, and in the end given up."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from seedx_batch import ledger
from seedx_batch.flight import Flight
from seedx_batch.records import RowKey
from seedx_batch.rundir import RunDirectory
from seedx_batch.spec import ExecutorSpec
from seedx_batch.supervision import Supervision
from seedx_batch.worker import POISON, STALL
from tests.jobs import LEDGER, parts_of, seedx_batch, start, wait_for_rows, write_job, write_rows


def events(folder: Path) -> Counter[str]:
    """How often the ledger tells of what."""
    return Counter(line["event"] for line in ledger.read(folder / LEDGER))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory whose worker has loaded its engine."""
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    ledger.Ledger(directory.ledger(0)).write("loaded")
    return directory


def die(run: RunDirectory, *positions: int) -> None:
    """Leaves what a worker leaves whose engine dies with these rows in it."""
    record = Flight(run.flight(0))
    for position in positions:
        record.enter(RowKey(0, position))
    record.begin_step()
    record.close()


def test_it_gives_up_where_nothing_moves(run: RunDirectory) -> None:
    """So many starts in a row without one more row at its end, and no more; then nobody is accused any longer."""
    watched = Supervision(run, 0, ExecutorSpec(max_engine_restarts=3))
    for _ in range(3):
        die(run, *range(8))
        assert watched.begins_again("it died", 5)
    assert run.suspects(0).exists()
    die(run, *range(8))
    assert not watched.begins_again("it died", 5)
    assert not run.suspects(0).exists()
    last = ledger.read_last(run.ledger(0)) or {}
    assert last["event"] == "failed"
    assert last["message"] == "it died; 3 new starts in a row have not brought one more row to its end"


def test_it_goes_on_where_rows_end(run: RunDirectory) -> None:
    """Every row that ends starts the count anew; a row that was condemned does not."""
    watched = Supervision(run, 0, ExecutorSpec(max_engine_restarts=2))
    for num_done in range(10):
        die(run, 5 + num_done)
        assert watched.begins_again("it died", num_done)
    die(run, 99)
    assert watched.begins_again("it died", 9)
    die(run, 99)
    assert not watched.begins_again("it died", 9)
    assert watched.num_restarts == 11


def test_an_engine_that_never_came_up_is_not_tried_again(run: RunDirectory) -> None:
    """What fails at the first start fails at the second."""
    ledger.Ledger(run.ledger(0)).write("started")
    assert not Supervision(run, 0, ExecutorSpec()).begins_again("it died", 0)


def test_silence(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step without an end is a stall after stall_s; steps that end are none, nor is time nobody was looking."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watched = Supervision(run, 0, ExecutorSpec(stall_s=10))
    record = Flight(run.flight(0))

    def look(times: int) -> list[bool]:
        found = []
        for _ in range(times):
            now[0] += 0.5
            found.append(watched.is_stalled())
        return found

    assert not any(look(100))
    for _ in range(30):
        record.begin_step()
        assert not any(look(10))
        record.end_step()
    record.begin_step()
    now[0] += 10_000  # as if the whole group was stopped
    assert not any(look(18))
    assert any(look(4))
    assert watched.death(-signal.SIGKILL) == "the engine was silent for 10 s"
    record.close()


@pytest.mark.process
def test_a_poison_row_among_a_thousand(tmp_path: Path) -> None:
    """A row that kills every engine it is in becomes an error row; all others are translated; the ledger counts."""
    texts = [f"number {number} {'x' * (number % 50)}" for number in range(1000)]
    texts[617] += " hemlock"
    job = write_job(tmp_path, write_rows(tmp_path / "rows.jsonl", texts), engine={"max_num_seqs": 16})
    done = seedx_batch("run", job, env={POISON: "hemlock"})
    assert done.returncode == 0, done.stderr
    table = parts_of(tmp_path / "run").to_pylist()
    assert [row["id"] for row in table] == [f"r{number}" for number in range(1000)]
    assert [row["id"] for row in table if row["status"] == "error"] == ["r617"]
    assert table[617]["error"].startswith("engine_killed: ")
    assert "SIGKILL" in table[617]["error"]
    told = json.loads(seedx_batch("status", tmp_path / "run", "--json").stdout)
    assert told["num_restarts"] == events(tmp_path)["restarting"] == events(tmp_path)["loaded"] - 1
    assert 3 <= told["num_restarts"] <= 8
    assert list((tmp_path / "run/.state/faults").glob("*.json")) == []


@pytest.mark.process
def test_a_row_that_silences_the_engine(tmp_path: Path) -> None:
    """An engine that brings nothing for stall_s is killed and begun again, and the row is found like one that kills."""
    texts = [f"number {number}" for number in range(40)]
    texts[7] += " lullaby"
    job = write_job(
        tmp_path,
        write_rows(tmp_path / "rows.jsonl", texts),
        engine={"max_num_seqs": 2},
        executor={"stall_s": 0.5},
    )
    done = seedx_batch("run", job, env={STALL: "lullaby"})
    assert done.returncode == 0, done.stderr
    assert "the engine was silent for 0.5 s; starting again" in done.stderr
    table = parts_of(tmp_path / "run").to_pylist()
    assert [row["id"] for row in table if row["status"] == "error"] == ["r7"]


@pytest.mark.process
def test_a_broken_machine(tmp_path: Path) -> None:
    """Where every row kills, the budget ends the run with 69, the reason, and the log's last lines."""
    job = write_job(
        tmp_path,
        write_rows(tmp_path / "rows.jsonl", [f"number {number}" for number in range(100)]),
        executor={"max_engine_restarts": 3},
    )
    done = seedx_batch("run", job, env={POISON: "number"})
    assert done.returncode == 69
    assert "SIGKILL" in done.stderr
    assert "3 new starts in a row have not brought one more row to its end" in done.stderr
    assert "rank-00000.log" in done.stderr
    assert seedx_batch("run", job).returncode == 0
    assert set(parts_of(tmp_path / "run")["status"].to_pylist()) <= {"ok", "truncated"}


@pytest.mark.process
def test_a_worker_that_is_killed_is_started_again(tmp_path: Path) -> None:
    """kill -9 of the worker alone, as the kernel does when memory runs out: the run goes on by itself."""
    rows = write_rows(tmp_path / "rows.jsonl", [f"{number} {number * 7919}" for number in range(25_000)])
    job = write_job(
        tmp_path, rows, output={"rows_per_shard": 1000}, executor={"checkpoint_s": 0.1}, decoding={"max_tokens": 40}
    )
    process = start(job)
    wait_for_rows(job, 300)
    os.kill(next(line["pid"] for line in ledger.read(tmp_path / LEDGER) if line["event"] == "started"), signal.SIGKILL)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 0, told
    assert parts_of(tmp_path / "run")["id"].to_pylist() == [f"r{number}" for number in range(25_000)]
    assert events(tmp_path)["restarting"] == 1
