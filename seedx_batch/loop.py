"""THE loop: rows in, committed shards out; one engine kept full from the first row to the last.

Must never know the job's yaml, vLLM, signals or other workers.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from seedx_batch.ahead import Ahead, Ready
from seedx_batch.decoding import Admitted
from seedx_batch.engine import Engine
from seedx_batch.error_rate import ErrorRate
from seedx_batch.errors import RowRejected, TooManyErrors
from seedx_batch.occupancy import Occupancy
from seedx_batch.records import Completion, RowKey
from seedx_batch.twins import Twins

_WRITE_S = 0.1
"""Finished rows are written so often, and kept when this process is killed; only a checkpoint waits for the disk."""

_ROWS_PER_STEP = 4
"""Rows begun before a step are at most so many windows: rows that need no engine must not keep it waiting."""


class Completions(Protocol):
    """Where completions go: the shelf, as far as the loop knows it. It writes while the engine works."""

    def put(self, completion: Completion) -> None:
        """Takes what a row ended as."""

    def write(self) -> None:
        """Begins to write what was taken to where a kill of this process cannot take it."""

    def save(self, then: Callable[[], None]) -> None:
        """Begins to put everything that was taken on disk; `then` is called when it is there, by the writing thread."""

    def publish_full(self) -> None:
        """Begins to make a part of every shard that is full."""

    def wait(self) -> None:
        """Waits until all that was begun is on disk."""


class Flight(Protocol):
    """Where rows in flight are noted, for whoever looks when this process has died in a step."""

    def enter(self, key: RowKey) -> None:
        """The engine has a row now."""

    def leave(self, key: RowKey) -> None:
        """It has it no longer."""

    def begin_step(self) -> None:
        """It is about to work."""

    def end_step(self) -> None:
        """It has answered."""


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
    num_engine_tokens: int = 0
    num_prefilled_tokens: int = 0
    num_wasted_tokens: int = 0
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
        flight: told which rows are in the engine.
        window: sequences of rows in the engine at once.
        twins: merges identical requests; None where every row is generated.
        checkpoint_s: finished rows are on disk after at most so many seconds; safe from a kill they are at once.
        stopping: asked before every step; the seconds that rows in flight still have, or None to go on.
        on_checkpoint: told the counters after every checkpoint, by the thread that has written it.
        errors: when too many rows fail, the loop ends before the job does.
    """

    ahead: Ahead
    engine: Engine
    shelf: Completions
    flight: Flight
    window: int
    twins: Twins | None
    checkpoint_s: float
    stopping: Callable[[], float | None]
    on_checkpoint: Callable[[Counters], None]
    errors: ErrorRate = field(default_factory=ErrorRate)
    counters: Counters = field(default_factory=Counters)
    _decoders: dict[RowKey, Admitted] = field(default_factory=dict)
    _held: Ready | None = None
    _num_sequences: int = 0
    _num_kv_tokens: int = 0
    _saved_at: float = field(default_factory=time.monotonic)
    _written_at: float = field(default_factory=time.monotonic)
    _occupancy: Occupancy = field(init=False)
    _returned_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._returned_at = time.monotonic()
        self._occupancy = Occupancy(self.engine.max_num_seqs, since=self._returned_at)

    def run(self) -> bool:
        """Whether everything was done; False when it was stopped before.

        Raises:
            TooManyErrors: too many rows fail; those that have ended are on disk.
        """
        too_many: TooManyErrors | None = None
        self._returned_at = self._occupancy.since = time.monotonic()
        # So that a short job's first rows are ordered too; a long one starts a fraction of a second later for it.
        self.ahead.read(_ROWS_PER_STEP * self.window)
        while self.ahead or self._held or self._decoders:
            seconds = self.stopping()
            if seconds is not None and (seconds <= 0 or not self._decoders):
                break
            if (self.ahead or self._held) and self.errors.is_too_high(len(self._decoders)):
                too_many = self.errors.told()
                break
            if seconds is None:
                self._feed()
            self._step(rows_left=seconds is None and bool(self.ahead or self._held))
            self._checkpoint_if_due()
            self.shelf.publish_full()
        # A shard whose last rows were in its journal is full without a step.
        self.shelf.publish_full()
        self.checkpoint()
        self.shelf.wait()
        if too_many is not None:
            raise too_many
        return not self.ahead and not self._held and not self._decoders

    def checkpoint(self) -> None:
        """Puts every finished row on disk, without waiting for it, and tells the counters when it is there."""
        self.counters.num_in_flight = len(self._decoders)
        self.counters.num_engine_tokens = self.engine.num_output_tokens
        self.counters.num_prefilled_tokens = self.engine.num_prefilled_tokens
        self.counters.busy_s = self._occupancy.busy_s
        self.counters.idle_s = self._occupancy.idle_s
        self.counters.tail_s = self._occupancy.tail_s
        self.shelf.save(partial(self.on_checkpoint, replace(self.counters)))
        self._saved_at = time.monotonic()

    def _feed(self) -> None:
        """Fills the window."""
        most = _ROWS_PER_STEP * self.window
        if not self._decoders and self._held is None:
            self.ahead.release()
        for _ in range(most):
            if self._held is not None:
                if not self._has_room(self._held.admitted):
                    break
                held, self._held = self._held, None
                self._enter(held)
            if self._num_sequences >= self.window or (self.twins and self.twins.num_waiting >= most):
                break
            row = self.ahead.next()
            if row is None:
                break
            if isinstance(row, Completion):
                self._complete(row)
            else:
                self._begin(row)
        self.ahead.read(self.window)

    def _has_room(self, admitted: Admitted) -> bool:
        """Whether a row can run beside those in flight; one that needs more than there is runs alone."""
        return not self._decoders or (
            self._num_sequences + admitted.num_sequences <= self.window
            and self._num_kv_tokens + admitted.num_kv_tokens <= self.engine.num_kv_tokens
        )

    def _begin(self, row: Ready) -> None:
        if self.twins is not None:
            twin = self.twins.claim(row.key, row.admitted.prompt_token_ids, row.admitted.params)
            if isinstance(twin, Completion):
                self._complete(twin)
                return
            if not twin:
                return
        if self._has_room(row.admitted):
            self._enter(row)
        else:
            self._held = row

    def _enter(self, row: Ready) -> None:
        key, admitted = row.key, row.admitted
        self.flight.enter(key)
        try:
            for request in admitted.decoder.start():
                self.engine.add(request)
        except RowRejected as rejection:
            self.flight.leave(key)
            self._reject(key, rejection)
            return
        self._decoders[key] = admitted
        self._num_sequences += admitted.num_sequences
        self._num_kv_tokens += admitted.num_kv_tokens
        self._occupancy.sent(time.monotonic(), admitted.num_sequences)

    def _step(self, *, rows_left: bool) -> None:
        if not self.engine.num_unfinished:
            return
        called_at = time.monotonic()
        self.flight.begin_step()
        outputs = self.engine.step()
        self.flight.end_step()
        self.counters.num_steps += 1
        self.counters.host_s += called_at - self._returned_at
        self._returned_at = time.monotonic()
        self._occupancy.stepped(*self.engine.last_step, self._num_sequences, rows_left)
        for output in outputs:
            key = output.request_id.row
            admitted = self._decoders.get(key)
            if admitted is None:  # an earlier output of this step has completed the row
                continue
            decoder = admitted.decoder
            wanted = decoder.advance(output)
            try:
                for request in wanted.requests:
                    self.engine.add(request)
            except RowRejected as rejection:
                self.engine.abort([*wanted.aborts, *decoder.unfinished])
                self._leave(key, admitted)
                self._reject(key, rejection)
                continue
            # After the requests, which may begin with what was computed for these.
            if wanted.aborts:
                self.engine.abort(wanted.aborts)
            if decoder.completion is not None:
                self._leave(key, admitted)
                self._complete(decoder.completion)

    def _leave(self, key: RowKey, admitted: Admitted) -> None:
        del self._decoders[key]
        self.flight.leave(key)
        self._num_sequences -= admitted.num_sequences
        self._num_kv_tokens -= admitted.num_kv_tokens
        self.counters.num_wasted_tokens += admitted.decoder.num_wasted_tokens

    def _reject(self, key: RowKey, rejection: RowRejected) -> None:
        self._complete(Completion(key, "error", error=str(rejection)))

    def _complete(self, completion: Completion) -> None:
        self.ahead.learn(completion)
        twins = self.twins.settle(completion) if self.twins is not None else []
        for each in (completion, *twins):
            self.counters.count(each)
            self.errors.count(each)
            self.shelf.put(each)

    def _checkpoint_if_due(self) -> None:
        now = time.monotonic()
        if now - self._saved_at >= self.checkpoint_s:
            self.checkpoint()
        elif now - self._written_at >= _WRITE_S:
            self.shelf.write()
            self._written_at = now
