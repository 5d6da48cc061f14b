"""One worker on this machine, as a child process that ends with its parent.

Must never know rows or the engine: it starts, signals and watches a process.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from seedx_batch import signals
from seedx_batch.durable import writing
from seedx_batch.rundir import RunDirectory
from seedx_batch.worker import LAST_WORDS


@dataclass
class LocalWorker:
    """A running worker; its output goes to its log."""

    process: subprocess.Popen[bytes]
    grace_s: float
    _words: int
    _kill_at: float | None = None

    @classmethod
    def start(cls, run: RunDirectory, environ: Mapping[str, str], lock_fd: int, grace_s: float) -> "LocalWorker":
        """Starts the worker of rank 0.

        Args:
            environ: variables that it has beside this process's.
            lock_fd: the run's lock; the worker holds it too, so that nobody follows while it still writes.
        """
        log = run.log(0)
        command = [sys.executable, "-m", "seedx_batch", "worker", str(run.path), "--rank", "0", "--world-size", "1"]
        hear, say = os.pipe()
        # Stop signals wait for the worker until it is ready for them; before, they would end it, or be forgotten.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP)
        try:
            with writing(log):
                log.parent.mkdir(parents=True, exist_ok=True)
                output = log.open("ab")
            with output:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **environ, signals.PARENT: str(os.getpid()), LAST_WORDS: str(say)},
                    pass_fds=[lock_fd, say],
                )
        finally:
            os.close(say)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return cls(process, grace_s, hear)

    def last_words(self) -> tuple[str, int] | None:
        """What an ended worker says has ended it, and the exit code of that; None if it came to its end in order."""
        os.set_blocking(self._words, False)
        try:
            message, exit_code = json.loads(os.read(self._words, 1 << 16))
        except (BlockingIOError, ValueError):  # another process holds the pipe; nothing or not all was said
            return None
        finally:
            os.close(self._words)
        return message, exit_code

    def poll(self) -> int | None:
        """The exit code once it has ended; a worker that outlives a stop is killed here."""
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self.process.kill()
        return self.process.poll()

    def kill(self) -> None:
        """Ends it without a word, and waits until it is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self, *, at_once: bool) -> None:
        """Asks it to stop; it is killed when it has not obeyed within `grace_s`, or 3 seconds if `at_once`."""
        kill_at = time.monotonic() + (min(3.0, self.grace_s) if at_once else self.grace_s)
        self._kill_at = kill_at if self._kill_at is None else min(kill_at, self._kill_at)
        if self.process.poll() is None:
            self.process.send_signal(signals.HURRY if at_once else signal.SIGTERM)
