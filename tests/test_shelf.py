"""The shelf: what it writes is written by a thread of its own, and no promise is the weaker for it."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedx_batch import parts, sources
from seedx_batch.errors import StorageError
from seedx_batch.journal import count_rows
from seedx_batch.records import Completion, RowKey
from seedx_batch.rundir import RunDirectory
from seedx_batch.shelf import Imprint, Shelf
from seedx_batch.sources import Reader
from seedx_batch.spec import InputSpec

COMPLETION = parts.completion_schema("translation", [], False)
NUM_ROWS = 12


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


@pytest.fixture
def shelf(tmp_path: Path, run: RunDirectory) -> Iterator[Shelf]:
    """A shelf of three shards of four rows, all of which have been handed out."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": f"r{number}", "n": number}) + "\n" for number in range(NUM_ROWS)))
    given = InputSpec(path=str(path))
    scan = sources.scan(sources.find(given), given, 4)
    carried = pa.schema([pa.field(column.name, column.type) for column in scan.columns])
    imprint = Imprint(
        parts.part_schema(carried, COMPLETION), COMPLETION, scan.columns, 3, "f" * 16, "signature", "rank-00000", {}
    )
    with Reader(scan.files, scan.id_column) as reader, closing(Shelf(run, scan.shards, reader, imprint)) as made:
        assert [row.id for row in made.rows()] == [f"r{number}" for number in range(NUM_ROWS)]
        yield made


def complete(shelf: Shelf, shard: int, *positions: int) -> None:
    """Ends rows of a shard."""
    for position in positions:
        shelf.put(Completion(RowKey(shard, position), "ok", f"{shard}/{position}", "stop"))


def test_journals_and_parts_are_there_after_waiting(shelf: Shelf, run: RunDirectory) -> None:
    """What was saved is in the journal when it is told, and a full shard is a part in input order without a journal."""
    told: list[list[int]] = []
    complete(shelf, 0, 3, 0)
    complete(shelf, 2, 1)
    shelf.save(lambda: told.append([count_rows(run.journal(index)) for index in range(3)]))
    shelf.wait()
    assert told == [[2, 0, 1]]
    complete(shelf, 0, 2, 1)
    shelf.publish_full()
    shelf.wait()
    part = pq.read_table(run.part(0, 3)).to_pylist()
    assert [(row["id"], row["translation"]) for row in part] == [(f"r{number}", f"0/{number}") for number in range(4)]
    assert run.committed() == {0}
    assert not run.journal(0).exists()
    assert count_rows(run.journal(2)) == 1


def test_what_was_written_outlives_a_kill(shelf: Shelf, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`write` needs no sync for rows to be in their journal; while the thread is busy, a later call does it."""
    go, synced = threading.Event(), list[int]()
    monkeypatch.setattr("seedx_batch.journal.Journal.sync", lambda journal: synced.append(1))
    complete(shelf, 0, 3)
    shelf.write()
    shelf.wait()
    assert (count_rows(run.journal(0)), synced) == (1, [])

    def wait_for_disk() -> None:
        assert go.wait(60)

    shelf.save(wait_for_disk)
    complete(shelf, 0, 1)
    shelf.write()
    go.set()
    shelf.wait()
    assert count_rows(run.journal(0)) == 1
    shelf.write()
    shelf.wait()
    assert count_rows(run.journal(0)) == 2


def test_completions_come_in_while_a_part_is_written(
    shelf: Shelf, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part on its way to a slow disk keeps nobody waiting, and is not to be seen before it is whole."""
    go, write_part = threading.Event(), parts.write_part

    def write_slowly(*arguments: Any) -> None:
        assert go.wait(60)
        write_part(*arguments)

    monkeypatch.setattr(parts, "write_part", write_slowly)
    complete(shelf, 1, 0, 1, 2, 3)
    shelf.publish_full()
    complete(shelf, 0, 0, 1)
    shelf.save(lambda: None)
    assert run.committed() == set()
    go.set()
    shelf.wait()
    assert run.committed() == {1}
    assert count_rows(run.journal(0)) == 2


def test_a_failure_to_write_ends_the_worker(shelf: Shelf, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A StorageError of the thread is raised where the loop next saves or waits, and nothing is written after it."""

    def fail(*arguments: Any) -> None:
        raise StorageError("disk: no space left")

    monkeypatch.setattr(parts, "write_part", fail)
    complete(shelf, 1, 0, 1, 2, 3)
    shelf.publish_full()
    with pytest.raises(StorageError, match="no space"):
        shelf.wait()
    complete(shelf, 0, 0)
    with pytest.raises(StorageError, match="no space"):
        shelf.save(lambda: None)
    assert run.committed() == set()
    assert not run.journal(0).exists()
