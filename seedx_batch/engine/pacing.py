"""A vLLM scheduler that waits after each step until its answers were read.

In a process of its own vLLM's engine goes on while its answers are read, and every request that these call for comes a
step late: beam search then takes almost twice the steps, and what live hypotheses were carried too far is in vain.
Here the engine begins a step only when the reader says how many answers it has read. Must never know beam search.

Source: EngineCoreProc in vllm/v1/engine/core.py: between steps it takes requests in until its scheduler has work.
"""

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

_READ = "read/"
"""Begins the name of a request that does not exist and is aborted: the one message that every vLLM passes on."""


class PacedScheduler(Scheduler):  # type: ignore[misc]  # vLLM has no types here
    """vLLM's own scheduler, except that it has no work while an answer is unread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_answers = 0
        self._num_read = 0

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's; counts the answers that the engine sends."""
        answers = super().update_from_output(*args, **kwargs)
        self._num_answers += bool(answers)
        return answers

    def finish_requests(self, request_ids: str | Iterable[str] | None, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's; takes note of what was read."""
        if request_ids is not None and not isinstance(request_ids, str):
            request_ids = list(request_ids)
            read = [int(name.removeprefix(_READ)) for name in request_ids if name.startswith(_READ)]
            self._num_read = max(self._num_read, *read) if read else self._num_read
        return super().finish_requests(request_ids, *args, **kwargs)

    def has_requests(self) -> bool:
        """Whether there is something to do and nobody to wait for."""
        has_requests: bool = super().has_requests()
        return has_requests and self._num_read >= self._num_answers


class Pace:
    """The reader's side.

    Args:
        core: vLLM's client of the engine.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._num_read = 0

    def go_on(self) -> None:
        """Lets the engine begin its next step; to be called before each answer is waited for."""
        self._core.abort_requests([f"{_READ}{self._num_read}"])
        self._num_read += 1


def is_paced(config: Any) -> bool:
    """Whether a VllmConfig has this scheduler."""
    return config.scheduler_config.scheduler_cls in (PacedScheduler, f"{__name__}.{PacedScheduler.__name__}")
