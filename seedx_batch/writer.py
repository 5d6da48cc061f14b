"""A thread that writes while the engine works: what it is asked for happens in order, and never fails unnoticed.

Must never know what is written.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_MOST_JOBS = 2
"""Jobs that have not ended, at most: a disk slower than the engine must hold it up rather than fill the memory."""


class Writer:
    """One thread and its jobs.

    When a job fails, those after it are dropped, and every later call raises its exception: what ends the worker where
    nothing overlaps ends it here too.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._jobs: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a job has not ended."""
        self._settle(_MOST_JOBS)
        return bool(self._jobs)

    def begin(self, job: Callable[[], None]) -> None:
        """Asks for a job; waits where too many have not ended."""
        self._settle(_MOST_JOBS - 1)
        self._jobs.append(self._thread.submit(self._run, job))

    def wait(self) -> None:
        """Waits until every job has ended."""
        self._settle(0)

    def close(self) -> None:
        """Ends the thread when its jobs have ended."""
        self._thread.shutdown()

    def _settle(self, most: int) -> None:
        """Waits until at most so many jobs have not ended."""
        while self._jobs and (self._jobs[0].done() or len(self._jobs) > most):
            self._jobs.popleft().result()
        if self._error is not None:
            raise self._error

    def _run(self, job: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            job()
        except BaseException as error:
            self._error = error
            raise
