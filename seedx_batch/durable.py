"""What stands behind "it is on disk": syncing files and folders, and how a failed write is told.

Must never know what the files are.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seedx_batch.errors import StorageError

_NO_FOLDER_SYNC = {errno.EINVAL, errno.EBADF}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def sync(path: Path) -> None:
    """Waits until a file is on disk; a sync that fails is final: the kernel may have dropped what it had."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Waits until a folder's entries are on disk, on file systems that know such a thing."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def check_place(path: Path) -> None:
    """Lets pass a file that can be written, before the work is done that it is for.

    Raises:
        StorageError: its folder is not there or not writable.
    """
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StorageError(f"'{path}' cannot be written: '{path.parent}' is no folder that may be written to")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tells an OSError in its body as a StorageError about `path`: where, what, what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_RIGHT:
            remedy = "make it writable, or choose another run_dir"
        else:
            remedy = "free space and run the same command again; finished rows are kept"
        raise StorageError(f"{path}: {error.strerror or error}; {remedy}") from error
