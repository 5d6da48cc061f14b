"""THE loop: rows in, committed shards out; one engine kept full from the first row to the last.

Must never know the job's yaml, vLLM, signals or other workers.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from seedx_batch.decoding import Admitted, Decoder
from seedx_batch.engine import Engine
from seedx_batch.errors import RowRejected
from seedx_batch.records import Completion, Row, RowKey
from seedx_batch.twins import Twins

Start = Callable[[Row], Admitted]

_ROWS_PER_STEP = 4
"""Rows begun before a step are at most so many windows: rows that need no engine must not keep it waiting."""


class Completions(Protocol):
    """Where completions go: the shelf, as far as the loop knows it."""

    def put(self, completion: Completion) -> None:
        """Takes what a row ended as."""

    def save(self) -> None:
        """Puts everything that was taken on disk."""

    def publish_full(self) -> None:
        """Makes a part of every shard that is full."""


@dataclass(slots=True)
class Counters:
    """What one launch of a worker has done so far; seconds are of the loop, not of start-up."""

    num_rows: int = 0
    num_errors: int = 0
    num_deduplicated: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_in_flight: int = 0
    num_steps: int = 0
    busy_s: float = 0.0
    idle_s: float = 0.0

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
        rows: what is left to do, in order.
        start: renders, tokenises and admits a row; RowRejected makes it an error row.
        window: requests in the engine at once; more than it runs at a time, so that its queue is never empty.
        twins: merges identical requests; None where every row is generated.
        checkpoint_s: finished rows are on disk after at most so many seconds.
        stopping: asked before every step; the seconds that rows in flight still have, or None to go on.
        on_checkpoint: told the counters after every checkpoint.
    """

    rows: Iterator[Row]
    start: Start
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

    def run(self) -> bool:
        """Whether everything was done; False when it was stopped before."""
        began = time.monotonic()
        more = True
        while more or self._decoders:
            seconds = self.stopping()
            if seconds is not None and (seconds <= 0 or not self._decoders):
                break
            if seconds is None and more:
                more = self._feed()
            self._step()
            self.counters.idle_s = time.monotonic() - began - self.counters.busy_s
            self._checkpoint_if_due()
            self.shelf.publish_full()
        self.checkpoint()
        return not more and not self._decoders

    def checkpoint(self) -> None:
        """Puts every finished row on disk."""
        self.shelf.save()
        self.counters.num_in_flight = len(self._decoders)
        self.on_checkpoint(self.counters)
        self._saved_at = time.monotonic()

    def _feed(self) -> bool:
        """Fills the window; whether rows are left."""
        most = _ROWS_PER_STEP * self.window
        for _ in range(most):
            if self.engine.num_unfinished >= self.window or (self.twins and self.twins.num_waiting >= most):
                break
            row = next(self.rows, None)
            if row is None:
                return False
            self._begin(row)
        return True

    def _begin(self, row: Row) -> None:
        try:
            if row.error is not None:
                raise RowRejected(*row.error.split(": ", 1))
            admitted = self.start(row)
            if self.twins is not None:
                twin = self.twins.claim(row.key, admitted.prompt_token_ids, admitted.params)
                if isinstance(twin, Completion):
                    self._complete(twin)
                    return
                if not twin:
                    return
            for request in admitted.decoder.start():
                self.engine.add(request)
        except RowRejected as rejection:
            self._complete(Completion(row.key, "error", error=str(rejection)))
        else:
            self._decoders[row.key] = admitted.decoder

    def _step(self) -> None:
        if not self.engine.num_unfinished:
            return
        began = time.monotonic()
        outputs = self.engine.step()
        self.counters.busy_s += time.monotonic() - began
        self.counters.num_steps += 1
        for output in outputs:
            decoder = self._decoders[output.request_id.row]
            for request in decoder.advance(output):
                self.engine.add(request)
            if decoder.completion is not None:
                del self._decoders[output.request_id.row]
                self._complete(decoder.completion)

    def _complete(self, completion: Completion) -> None:
        twins = self.twins.settle(completion) if self.twins is not None else []
        for each in (completion, *twins):
            self.counters.count(each)
            self.shelf.put(each)

    def _checkpoint_if_due(self) -> None:
        if time.monotonic() - self._saved_at >= self.checkpoint_s:
            self.checkpoint()
