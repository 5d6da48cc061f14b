"""What ends the processes of a run, stop signals and the death of a parent, and what does not: a closed terminal.

Must never know what a process does.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from seedx_batch.errors import Stopped

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
"""Asks for an end in order; a second one asks for it at once."""

HURRY = signal.SIGUSR1
"""By this a launch passes the second one on: the first may have reached the whole process group already."""

PARENT = "SEEDX_BATCH_PARENT"
"""Environment variable by which a process knows the one that it must not outlive."""

_PR_SET_PDEATHSIG = 1


def heard() -> tuple[signal.Signals, ...]:
    """The stop signals that count here; under nohup the closing of a terminal does not."""
    return tuple(number for number in STOP if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN)


def leave_at_once(exit_code: int, message: str) -> None:
    """From now on a stop signal ends this process where it stands, as kill -9 might, but with a message.

    An exception could be swallowed on its way, or wait for a thread that is in the middle of a download.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, f"\n{message}\n".encode())
        os._exit(exit_code)

    for number in heard():
        signal.signal(number, leave)


def ignore() -> None:
    """From now on a stop signal does nothing: this process has done everything and is about to end."""
    for number in heard():
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """What is written to stderr inside goes nowhere once it cannot be written: a closed terminal, a full disk."""
    try:
        yield
    except OSError:
        # Else what is in the buffer would fail again at exit, and change the exit code.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


def end_with_parent(number: signal.Signals) -> None:
    """Asks the kernel for this signal when the process named by `PARENT` is gone, which started this one.

    The kernel sends it when the thread that started this process ends.

    Raises:
        Stopped: it is gone already.
    """
    parent = os.environ.get(PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != int(parent):
        raise Stopped("the process that started this one is gone")
