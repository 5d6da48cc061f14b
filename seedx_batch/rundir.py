"""The run directory: where everything lies, who may write there, and how a file appears whole or not at all.

Must never know what is inside the files: no rows, no engine, no prompts.
"""

import errno
import fcntl
import json
import os
import re
import socket
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from seedx_batch.durable import make_folder, sync_folder, write, writing
from seedx_batch.errors import RunDirectoryBusy, StorageError

_PART = re.compile(r"part-(\d{5,})-of-(\d{5,})\.parquet")
_JOURNAL = re.compile(r"shard-(\d{5,})\.journal")
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


class RunDirectory:
    """One run directory: its paths, its lock, and the ways a file gets into it.

    README.md  job.yaml  plan.json  stats.parquet  report.html
    data/part-00012-of-00040.parquet
    .state/  journal/  ledger/  logs/  faults/  tmp/  damaged/  lock  lock.json
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.card = self.path / "README.md"
        self.job = self.path / "job.yaml"
        self.plan = self.path / "plan.json"
        self.stats = self.path / "stats.parquet"
        self.report = self.path / "report.html"
        self.parts = self.path / "data"
        self.journals = self.path / ".state" / "journal"
        self.ledgers = self.path / ".state" / "ledger"
        self.logs = self.path / ".state" / "logs"
        self._faults = self.path / ".state" / "faults"
        self.damaged = self.path / ".state" / "damaged"
        self._tmp = self.path / ".state" / "tmp"
        self._lock = self.path / ".state" / "lock"
        self._holder = self.path / ".state" / "lock.json"

    @staticmethod
    def part_name(index: int, num_shards: int) -> str:
        """A part's file name; all names of a run are equally long, so that they sort as the shards do."""
        width = max(5, len(str(num_shards)))
        return f"part-{index:0{width}d}-of-{num_shards:0{width}d}.parquet"

    def part(self, index: int, num_shards: int) -> Path:
        """Where a shard's part is, once it is committed."""
        return self.parts / self.part_name(index, num_shards)

    def journal(self, index: int) -> Path:
        """Where a shard's journal is, while it has one."""
        return self.journals / f"shard-{index:05d}.journal"

    def ledger(self, rank: int) -> Path:
        """Where a worker's ledger is."""
        return self.ledgers / f"rank-{rank:05d}.jsonl"

    def log(self, rank: int) -> Path:
        """Where a worker's output goes."""
        return self.logs / f"rank-{rank:05d}.log"

    def flight(self, rank: int) -> Path:
        """Where a worker notes the rows that are in its engine."""
        return self._faults / f"rank-{rank:05d}.flight"

    def suspects(self, rank: int) -> Path:
        """Where it is kept which rows may have killed a worker's engines."""
        return self._faults / f"rank-{rank:05d}.suspects.json"

    def temporary(self, name: str) -> Path:
        """A path that nobody else uses, on the same file system; `sweep` removes what a crash leaves there."""
        return self._tmp / f"{name}.{uuid.uuid4().hex}"

    def committed(self) -> set[int]:
        """The indices of the shards that have a part.

        Raises:
            StorageError: the folder cannot be read, or holds parts of differently cut plans.
        """
        found = _numbered(self.parts, _PART)
        totals = {int(match[2]) for match in found}
        if len(totals) > 1:
            raise StorageError(
                f"{self.parts}: holds parts of plans with {' and '.join(map(str, sorted(totals)))} shards; "
                "move those away that do not belong to this run"
            )
        return {int(match[1]) for match in found}

    def visible(self, earlier: Collection[int]) -> dict[int, Path]:
        """The parts that are there by the index of their shard, also such as are yet to be renamed.

        Args:
            earlier: how many shards the plan had before rows were added, each time.

        Raises:
            StorageError: the folder cannot be read, or holds parts of differently cut plans.
        """
        found = _numbered(self.parts, _PART)
        if len({int(match[2]) for match in found}.difference(earlier)) > 1:
            self.committed()
        return {int(match[1]): self.parts / match[0] for match in found}

    def rename_parts(self, num_shards: int, earlier: Collection[int]) -> None:
        """Names the parts from before rows were added after the number of shards that there are now; only for the
        lock's holder.

        A part has one name at any moment, so that this may be broken off anywhere and done again.

        Raises:
            StorageError: a part cannot be renamed.
        """
        old = [match for match in _numbered(self.parts, _PART) if int(match[2]) in earlier]
        with writing(self.parts):
            for match in old:
                final = self.part(int(match[1]), num_shards)
                if not final.exists():
                    os.rename(self.parts / match[0], final)
            if old:
                sync_folder(self.parts)

    def journaled(self) -> set[int]:
        """The indices of the shards that have a journal."""
        return {int(match[1]) for match in _numbered(self.journals, _JOURNAL)}

    def create(self) -> None:
        """Makes the folders that are not there yet.

        Raises:
            StorageError: they cannot be made.
        """
        # .state comes first: by it a run's folder is known.
        for folder in (self.journals, self.ledgers, self.logs, self._faults, self._tmp, self.parts):
            with writing(folder):
                make_folder(folder)
        # Those that are there may have been made by a launch that was killed before it had synced their names.
        for folder in (self._tmp.parent, self.path, self.path.parent, self.path.parent.parent):
            with writing(folder), suppress(PermissionError):
                sync_folder(folder)

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Holds the run directory for one run; gives the lock's descriptor, and a child that inherits it holds it too.

        Raises:
            RunDirectoryBusy: another run holds it; the message names that one.
            StorageError: the lock cannot be written, or the file system has no locks.
        """
        with writing(self._lock):
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._hold(fd, fcntl.LOCK_EX)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "started_at": _now()}
            self.write_text(self._holder, json.dumps(holder))
            yield fd
        finally:
            with writing(self._lock):
                os.close(fd)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Keeps runs out while others read; writes nothing, as the run directory may be nobody's to write to.

        Raises:
            RunDirectoryBusy, StorageError: as for `lock`.
        """
        try:
            fd = os.open(self._lock, os.O_RDONLY)
        except FileNotFoundError:  # a copy of the results: nobody can run here before making a lock
            yield
            return
        except OSError as error:
            raise StorageError(f"{self._lock}: {error.strerror}; make it readable") from error
        try:
            self._hold(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    def _hold(self, fd: int, how: int) -> None:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryBusy(f"{self.path}: {self._tell_holder()}") from error
        except OSError as error:
            remedy = "mount it with locks (Lustre: -o flock), or choose a run_dir on another file system"
            raise StorageError(f"{self._lock}: {error.strerror}; {remedy}") from error

    def is_held(self) -> bool | None:
        """Whether the process that took the lock last still lives; None where that cannot be told from here."""
        try:
            holder = json.loads(self._holder.read_bytes())
            return None if str(holder["host"]) != socket.gethostname() else _is_alive(int(holder["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_text(self, path: Path, text: str) -> None:
        """Writes a small file of the run directory in one atomic step, over an earlier one too.

        Raises:
            StorageError: it cannot be written; the earlier one is then untouched.
        """
        self.write_bytes(path, text.encode())

    def write_bytes(self, path: Path, content: bytes | bytearray) -> None:
        """As `write_text`, for what is no text."""
        tmp = self.temporary(path.name)
        with writing(path):
            write(tmp, content)
        self.replace(tmp, path)

    def read_text(self, path: Path) -> str:
        """A small file of the run directory.

        Raises:
            StorageError: it cannot be read.
        """
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}; restore it, or start over in a new run_dir") from error
        except UnicodeDecodeError as error:
            raise StorageError(f"{path}: is damaged ({error}); restore it, or start over in a new run_dir") from error

    def set_aside(self, path: Path) -> Path:
        """Moves a damaged file out of the run's way; where it is then.

        Raises:
            StorageError: it cannot be moved.
        """
        with writing(path):
            aside = self._aside(path.name)
            os.rename(path, aside)
            sync_folder(self.damaged)
            sync_folder(path.parent)
        return aside

    def copy_aside(self, path: Path) -> Path:
        """Copies a damaged file that is to be mended; where the copy is.

        Raises:
            StorageError: it cannot be copied.
        """
        with writing(path):
            aside = self._aside(path.name)
            write(aside, path.read_bytes())
            sync_folder(self.damaged)
        return aside

    def _aside(self, name: str) -> Path:
        make_folder(self.damaged)
        return self.damaged / f"{name}.{_now().replace(':', '')}.{uuid.uuid4().hex[:8]}"

    def replace(self, tmp: Path, final: Path) -> None:
        """Puts a whole, synced temporary file in a final place, over what is there.

        Raises:
            StorageError: that failed; there is then either what was there before, or this file.
        """
        with writing(final):
            os.replace(tmp, final)
            sync_folder(final.parent)

    def publish(self, tmp: Path, final: Path) -> bool:
        """Puts a whole, synced temporary file in a final place, never over a file that is there.

        Where the file system has no hard links, looking whether a file is there and renaming are two steps; only the
        run's lock then keeps others out between them.

        Returns:
            Whether this file is the one; False if another was there first. The temporary file is gone either way.

        Raises:
            StorageError: that failed.
        """
        with writing(final):
            is_ours = _link(tmp, final)
            tmp.unlink(missing_ok=True)
            sync_folder(final.parent)
        return is_ours

    def sweep(self, keep: Collection[int] = ()) -> None:
        """Removes what crashes have left: temporary files, journals of committed shards; only for the lock's holder.

        Args:
            keep: shards whose part is yet to be replaced.

        Raises:
            StorageError: a file cannot be removed.
        """
        with writing(self._tmp):
            for path in self._tmp.iterdir():
                path.unlink()
        with writing(self.journals):
            for path in self.journals.glob("*.new"):
                path.unlink()
        # A part whose run was killed before it had synced this is seen, and could still be gone after a power cut.
        with writing(self.parts):
            sync_folder(self.parts)
        for index in (self.journaled() & self.committed()).difference(keep):
            with writing(self.journal(index)):
                self.journal(index).unlink()

    def _tell_holder(self) -> str:
        """Who holds the lock, as far as is known, and what to do."""
        try:
            holder = json.loads(self._holder.read_bytes())
            pid, host, started_at = int(holder["pid"]), str(holder["host"]), str(holder["started_at"])
        except (OSError, ValueError, KeyError, TypeError):  # the other has the lock, but has not told its name yet
            return f"another run holds it; wait for its end (`fuser {self._lock}` names it)"
        if host == socket.gethostname() and not _is_alive(pid):
            return (
                f"the run of process {pid}, started at {started_at}, is gone, but a worker of it still saves its rows "
                f"(or `validate` reads them); wait for its end (`fuser {self._lock}` names it)"
            )
        return f"process {pid} on {host} holds it since {started_at}; wait for its end, or stop it"


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """The names in a folder that match; none if there is no folder."""
    try:
        return [match for name in os.listdir(folder) if (match := pattern.fullmatch(name))]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}") from error


def _link(tmp: Path, final: Path) -> bool:
    """Makes a file visible under its final name, unless that is taken; whether it is this file that has the name."""
    try:
        os.link(tmp, final)
    except FileExistsError:
        # NFS may carry out a request, lose the answer, and refuse the repetition.
        return os.path.samefile(tmp, final)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if final.exists():
            return False
        os.rename(tmp, final)
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
