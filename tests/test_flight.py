"""The record of rows in flight: what a process that dies without a word leaves behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedx_batch import flight
from seedx_batch.errors import StorageError
from seedx_batch.flight import Flight, Sight
from seedx_batch.records import RowKey
from tests.jobs import environment


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 700)), max_size=1500))
def test_it_holds_the_rows_that_entered_and_did_not_leave(
    tmp_path_factory: pytest.TempPathFactory, moves: list
) -> None:
    """Whatever comes and goes, and however many there are, the file says who is there."""
    path = tmp_path_factory.mktemp("flight") / "record"
    record, inside = Flight(path), set[RowKey]()
    for enters, number in moves:
        key = RowKey(number % 7, number)
        if enters and key not in inside:
            record.enter(key)
            inside.add(key)
        elif not enters and key in inside:
            record.leave(key)
            inside.remove(key)
    assert flight.read(path).rows == inside
    record.close()
    assert flight.read(path).rows == inside


def test_more_rows_than_it_began_with(tmp_path: Path) -> None:
    """The file grows with the rows."""
    record = Flight(tmp_path / "record")
    keys = {RowKey(3, position) for position in range(1000)}
    for key in keys:
        record.enter(key)
    assert flight.read(tmp_path / "record").rows == keys
    record.close()


def test_steps(tmp_path: Path) -> None:
    """A step is seen from its begin to its end, and counted."""
    path = tmp_path / "record"
    assert flight.read(path) == Sight()
    record = Flight(path)
    record.begin_step()
    assert flight.read(path) == Sight(num_steps=1, steps=True)
    record.end_step()
    record.begin_step()
    record.end_step()
    assert flight.read(path) == Sight(num_steps=2)
    record.close()


def test_it_outlives_its_process(tmp_path: Path) -> None:
    """What was noted a moment before a SIGKILL is there."""
    code = (
        "import os, sys; from pathlib import Path; from seedx_batch.flight import Flight\n"
        "record = Flight(Path(sys.argv[1]))\n"
        "from seedx_batch.records import RowKey; record.enter(RowKey(2, 5)); record.begin_step()\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "record"], env=environment({}), check=False)
    assert done.returncode == -signal.SIGKILL
    assert flight.read(tmp_path / "record") == Sight(frozenset([RowKey(2, 5)]), 1, True)


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is taken when the file is made, so that a full disk is an error of ours and no bus error later."""

    def fail(*arguments: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        Flight(tmp_path / "record")
