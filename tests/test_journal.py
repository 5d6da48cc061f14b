"""Proves that a journal gives back every batch that `append` has returned for, whatever was torn, flipped or killed."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seedx_batch.errors import StorageError
from seedx_batch.journal import Gap, Journal, count_rows, examine

SCHEMA = pa.schema([pa.field("n", pa.int32())])


def batch_of(*values: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(values, pa.int32())], schema=SCHEMA)


BATCHES = [batch_of(1), batch_of(2, 3), batch_of(4)]


def fill(path: Path, batches: list[pa.RecordBatch] = BATCHES) -> list[int]:
    """Writes a journal; gives the file's length after each batch."""
    journal = Journal(path, SCHEMA, "job")
    lengths = []
    for batch in batches:
        journal.append(batch)
        lengths.append(path.stat().st_size)
    journal.close()
    return lengths


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Makes the kernel refuse to let files grow beyond a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the syncs, which thousands of small journals would wait for."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def check_damaged(path: Path, whole: list[pa.RecordBatch]) -> None:
    """A damaged journal gives its whole batches, counts them, and takes another one."""
    assert Journal(path, SCHEMA, "job").read() == whole
    assert count_rows(path) == sum(batch.num_rows for batch in whole)
    again = Journal(path, SCHEMA, "job")
    again.append(batch_of(9))
    again.close()
    assert examine(path) == ([*whole, batch_of(9)], [])


@pytest.mark.usefixtures("unsynced")
def test_cut_at_every_byte(tmp_path: Path) -> None:
    """Cut at any length, a journal gives and counts exactly the whole batches, and goes on behind them."""
    path = tmp_path / "shard.journal"
    lengths = fill(path)
    text = path.read_bytes()
    for cut in range(len(text)):
        path.write_bytes(text[:cut])
        whole = [batch for batch, length in zip(BATCHES, lengths, strict=True) if length <= cut]
        assert count_rows(path) == sum(batch.num_rows for batch in whole)
        torn = [] if cut in (0, *lengths) else [Gap(max(0, *(n for n in lengths if n < cut), 0), cut, is_torn=True)]
        assert examine(path) == (whole, torn)
        assert path.stat().st_size == cut
        check_damaged(path, whole)


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_flip_every_byte(tmp_path: Path, flip: int) -> None:
    """With any byte changed, a journal gives exactly the batches beside it, tells where, and that no crash did it."""
    path = tmp_path / "shard.journal"
    lengths = fill(path)
    text = path.read_bytes()
    for position in range(len(text)):
        path.write_bytes(text[:position] + bytes([text[position] ^ flip]) + text[position + 1 :])
        damaged = sum(length <= position for length in lengths)
        gap = Gap([0, *lengths][damaged], lengths[damaged], is_torn=False)
        whole = BATCHES[:damaged] + BATCHES[damaged + 1 :]
        assert examine(path) == (whole, [gap])
        check_damaged(path, whole)


@pytest.mark.usefixtures("unsynced")
def test_a_hole_in_the_middle(tmp_path: Path) -> None:
    """A later write counts also where a crash has lost an earlier one, whose bytes then are zeros."""
    path = tmp_path / "shard.journal"
    lengths = fill(path)
    text = path.read_bytes()
    path.write_bytes(text[: lengths[0]] + bytes(lengths[1] - lengths[0]) + text[lengths[1] :])
    check_damaged(path, [BATCHES[0], BATCHES[2]])


@pytest.mark.usefixtures("unsynced")
def test_append_without_reading_first(tmp_path: Path) -> None:
    """A new journal object cuts a torn end off before it appends: behind it the new batch would be lost."""
    path = tmp_path / "shard.journal"
    lengths = fill(path)
    os.truncate(path, lengths[-1] - 5)
    journal = Journal(path, SCHEMA, "job")
    journal.append(batch_of(9))
    journal.close()
    assert Journal(path, SCHEMA, "job").read() == [*BATCHES[:2], batch_of(9)]


@pytest.mark.usefixtures("unsynced")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 99), st.none() | st.text()), max_size=5), max_size=4),
    st.binary(max_size=40),
)
def test_batches_come_back(tmp_path: Path, rows: list[list[tuple[int, str | None]]], noise: bytes) -> None:
    """Whatever batches go in come out in order, and noise behind them does no harm."""
    path = tmp_path / "shard.journal"
    path.unlink(missing_ok=True)
    schema = pa.schema([pa.field("position", pa.int32()), pa.field("text", pa.string())])
    batches = [
        pa.RecordBatch.from_arrays(
            [pa.array([r[0] for r in batch], pa.int32()), pa.array([r[1] for r in batch], pa.string())], schema=schema
        )
        for batch in rows
    ]
    journal = Journal(path, schema, "job")
    for batch in batches:
        journal.append(batch)
    assert journal.read() == batches
    journal.close()
    with path.open("ab") as file:
        file.write(noise)
    assert Journal(path, schema, "job").read() == batches
    assert count_rows(path) == sum(map(len, rows))


@pytest.mark.parametrize(
    ("schema", "fingerprint"),
    [
        (SCHEMA, "other"),
        (pa.schema([pa.field("m", pa.int32())]), "job"),
        (pa.schema([pa.field("n", pa.int64())]), "job"),
    ],
)
def test_journal_of_another_job_is_refused(tmp_path: Path, schema: pa.Schema, fingerprint: str) -> None:
    """Rows of another fingerprint or of other columns are neither used nor removed nor written behind."""
    path = tmp_path / "shard.journal"
    fill(path)
    before = path.read_bytes()
    journal = Journal(path, schema, fingerprint)
    with pytest.raises(StorageError, match=r"shard\.journal: holds rows of another job; remove it"):
        journal.read()
    with pytest.raises(StorageError, match="holds rows of another job"):
        journal.append(pa.RecordBatch.from_pylist([], schema=schema))
    assert path.read_bytes() == before


def test_a_batch_with_other_columns_is_refused(tmp_path: Path) -> None:
    """A journal holds batches of one schema only."""
    journal = Journal(tmp_path / "shard.journal", SCHEMA, "job")
    with pytest.raises(ValueError, match="other columns"):
        journal.append(pa.RecordBatch.from_pydict({"m": [1]}))
    assert not journal.path.exists()


def test_no_journal_has_no_rows(tmp_path: Path) -> None:
    """Reading makes no file, and removing what is not there is no error."""
    journal = Journal(tmp_path / "shard.journal", SCHEMA, "job")
    assert journal.read() == []
    assert count_rows(journal.path) == 0
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_remove_deletes_the_file(tmp_path: Path) -> None:
    """A removed journal is gone, and can begin again."""
    journal = Journal(tmp_path / "shard.journal", SCHEMA, "job")
    journal.append(batch_of(1))
    journal.remove()
    assert not journal.path.exists()
    journal.append(batch_of(2))
    assert journal.read() == [batch_of(2)]
    journal.close()


def test_sync_waits_for_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file's name is on disk at once, what was appended when `sync` returns; then nothing is left to wait for."""
    synced: list[str] = []
    original = os.fsync

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        original(fd)

    monkeypatch.setattr(os, "fsync", note)
    journal = Journal(tmp_path / "shard.journal", SCHEMA, "job")
    journal.append(BATCHES[0])
    journal.append(BATCHES[1])
    assert synced == [str(tmp_path)]
    assert examine(journal.path)[0] == BATCHES[:2]
    journal.sync()
    journal.sync()
    assert synced == [str(tmp_path), str(journal.path)]
    journal.close()


def test_what_another_process_left_is_written_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading an earlier process's journal puts it on disk in a new file: its own sync may have failed unseen."""
    path = tmp_path / "shard.journal"
    fill(path)
    synced: list[str] = []
    before = path.stat().st_ino
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    assert Journal(path, SCHEMA, "job").read() == BATCHES
    assert synced == [str(path.with_suffix(".new")), str(tmp_path)]
    assert path.stat().st_ino != before
    assert list(tmp_path.iterdir()) == [path]


def test_a_removed_journal_is_noticed(tmp_path: Path) -> None:
    """A journal whose file is taken away while it is written to fails at its next sync."""
    journal = Journal(tmp_path / "shard.journal", SCHEMA, "job")
    journal.append(batch_of(1))
    journal.path.unlink()
    with pytest.raises(
        StorageError, match=r"shard\.journal: No such file .* was moved or removed while the run went on"
    ):
        journal.sync()
    journal.close()


def test_a_full_disk_costs_only_the_unwritten_batch(tmp_path: Path) -> None:
    """A write that fails in the middle is told, the journal takes no more, the next run finds all before it."""
    path = tmp_path / "shard.journal"
    lengths = fill(path, BATCHES[:2])
    journal = Journal(path, SCHEMA, "job")
    with (
        file_size_limit(lengths[-1] + 40),
        pytest.raises(
            StorageError, match=r"shard.journal: File too large; .* same command again; finished rows are kept"
        ),
    ):
        journal.append(batch_of(*range(50)))
    assert path.stat().st_size == lengths[-1] + 40
    with pytest.raises(StorageError, match="an earlier write failed"):
        journal.append(batch_of(9))
    journal.close()
    assert Journal(path, SCHEMA, "job").read() == BATCHES[:2]


def test_a_failed_sync_is_never_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a sync that failed nothing is known of the file's end, so the journal takes no more."""
    calls: list[int] = []
    journal = Journal(tmp_path / "shard.journal", SCHEMA, "job")
    journal.append(batch_of(1))

    def fail(fd: int) -> None:
        calls.append(fd)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    for call in (journal.sync, journal.sync, lambda: journal.append(batch_of(2))):
        with pytest.raises(StorageError):
            call()
    journal.close()
    assert len(calls) == 1


WRITER = """
import sys
from pathlib import Path
import pyarrow as pa
from seedx_batch.journal import Journal
schema = pa.schema([pa.field("n", pa.int32()), pa.field("text", pa.string())])
journal = Journal(Path(sys.argv[1]), schema, "job")
number = len(journal.read())
while True:
    texts = [f"{number} " * 2000] * 100
    journal.append(pa.RecordBatch.from_arrays([pa.array([number] * 100, pa.int32()), pa.array(texts)], schema=schema))
    print(number, flush=True)
    number += 1
"""


@pytest.mark.process
def test_killed_while_appending(tmp_path: Path) -> None:
    """Killed with SIGKILL again and again, a writer loses no batch that `append` returned for."""
    path = tmp_path / "shard.journal"
    schema = pa.schema([pa.field("n", pa.int32()), pa.field("text", pa.string())])
    num_saved = 0
    for num_lines in (1, 4, 2, 3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(num_lines):
                assert int(writer.stdout.readline()) == num_saved
                num_saved += 1
            writer.send_signal(signal.SIGKILL)
            # It may have saved more in the meantime; the last line may be torn.
            num_saved += sum(line.endswith("\n") for line in writer.stdout)
        assert writer.returncode == -signal.SIGKILL
        batches = Journal(path, schema, "job").read()
        assert num_saved <= len(batches) <= num_saved + 1
        assert [batch.column("n")[0].as_py() for batch in batches] == list(range(len(batches)))
        num_saved = len(batches)
