"""Every call by which a run changes its folder, as it is made: recorded, and made to fail where that is asked for.

The product changes a run directory only by functions of `os` (durable.py says so, and test_crash.py checks it with
strace), so that wrapping these sees everything. Nothing waits for the disk here: a sync is only noted.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NEEDS_SPACE = {"create", "write", "allocate", "mkdir", "link", "rename"}
_REALLY = {
    name: getattr(os, name)
    for name in (
        *("open", "write", "pwrite", "posix_fallocate", "fsync", "close"),
        *("link", "rename", "replace", "unlink", "mkdir"),
    )
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Args:
        name: create (open for writing), write, allocate (zeros), fsync, close, link, rename, unlink, mkdir; open (of a
            folder to sync).
        path: what it changes; of link and rename the new name.
        other: the old name.
    """

    name: str
    path: str
    other: str = ""
    content: bytes = b""
    truncates: bool = False


class Tap:
    """The calls of this process below a folder.

    Args:
        fail_at: the number of the call that fails; None for none.
        number: the error it fails with. ENOSPC and EDQUOT go on: whatever needs space fails from then on.
    """

    def __init__(self, root: str, fail_at: int | None = None, number: int = errno.EIO) -> None:
        self.calls: list[Call] = []
        self.failed: Call | None = None
        self._root = root
        self._fail_at = fail_at
        self._number = number
        self._paths: dict[int, str] = {}
        self._mine = threading.RLock()

    def _is_below(self, path: Any) -> bool:
        text = os.fspath(path) if not isinstance(path, int) else ""
        return text == self._root or text.startswith(f"{self._root}/")

    def _note(self, call: Call, before_failing: Callable[[], object] | None = None) -> None:
        """Records a call, or fails in its place."""
        is_full = self.failed is not None and self._number in (errno.ENOSPC, errno.EDQUOT) and call.name in NEEDS_SPACE
        if len(self.calls) == self._fail_at or is_full:
            if self.failed is None:
                self.failed = call
            self.calls.append(Call("failed", call.path, call.name))
            if before_failing is not None:
                before_failing()
            raise OSError(self._number, os.strerror(self._number))
        self.calls.append(call)

    def open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if not self._is_below(path):
            return int(_REALLY["open"](path, flags, mode, **options))
        with self._mine:
            self._note(Call("create" if flags & _CHANGING else "open", str(path), truncates=bool(flags & os.O_TRUNC)))
            fd = int(_REALLY["open"](path, flags, mode, **options))
            self._paths[fd] = str(path)
            return fd

    def write(self, fd: int, content: Any) -> int:
        with self._mine:
            if fd in self._paths:
                # A disk that becomes full takes the beginning.
                half = bytes(content)[: len(content) // 2]
                self._note(Call("write", self._paths[fd], content=bytes(content)), lambda: _REALLY["write"](fd, half))
            return int(_REALLY["write"](fd, content))

    def pwrite(self, fd: int, *arguments: Any) -> int:
        if fd in self._paths:
            raise NotImplementedError("the tap knows no pwrite")
        return int(_REALLY["pwrite"](fd, *arguments))

    def posix_fallocate(self, fd: int, start: int, size: int) -> None:
        with self._mine:
            if fd in self._paths:
                self._note(Call("allocate", self._paths[fd], content=bytes(start + size)))
            _REALLY["posix_fallocate"](fd, start, size)

    def fsync(self, fd: int) -> None:
        with self._mine:
            if fd not in self._paths:
                _REALLY["fsync"](fd)
                return
            self._note(Call("fsync", self._paths[fd]))

    def close(self, fd: int) -> None:
        with self._mine:
            path = self._paths.pop(fd, None)
            if path is not None:
                self._note(Call("close", path), lambda: _REALLY["close"](fd))
            _REALLY["close"](fd)

    def _two(self, name: str, call: str) -> Callable[..., None]:
        def act(old: Any, new: Any, **options: Any) -> None:
            with self._mine:
                if self._is_below(new):
                    self._note(Call(call, os.fspath(new), os.fspath(old)))
                _REALLY[name](old, new, **options)

        return act

    def _one(self, name: str, call: str) -> Callable[..., None]:
        def act(path: Any, *arguments: Any, **options: Any) -> None:
            with self._mine:
                if self._is_below(path):
                    # That there is nothing to do is no change.
                    if name == "unlink" and not os.path.lexists(path):
                        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                    self._note(Call(call, os.fspath(path)))
                _REALLY[name](path, *arguments, **options)

        return act

    @contextmanager
    def open_up(self) -> Iterator["Tap"]:
        """Wraps `os` for as long as the body runs; what it leaves open is closed then, as when a process ends."""
        wrappers: dict[str, Callable[..., Any]] = {
            "open": self.open,
            "write": self.write,
            "pwrite": self.pwrite,
            "posix_fallocate": self.posix_fallocate,
            "fsync": self.fsync,
            "close": self.close,
            "link": self._two("link", "link"),
            "rename": self._two("rename", "rename"),
            "replace": self._two("replace", "rename"),
            "unlink": self._one("unlink", "unlink"),
            "mkdir": self._one("mkdir", "mkdir"),
        }
        with mock.patch.multiple(os, **wrappers):
            try:
                yield self
            finally:
                for fd in self._paths:
                    _REALLY["close"](fd)
                self._paths.clear()
