"""Jobs that go wrong everywhere end early, and only those."""

from pathlib import Path

import pytest

from seedx_batch import ledger
from seedx_batch.engine.simulated import SimulatedEngine
from seedx_batch.error_rate import JUDGED_FROM, ErrorRate
from seedx_batch.errors import TooManyErrors
from seedx_batch.records import Completion, RowKey
from tests.jobs import parts_of, seedx_batch, write_job, write_rows
from tests.test_loop import loop_over


def counted(num_ok: int, num_errors: int, rate: ErrorRate) -> ErrorRate:
    """The rate after so many rows of each kind."""
    for position in range(num_ok):
        rate.count(Completion(RowKey(0, position), "ok", "text"))
    for position in range(num_errors):
        rate.count(Completion(RowKey(1, position), "error", error=f"kind_{position % 3 and 1}: reason {position}"))
    return rate


@pytest.mark.parametrize(
    ("num_ok", "num_errors", "most", "is_too_high"),
    [
        (0, JUDGED_FROM - 1, 0.05, False),
        (0, JUDGED_FROM, 0.05, True),
        (190, 10, 0.05, False),
        (189, 11, 0.05, True),
        (0, 9999, None, False),
        (199, 1, 0.0, True),
        (0, 500, 1.0, False),
    ],
)
def test_what_is_too_high(num_ok: int, num_errors: int, most: float | None, is_too_high: bool) -> None:
    """A larger share than is borne, of 200 rows or more."""
    assert counted(num_ok, num_errors, ErrorRate(most)).is_too_high(0) is is_too_high


def test_earlier_launches_count() -> None:
    """Rows that were done before are judged with those of now."""
    assert counted(0, 20, ErrorRate(0.05, 180, 0)).is_too_high(0)
    assert not counted(0, 20, ErrorRate(0.05, 10_000, 0)).is_too_high(0)


def test_what_is_told() -> None:
    """The rate, the commonest kinds first with a row of each, and what to do."""
    first, most, least, remedy = str(counted(300, 90, ErrorRate(0.05)).told()).splitlines()
    assert first == "90 of 390 rows failed (23.1 %), more than executor.max_error_rate 0.05 bears"
    assert most == "  60 x kind_1, as in row 1 of shard 1: reason 1"
    assert least == "  30 x kind_0, as in row 0 of shard 1: reason 0"
    assert "max_error_rate" in remedy


def test_the_loop_ends_with_what_has_ended_saved() -> None:
    """Bad rows at the front end the loop; every row that has ended is saved, and the rest was not begun."""
    engine = SimulatedEngine(4)
    loop, shelf = loop_over(["?"] * 300 + ["a"] * 3000, engine, errors=ErrorRate(0.05))
    with pytest.raises(TooManyErrors):
        loop.run()
    assert not shelf.unsaved
    assert JUDGED_FROM <= len(shelf.saved) < 600


def test_bad_rows_end_sooner_than_good_ones() -> None:
    """Where one row in 25 is bad a wide engine goes on: the good ones that are in flight count too."""
    loop, shelf = loop_over((["?"] + ["a"] * 24) * 100, SimulatedEngine(256), errors=ErrorRate(0.05))
    assert loop.run() is True
    assert len(shelf.saved) == 2500


def test_the_last_rows_are_not_stopped() -> None:
    """Where no row is left to begin there is nothing to stop."""
    loop, shelf = loop_over(["a"] * 200 + ["?"] * 20, SimulatedEngine(4), errors=ErrorRate(0.05))
    assert loop.run() is True
    assert len(shelf.saved) == 220


def test_rows_since_the_last_such_end(tmp_path: Path) -> None:
    """Launches add up with their last checkpoint, and begin anew after the one that ended for its errors."""
    path = tmp_path / "ledger.jsonl"
    assert ledger.rows_since(path, 65) == (0, 0)
    for counts, code in (([(100, 100), (300, 300)], 65), ([(50, 1), (70, 2)], 69), ([(30, 3)], None)):
        book = ledger.Ledger(path)
        book.write("started", pid=1)
        for num_rows, num_errors in counts:
            book.write("checkpoint", num_rows=num_rows, num_errors=num_errors)
        if code is not None:
            book.write("failed", message="no", exit_code=code)
        book.close()
    assert ledger.rows_since(path, 65) == (100, 5)


@pytest.mark.process
def test_a_job_that_goes_wrong_everywhere(tmp_path: Path) -> None:
    """It ends early with 65, tells why, keeps what it has, and the same command goes on once the fault is mended."""
    rows = write_rows(tmp_path / "rows.jsonl", [""] * 300 + [f"text {number}" for number in range(700)])
    job = write_job(tmp_path, rows, output={"rows_per_shard": 100})
    ended = seedx_batch("run", job)
    assert ended.returncode == 65, ended.stderr
    assert "more than executor.max_error_rate 0.05 bears" in ended.stderr
    assert "Traceback" not in ended.stderr
    path = tmp_path / "run/.state/ledger/rank-00000.jsonl"
    assert JUDGED_FROM <= ledger.read(path)[-2]["num_rows"] < 700

    again = seedx_batch("run", job, "--set", "executor.max_error_rate=null")
    assert again.returncode == 0, again.stderr
    assert parts_of(tmp_path / "run")["number"].to_pylist() == list(range(1000))
    assert ledger.totals(path.parent)["num_rows"] == 1000
    (kind,) = {line.split(" x ")[1] for line in again.stderr.splitlines() if line.startswith("error ")}
    assert f"300 x {kind}" in again.stderr
