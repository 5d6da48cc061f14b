"""How much of its time an engine had work for all its sequences, reckoned from when its steps began and ended.

Must never know vLLM, rows or files.
"""

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Occupancy:
    """Seconds of one engine, divided by what its sequences did; free sequences count in proportion.

    An engine in a process of its own goes on while the host works, so the host's time says nothing about it; but the
    host knows when each request was sent and, from the engine's own clock, when each step ended.

    Args:
        max_num_seqs: sequences that the engine runs at a time.
        since: when the time to be divided begins (time.monotonic).
        busy_s: sequences were at work.
        idle_s: they were free though rows were left, or between two steps.
        tail_s: they were free because no rows were left.
    """

    max_num_seqs: int
    since: float
    busy_s: float = 0.0
    idle_s: float = 0.0
    tail_s: float = 0.0
    _sent: deque[float] = field(default_factory=deque)

    def sent(self, at: float) -> None:
        """Notes that a request was sent."""
        self._sent.append(at)

    def stepped(self, began: float, ended: float, num_unfinished: int, rows_left: bool) -> None:
        """Notes a step.

        Args:
            began, ended: by time.monotonic's clock; steps come in order and do not overlap.
            num_unfinished: requests that the host held for unfinished before it saw the step's outputs.
            rows_left: whether more could have been sent before it.
        """
        while self._sent and self._sent[0] <= began:
            self._sent.popleft()
        began, ended = max(began, self.since), max(ended, self.since)
        held = num_unfinished - len(self._sent)
        free_s = (ended - began) * max(0.0, 1 - held / self.max_num_seqs)
        self.busy_s += ended - began - free_s
        self.idle_s += began - self.since
        if rows_left:
            self.idle_s += free_s
        else:
            self.tail_s += free_s
        self.since = ended
