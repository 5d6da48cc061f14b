"""What stands behind "it is on disk": writing and syncing files and folders, and how a failed write is told.

Must never know what the files are. Every write into a run directory is a call of `os` made here or in its journal or
ledger, so that tests can record each of them and make each of them fail.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seedx_batch.errors import StorageError

_NO_FOLDER_SYNC = {errno.EINVAL, errno.EBADF}
_MOVE = "make it writable, or choose another run_dir"
_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST), _MOVE),
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or have the quota raised",
    errno.EFBIG: "free space there, or raise the limit of a file's size (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOENT: "it was moved or removed while the run went on: put it back",
    errno.ESTALE: "it was moved or removed on its file server: put it back",
    errno.EIO: "its disk or file server is at fault, as the system's log (dmesg) may tell: mend that",
}


def write(path: Path, content: bytes | bytearray) -> None:
    """Writes a whole file and waits until it is on disk; where that fails, nothing of it stays to take up space."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        try:
            write_all(fd, content)
            # A sync that fails is final: the kernel may have dropped what it had, and a second one would not tell.
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError:
        with suppress(OSError):  # the first failure is the one to tell, and a sweep removes the file too
            path.unlink()
        raise


def write_all(fd: int, content: bytes | bytearray) -> None:
    """Writes all of it, where one call may write only a part."""
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def sync_folder(folder: Path) -> None:
    """Waits until a folder's entries are on disk, on file systems that know such a thing."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Makes a folder with those above it, and waits until the names of all it makes are on disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    if folder.exists():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def check_place(path: Path) -> None:
    """Lets pass a file that can be written, before the work is done that it is for.

    Raises:
        StorageError: its folder is not there or not writable.
    """
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StorageError(f"'{path}' cannot be written: '{path.parent}' is no folder that may be written to")


def remove(path: Path) -> None:
    """Removes a file, if there is one.

    Raises:
        StorageError: it cannot be removed.
    """
    with writing(path):
        path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tells an OSError in its body as a StorageError about `path`: where, what, what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}; {_remedy(path, error)}") from error


def _remedy(path: Path, error: OSError) -> str:
    remedy = _REMEDIES.get(error.errno or 0, "mend that")
    if remedy == _MOVE:
        return remedy
    if error.errno == errno.ENOSPC:
        with suppress(OSError):
            free = shutil.disk_usage(path.parent).free
            remedy += f" ({free / 1e6:,.1f} MB are left)"
    return f"{remedy}, and run the same command again; finished rows are kept"
