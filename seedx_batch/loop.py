"""THE loop: rows in, committed shards out; one engine kept full from the first row to the last.

Must never know the job's yaml, vLLM, signals or other workers.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from seedx_batch.ahead import Ahead, Ready
from seedx_batch.decoding import Decoder
from seedx_batch.engine import Engine
from seedx_batch.errors import RowRejected
from seedx_batch.occupancy import Occupancy
from seedx_batch.records import Completion, RowKey
from seedx_batch.twins import Twins

_ROWS_PER_STEP = 4
"""Rows begun before a step are at most so many windows: rows that need no engine must not keep it waiting."""


class Completions(Protocol):
    """Where completions go: the shelf, as far as the loop knows it. It writes while the engine works."""

    def put(self, completion: Completion) -> None:
        """Takes what a row ended as."""

    def save(self, then: Callable[[], None]) -> None:
        """Begins to put everything that was taken on disk; `then` is called when it is there, by the writing thread."""

    def publish_full(self) -> None:
        """Begins to make a part of every shard that is full."""

    def wait(self) -> None:
        """Waits until all that was begun is on disk."""


@dataclass(slots=True)
class Counters:
    """What one launch of a worker has done so far; seconds are of the loop, not of start-up.

    Args:
        busy_s, idle_s, tail_s: the engine's time, see Occupancy.
        host_s: what of it this process spent outside the engine's steps.
    """

    num_rows: int = 0
    num_errors: int = 0
    num_deduplicated: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_in_flight: int = 0
    num_steps: int = 0
    busy_s: float = 0.0
    idle_s: float = 0.0
    tail_s: float = 0.0
    host_s: float = 0.0

    def count(self, completion: Completion) -> None:
        """Adds one completion; tokens are those that the engine worked for."""
        self.num_rows += 1
        self.num_errors += completion.status == "error"
        self.num_deduplicated += completion.deduplicated
        if not completion.deduplicated:
            self.num_prompt_tokens += completion.num_prompt_tokens
            self.num_output_tokens += completion.num_output_tokens


@dataclass
class Loop:
    """Feeds rows to an engine and puts completions on their shelf.

    Args:
        ahead: what is left to do.
        window: requests in the engine at once; more than it runs at a time, so that its queue is never empty.
        twins: merges identical requests; None where every row is generated.
        checkpoint_s: finished rows are on disk after at most so many seconds.
        stopping: asked before every step; the seconds that rows in flight still have, or None to go on.
        on_checkpoint: told the counters after every checkpoint, by the thread that has written it.
    """

    ahead: Ahead
    engine: Engine
    shelf: Completions
    window: int
    twins: Twins | None
    checkpoint_s: float
    stopping: Callable[[], float | None]
    on_checkpoint: Callable[[Counters], None]
    counters: Counters = field(default_factory=Counters)
    _decoders: dict[RowKey, Decoder] = field(default_factory=dict)
    _saved_at: float = field(default_factory=time.monotonic)
    _occupancy: Occupancy = field(init=False)
    _returned_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._returned_at = time.monotonic()
        self._occupancy = Occupancy(self.engine.max_num_seqs, since=self._returned_at)

    def run(self) -> bool:
        """Whether everything was done; False when it was stopped before."""
        self._returned_at = self._occupancy.since = time.monotonic()
        # So that a short job's first rows are ordered too; a long one starts a fraction of a second later for it.
        self.ahead.read(_ROWS_PER_STEP * self.window)
        while self.ahead or self._decoders:
            seconds = self.stopping()
            if seconds is not None and (seconds <= 0 or not self._decoders):
                break
            if seconds is None:
                self._feed()
            self._step(rows_left=seconds is None and bool(self.ahead))
            self._checkpoint_if_due()
            self.shelf.publish_full()
        self.checkpoint()
        self.shelf.wait()
        return not self.ahead and not self._decoders

    def checkpoint(self) -> None:
        """Puts every finished row on disk, without waiting for it, and tells the counters when it is there."""
        self.counters.num_in_flight = len(self._decoders)
        self.counters.busy_s = self._occupancy.busy_s
        self.counters.idle_s = self._occupancy.idle_s
        self.counters.tail_s = self._occupancy.tail_s
        self.shelf.save(partial(self.on_checkpoint, replace(self.counters)))
        self._saved_at = time.monotonic()

    def _feed(self) -> None:
        """Fills the window."""
        most = _ROWS_PER_STEP * self.window
        for _ in range(most):
            if self.engine.num_unfinished >= self.window or (self.twins and self.twins.num_waiting >= most):
                break
            row = self.ahead.next()
            if row is None:
                break
            if isinstance(row, Completion):
                self._complete(row)
            else:
                self._begin(row)
        self.ahead.read(self.window)

    def _begin(self, row: Ready) -> None:
        admitted = row.admitted
        try:
            if self.twins is not None:
                twin = self.twins.claim(row.key, admitted.prompt_token_ids, admitted.params)
                if isinstance(twin, Completion):
                    self._complete(twin)
                    return
                if not twin:
                    return
            for request in admitted.decoder.start():
                self.engine.add(request)
                self._occupancy.sent(time.monotonic())
        except RowRejected as rejection:
            self._complete(Completion(row.key, "error", error=str(rejection)))
        else:
            self._decoders[row.key] = admitted.decoder

    def _step(self, *, rows_left: bool) -> None:
        num_unfinished = self.engine.num_unfinished
        if not num_unfinished:
            return
        called_at = time.monotonic()
        outputs = self.engine.step()
        self.counters.num_steps += 1
        self.counters.host_s += called_at - self._returned_at
        self._returned_at = time.monotonic()
        self._occupancy.stepped(*self.engine.last_step, num_unfinished, rows_left)
        for output in outputs:
            decoder = self._decoders[output.request_id.row]
            for request in decoder.advance(output):
                self.engine.add(request)
                self._occupancy.sent(time.monotonic())
            if decoder.completion is not None:
                del self._decoders[output.request_id.row]
                self._complete(decoder.completion)

    def _complete(self, completion: Completion) -> None:
        self.ahead.learn(completion)
        twins = self.twins.settle(completion) if self.twins is not None else []
        for each in (completion, *twins):
            self.counters.count(each)
            self.shelf.put(each)

    def _checkpoint_if_due(self) -> None:
        if time.monotonic() - self._saved_at >= self.checkpoint_s:
            self.checkpoint()
