"""Proves that ledgers keep every whole line, whatever happened to the last one, and add up."""

import json
import os
from pathlib import Path

import pytest

from seedx_batch import ledger
from seedx_batch.errors import StorageError
from seedx_batch.ledger import Ledger


def test_lines_come_back_with_time_and_launch(tmp_path: Path) -> None:
    """A line holds what was written, when, and by which start; a second start has a name of its own."""
    path = tmp_path / "rank-00000.jsonl"
    first = Ledger(path)
    first.write("started", pid=1, note="zwei\nZeilen 你好")
    first.close()
    first.write("stopped")
    second = Ledger(path)
    second.write("started", pid=2)
    lines = ledger.read(path)
    assert [line["event"] for line in lines] == ["started", "stopped", "started"]
    assert lines[0]["note"] == "zwei\nZeilen 你好"
    assert lines[0]["launch"] == lines[1]["launch"] == first.launch != second.launch == lines[2]["launch"]
    assert all(isinstance(line["t"], float) for line in lines)
    assert len(path.read_bytes().splitlines()) == 3
    first.close()
    second.close()


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    """Cut at any byte, a ledger gives its whole lines, and what is written afterwards is found too."""
    path = tmp_path / "rank-00000.jsonl"
    book = Ledger(path)
    for number in range(3):
        book.write("checkpoint", num_rows=number, nested={"a": [1, {}]})
    book.close()
    whole = path.read_bytes()
    ends = [position for position, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        # A line whose end alone is missing is whole.
        expected = list(range(sum(end <= cut for end in ends)))
        assert [line["num_rows"] for line in ledger.read(path)] == expected
        last = ledger.read_last(path)
        assert (last["num_rows"] if last else None) == (expected[-1] if expected else None)
        later = Ledger(path)
        later.write("finished")
        later.close()
        assert [line["event"] for line in ledger.read(path)] == ["checkpoint"] * len(expected) + ["finished"]
        last = ledger.read_last(path)
        assert last is not None
        assert last["event"] == "finished"


@pytest.mark.parametrize("length", [0, 10, 4096, 5000, 100_000])
def test_last_line_is_found_whatever_its_length(tmp_path: Path, length: int) -> None:
    """The last line is found from the file's end, also where it or a torn one is longer than the first look."""
    path = tmp_path / "rank-00000.jsonl"
    book = Ledger(path)
    for number in range(5):
        book.write("note", number=number, text="x" * length)
    book.close()
    with path.open("ab") as file:
        file.write(b'{"event": "torn", "text": "' + b"y" * length)
    last = ledger.read_last(path)
    assert last is not None
    assert (last["number"], len(last["text"])) == (4, length)


def test_no_ledger_has_no_lines(tmp_path: Path) -> None:
    """Before the first line there is nothing to read, and that is no error."""
    path = tmp_path / "rank-00000.jsonl"
    assert ledger.read(path) == []
    assert ledger.read_last(path) is None
    path.touch()
    assert ledger.read_last(path) is None
    assert set(ledger.totals(tmp_path / "none").values()) == {0}


def test_totals_add_up_launches_and_ranks(tmp_path: Path) -> None:
    """Counters count once for each launch, with their last value; gauges and torn lines do not count."""
    for rank in range(2):
        for _ in range(3):
            book = Ledger(tmp_path / f"rank-{rank:05d}.jsonl")
            book.write("started", pid=1, settings={"num_rows": 1})
            book.write("loaded", load_s=2.5)
            book.write("checkpoint", num_rows=10, num_output_tokens=100, num_in_flight=7)
            book.write("checkpoint", num_rows=20, num_output_tokens=300, num_prompt_tokens=5, busy_s=1.5, idle_s=0.25)
            book.write("restarting", num_restarts=2)
            book.write("stopped")
            book.close()
            with book.path.open("ab") as file:
                file.write(b'{"launch": "0", "event": "checkpoint", "t": 1, "num_rows": 9')
    totals = ledger.totals(tmp_path)
    assert totals == {
        "num_rows": 120,
        "num_errors": 0,
        "num_deduplicated": 0,
        "num_prompt_tokens": 30,
        "num_output_tokens": 1800,
        "busy_s": 9.0,
        "idle_s": 1.5,
        "tail_s": 0,
        "host_s": 0,
        "load_s": 15.0,
        "num_restarts": 12,
    }


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """A line that cannot be written is an error that names the file and says how to go on."""
    path = tmp_path / "rank-00000.jsonl"
    path.symlink_to("/dev/full")
    book = Ledger(path)
    with pytest.raises(StorageError, match=r"rank-00000.jsonl: No space left on device; .* same command again"):
        book.write("started")
    book.close()


def test_one_write_for_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line goes to the file in one write, so that a reader never sees half of one."""
    writes: list[bytes] = []
    original = os.write

    def count(fd: int, text: bytes) -> int:
        writes.append(bytes(text))
        return original(fd, text)

    monkeypatch.setattr(os, "write", count)
    book = Ledger(tmp_path / "rank-00000.jsonl")
    book.write("note", text="x" * 100_000)
    book.close()
    assert [json.loads(text)["event"] for text in writes] == ["note"]


def test_thinned_keeps_every_event_and_each_starts_last_checkpoint(tmp_path: Path) -> None:
    """Of many checkpoints few are left, but all else is, in order, and what each start had done in the end."""
    path = tmp_path / "rank-00000.jsonl"
    for _ in range(3):
        book = Ledger(path)
        book.write("started", pid=1)
        for number in range(1, 501):
            book.write("checkpoint", num_rows=number)
        book.write("stopped")
        book.close()
    lines = list(ledger.thinned(path, 30))
    assert lines == [line for line in ledger.read(path) if line in lines]
    assert [line["event"] for line in lines if line["event"] != "checkpoint"] == ["started", "stopped"] * 3
    before = [lines[place - 1] for place, line in enumerate(lines) if line["event"] == "stopped"]
    assert [line["num_rows"] for line in before] == [500] * 3
    assert 30 <= sum(line["event"] == "checkpoint" for line in lines) <= 40
    assert list(ledger.thinned(path, 10_000)) == ledger.read(path)
    assert list(ledger.thinned(tmp_path / "none", 9)) == []


def test_read_since_gives_one_line_more(tmp_path: Path) -> None:
    """The lines since a moment and the one before it come back, however long the ledger is."""
    path = tmp_path / "rank-00000.jsonl"
    lines = [{"launch": "a", "event": "checkpoint", "t": 1000.0 + number} for number in range(2000)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ledger.read_since(path, 2990) == lines[1989:]
    assert ledger.read_since(path, 1500) == lines[499:]
    assert ledger.read_since(path, 0) == lines
    assert ledger.read_since(tmp_path / "none", 0) == []


def test_a_line_tells_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an error quotes of a URL's credentials or of the environment is masked before it is written."""
    monkeypatch.setenv("HF_TOKEN", "a-canary-of-the-environment")
    written = Ledger(tmp_path / "rank-00000.jsonl")
    written.write("failed", message="https://user:canary@host refused a-canary-of-the-environment", exit_code=69)
    assert ledger.read(written.path)[0]["message"] == "https://***@host refused ***"
    assert b"canary" not in written.path.read_bytes()
