"""What a worker's death means: begin again, with the rows that may be to blame set apart, or give up and say why.

Must never know how workers are started, or what an engine is.
"""

import signal
import time
from dataclasses import dataclass, field

from seedx_batch import flight, ledger, suspects
from seedx_batch.durable import remove
from seedx_batch.errors import EngineDied
from seedx_batch.flight import Sight
from seedx_batch.ledger import Ledger
from seedx_batch.rundir import RunDirectory
from seedx_batch.spec import ExecutorSpec

_MOST_S_BETWEEN_LOOKS = 1.0


@dataclass
class Supervision:
    """Looks after one worker through its deaths.

    Args:
        executor: how often it may begin again, and how long an engine may be silent.
    """

    run: RunDirectory
    rank: int
    executor: ExecutorSpec
    num_restarts: int = 0
    _num_done: int | None = None
    _num_in_a_row: int = 0
    _seen: Sight = field(default_factory=Sight)
    _silent_s: float = 0.0
    _looked_at: float = field(default_factory=time.monotonic)
    _ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self._ledger = Ledger(self.run.ledger(self.rank))
        # What an earlier launch has left says nothing: nobody saw how that one ended.
        remove(self.run.flight(self.rank))

    def is_stalled(self) -> bool:
        """Whether the engine has been in one step for longer than `stall_s`."""
        sight, now = flight.read(self.run.flight(self.rank)), time.monotonic()
        if not sight.steps or sight.num_steps != self._seen.num_steps:
            self._seen, self._silent_s = sight, 0.0
        # While this process was stopped, so was the worker, or else it had time to go on that nobody saw.
        self._silent_s += min(now - self._looked_at, _MOST_S_BETWEEN_LOOKS)
        self._looked_at = now
        return self._silent_s > self.executor.stall_s

    def death(self, code: int) -> str | None:
        """How the engine died, in words, where that is why the worker has ended.

        Args:
            code: the worker's exit code; a signal's number, negative, where one ended it.
        """
        if self._silent_s > self.executor.stall_s:
            return f"the engine was silent for {self.executor.stall_s:g} s"
        if code < 0:
            name = signal.Signals(-code).name
            why = ", which the kernel sends when memory runs out" if name == "SIGKILL" else ""
            return f"the worker was ended by {name}{why}"
        last = ledger.read_last(self.run.ledger(self.rank)) or {}
        return str(last["message"]) if last.get("event") == "died" else None

    def begins_again(self, how: str, num_done: int) -> bool:
        """Takes notice of a death of the engine: whether the worker is to be started again.

        It is not where `max_engine_restarts` starts in a row have not brought one more row to its end, and where the
        first engine of a launch has not even come up.

        Args:
            how: it died, in words.
            num_done: rows of the run that have ended.
        """
        in_flight = flight.read(self.run.flight(self.rank)).rows
        remove(self.run.flight(self.rank))
        self._seen, self._silent_s = Sight(), 0.0
        if self.num_restarts == 0 and not self._has_loaded():
            return self._give_up(f"{how} before the engine was up")
        suspected = suspects.load(self.run.suspects(self.rank)).after(in_flight, how)
        self.run.write_text(self.run.suspects(self.rank), suspected.to_json())
        # A condemned row ends too, but not because an engine has worked.
        num_done -= len(suspected.condemned)
        progressed = self._num_done is None or num_done > self._num_done
        self._num_done = num_done if progressed else self._num_done
        self._num_in_a_row = 1 if progressed else self._num_in_a_row + 1
        if self._num_in_a_row > self.executor.max_engine_restarts:
            self.forget()  # on a machine that is broken any row looks guilty
            most = self.executor.max_engine_restarts
            return self._give_up(f"{how}; {most} new starts in a row have not brought one more row to its end")
        self.num_restarts += 1
        num_suspects = sum(map(len, suspected.groups))
        self._ledger.write(
            "restarting",
            message=how,
            num_restarts=self.num_restarts,
            num_lost=len(in_flight),
            num_suspects=num_suspects,
        )
        return True

    def forget(self) -> None:
        """Forgets which rows may have killed engines: for when the job is done, or nothing can be told."""
        remove(self.run.suspects(self.rank))

    def _give_up(self, message: str) -> bool:
        self._ledger.write("failed", message=message, exit_code=EngineDied.exit_code)
        return False

    def _has_loaded(self) -> bool:
        last = ledger.read_last(self.run.ledger(self.rank)) or {}
        return last.get("event") != "started"
