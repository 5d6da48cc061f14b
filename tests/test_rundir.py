"""Proves that a run directory has one holder, and that a file appears in it whole or not at all, never over a part."""

import errno
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from seedx_batch.errors import RunDirectoryBusy, StorageError
from seedx_batch.rundir import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "runs" / "zh_en")
    directory.create()
    return directory


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Makes the kernel refuse to let files grow beyond a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refuse_links(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Makes hard links fail, as on file systems that have none."""

    def fail(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)


def temporary(run: RunDirectory, text: str) -> Path:
    path = run.temporary("part")
    path.write_text(text)
    return path


def leftovers(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in (run.path / ".state" / "tmp").iterdir())


def test_create_makes_every_folder_once_or_twice(run: RunDirectory) -> None:
    """Every folder that files go into is there, and making them again is no error."""
    run.create()
    for path in (run.part(0, 1), run.journal(0), run.ledger(0), run.log(0), run.temporary("x")):
        assert path.parent.is_dir()


def test_a_path_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A run directory below a file is refused with the reason and a remedy."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"journal: Not a directory; .*choose another run_dir") as caught:
        RunDirectory(tmp_path / "file" / "run").create()
    assert caught.value.exit_code == 74


@pytest.mark.parametrize(
    ("index", "num_shards", "name"),
    [
        (12, 40, "part-00012-of-00040.parquet"),
        (99_999, 99_999, "part-99999-of-99999.parquet"),
        (12, 100_000, "part-000012-of-100000.parquet"),
        (1_234_567, 2_000_000, "part-1234567-of-2000000.parquet"),
    ],
)
def test_part_names_sort_as_shards(run: RunDirectory, index: int, num_shards: int, name: str) -> None:
    """A part's name has the width of its run's largest one, and is read back as the shard's index."""
    assert run.part_name(index, num_shards) == name
    run.part(index, num_shards).touch()
    assert run.committed() == {index}


def test_only_parts_count_as_committed(run: RunDirectory) -> None:
    """Committed is what has a part; other files are none, and before the folder is there nothing is."""
    assert RunDirectory(run.path / "none").committed() == set()
    for name in ("part-00001-of-00003.parquet.tmp", "xpart-00001-of-00003.parquet", "part-1-of-3.parquet", "notes.txt"):
        (run.parts / name).touch()
    assert run.committed() == set()
    run.part(0, 3).touch()
    run.part(2, 3).touch()
    assert run.committed() == {0, 2}


def test_parts_of_two_plans_are_refused(run: RunDirectory) -> None:
    """Parts of a plan with another number of shards are not taken for parts of this one."""
    run.part(0, 3).touch()
    run.part(1, 4).touch()
    with pytest.raises(StorageError, match="plans with 3 and 4 shards"):
        run.committed()


def test_write_text_replaces_whole_files(run: RunDirectory) -> None:
    """A text comes back as it was written, over an earlier one, and leaves nothing behind."""
    run.write_text(run.plan, "old " * 1000)
    run.write_text(run.plan, "新しい\n")
    assert run.read_text(run.plan) == "新しい\n"
    assert leftovers(run) == []


def test_a_full_disk_leaves_the_earlier_text(run: RunDirectory) -> None:
    """A text that does not fit is told with the way on, and the earlier one stays."""
    run.write_text(run.plan, "old")
    with (
        file_size_limit(1000),
        pytest.raises(
            StorageError, match=r"plan\.json: File too large; free space .*same command again; finished rows are kept"
        ),
    ):
        run.write_text(run.plan, "new" * 1000)
    assert run.read_text(run.plan) == "old"
    run.sweep()
    assert leftovers(run) == []


def test_a_failed_sync_is_told_and_not_repeated(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text whose sync fails never becomes visible, and the sync is not tried twice."""
    calls: list[int] = []

    def fail(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"plan\.json: Input/output error"):
        run.write_text(run.plan, "text")
    assert len(calls) == 1
    assert not run.plan.exists()


def test_file_systems_that_cannot_sync_folders_will_do(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that says EINVAL to a sync is no failure; a file that says so is one."""
    original = os.fsync

    def only_files(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        original(fd)

    monkeypatch.setattr(os, "fsync", only_files)
    run.write_text(run.plan, "text")
    assert run.read_text(run.plan) == "text"


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xfd"])
def test_a_text_that_cannot_be_read_is_told(run: RunDirectory, content: bytes | None) -> None:
    """A missing or garbled text is an error that names the file."""
    if content is not None:
        run.plan.write_bytes(content)
    with pytest.raises(StorageError, match=r"plan\.json: .*restore it"):
        run.read_text(run.plan)


@pytest.mark.parametrize("refused", [None, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_publish_is_never_over_a_part(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, refused: int | None) -> None:
    """The first file gets the name and the second is thrown away, also where there are no hard links."""
    if refused is not None:
        refuse_links(monkeypatch, refused)
    assert run.publish(temporary(run, "first"), run.part(0, 1)) is True
    assert run.publish(temporary(run, "second"), run.part(0, 1)) is False
    assert run.part(0, 1).read_text() == "first"
    assert leftovers(run) == []


def test_publish_knows_its_own_file(run: RunDirectory) -> None:
    """A name that is taken by this very file, as after a lost answer of a file server, is a success."""
    path = temporary(run, "mine")
    os.link(path, run.part(0, 1))
    assert run.publish(path, run.part(0, 1)) is True
    assert run.part(0, 1).read_text() == "mine"
    assert leftovers(run) == []


def test_publish_has_one_winner(run: RunDirectory) -> None:
    """Of many that publish the same part at once exactly one wins, and its file is the one that is seen."""
    paths = [temporary(run, str(number)) for number in range(16)]
    start = threading.Barrier(len(paths))
    won: list[str] = []

    def publish(number: int) -> None:
        start.wait()
        if run.publish(paths[number], run.part(0, 1)):
            won.append(str(number))

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(len(paths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [run.part(0, 1).read_text()]
    assert leftovers(run) == []


def test_publish_syncs_the_folder(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """When `publish` returns, the part's name is on disk; a failing sync is told."""

    def fail(fd: int) -> None:
        assert os.readlink(f"/proc/self/fd/{fd}") == str(run.parts)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = temporary(run, "part")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"part-00000-of-00001\.parquet: Input/output error"):
        run.publish(path, run.part(0, 1))


def test_publish_tells_other_failures(run: RunDirectory) -> None:
    """A temporary file that is not there is an error, not a part."""
    with pytest.raises(StorageError, match="No such file"):
        run.publish(run.temporary("none"), run.part(0, 1))
    assert run.committed() == set()


def test_sweep_removes_only_what_is_of_no_use(run: RunDirectory) -> None:
    """Temporary files and journals of committed shards go; journals of open shards, parts and ledgers stay."""
    temporary(run, "torn")
    for path in (run.part(1, 3), run.journal(1), run.journal(2), run.journal(2).with_suffix(".new"), run.ledger(0)):
        path.touch()
    assert run.journaled() == {1, 2}
    run.sweep()
    assert leftovers(run) == []
    assert [path.name for path in run.journals.iterdir()] == ["shard-00002.journal"]
    assert run.committed() == {1}
    assert run.ledger(0).exists()


def test_the_second_run_is_told_who_holds_it(run: RunDirectory) -> None:
    """While a run directory is held another run is refused, with the holder's name; afterwards it is free."""
    with run.lock():
        with pytest.raises(
            RunDirectoryBusy, match=f"process {os.getpid()} on {socket.gethostname()} holds it since 20"
        ):
            RunDirectory(run.path).lock().__enter__()
        holder = json.loads((run.path / ".state" / "lock.json").read_text())
        assert holder["pid"] == os.getpid()
    with RunDirectory(run.path).lock():
        pass


def test_the_lock_is_free_after_an_error(run: RunDirectory) -> None:
    """A run that ends by an exception lets go of its directory."""
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with run.lock():
        pass


HOLDER = """
import sys, time
from seedx_batch.rundir import RunDirectory
with RunDirectory(sys.argv[1]).lock() as fd:
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_holder_holds_nothing(run: RunDirectory) -> None:
    """Another process's lock is seen, and SIGKILL frees it."""
    command = [sys.executable, "-c", HOLDER, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunDirectoryBusy, match=f"process {holder.pid} on "):
            run.lock().__enter__()
        holder.kill()
    with run.lock():
        pass


def test_a_worker_that_outlives_its_run_still_holds(run: RunDirectory) -> None:
    """A child that inherited the lock holds it after its parent, and the message says that the parent is gone."""
    with run.lock() as fd:
        worker = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=[fd]
        )
    try:
        gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        holder = {"pid": int(gone.stdout), "host": socket.gethostname(), "started_at": "2026-01-01T00:00:00+00:00"}
        (run.path / ".state" / "lock.json").write_text(json.dumps(holder))
        with pytest.raises(RunDirectoryBusy, match=f"process {holder['pid']}, .*is gone, but a worker of it"):
            run.lock().__enter__()
        (run.path / ".state" / "lock.json").write_text("{")
        with pytest.raises(RunDirectoryBusy, match="another run holds it"):
            run.lock().__enter__()
    finally:
        worker.communicate()
    with run.lock():
        pass


def test_a_file_system_without_locks_is_told(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where locks do not work the run is refused with a remedy, not run unprotected."""

    def fail(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(StorageError, match="No locks available; mount it with locks"):
        run.lock().__enter__()


def test_the_lock_needs_its_folder(tmp_path: Path) -> None:
    """Locking a run directory that was not created is told as what cannot be written."""
    with pytest.raises(StorageError, match=r"lock: No such file"):
        RunDirectory(tmp_path / "none").lock().__enter__()
