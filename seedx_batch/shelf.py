"""The open shards of one worker: rows to do come out, completions go in, journals and parts are written.

A thread of its own writes, so that no engine waits for a disk; an open shard is this module's until it is full, and the
thread's alone from then on. Must never know the engine, prompts, or how a completion came about.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pyarrow as pa

from seedx_batch import parts
from seedx_batch.errors import StorageError
from seedx_batch.journal import Journal
from seedx_batch.parts import Footer, OpenShard
from seedx_batch.records import Completion, Row, Shard
from seedx_batch.rundir import RunDirectory
from seedx_batch.sources import CarriedColumn, Reader, carry
from seedx_batch.writer import Writer

_ROWS_PER_BATCH = 256


@dataclass(frozen=True, slots=True)
class Imprint:
    """What every part of one worker says of itself, whatever its rows.

    Args:
        part: the schema of parts; `completion`: the columns of it that completions fill.
        columns: the input columns that parts carry.
        num_shards: of the whole plan.
        round: how often failed rows of the run were told to run again.
    """

    part: pa.Schema
    completion: pa.Schema
    columns: tuple[CarriedColumn, ...]
    num_shards: int
    fingerprint: str
    signature: str
    worker: str
    versions: Mapping[str, str]
    round: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    shard: OpenShard
    journal: Journal
    started_at: str
    is_replaced: bool


class Shelf:
    """Opens shards as their rows are asked for, and publishes them as they become full.

    Args:
        shards: those to do, in order.
        again: what rows have ended as that run again, of a shard that has a part; its other rows are kept, and the part
            is replaced when all is there.
    """

    def __init__(
        self,
        run: RunDirectory,
        shards: Sequence[Shard],
        reader: Reader,
        imprint: Imprint,
        again: Collection[str] = (),
    ) -> None:
        self._run = run
        self._shards = shards
        self._reader = reader
        self._imprint = imprint
        self._again = again
        self._open: dict[int, _Place] = {}
        self._writer = Writer()
        self.num_resumed = 0

    def rows(self) -> Iterator[Row]:
        """The rows that have not ended, in order; a row that a journal holds is only carried."""
        for shard in self._shards:
            place, done = self._take(shard)
            carried: list[Row] = []
            for row in self._reader.rows(shard):
                if not place.is_replaced:
                    carried.append(row)
                if len(carried) == _ROWS_PER_BATCH or (carried and row.key.position == shard.num_rows - 1):
                    place.shard.carry(self._carry(carried))
                    carried = []
                if row.key.position not in done:
                    yield row

    def put(self, completion: Completion) -> None:
        """Takes what a row ended as."""
        self._open[completion.key.shard].shard.complete(completion)

    def write(self) -> None:
        """Begins to hand the completions that are in no journal yet to theirs, from where a kill cannot take them.

        Does nothing while the thread is busy: the disk is slow then, and a later call does it.

        Raises:
            StorageError: something before it could not be written.
        """
        if not self._writer.is_busy:
            self._writer.begin(partial(self._append, self._unwritten()))

    def save(self, then: Callable[[], None]) -> None:
        """Begins to put every completion that was taken on disk, in its shard's journal.

        Args:
            then: called by the writing thread when they are there.

        Raises:
            StorageError: something before it could not be written.
        """
        unwritten = self._unwritten()
        journals = [place.journal for place in self._open.values()]

        def append_and_sync() -> None:
            self._append(unwritten)
            for journal in journals:
                journal.sync()
            then()

        self._writer.begin(append_and_sync)

    def publish_full(self) -> None:
        """Begins to make a part of every shard that is full.

        Raises:
            StorageError: something before it could not be written.
        """
        for index in [index for index, place in self._open.items() if place.shard.is_full]:
            self._writer.begin(partial(self._publish, self._open.pop(index)))

    def wait(self) -> None:
        """Waits until everything that was begun is on disk.

        Raises:
            StorageError: it cannot be written.
        """
        self._writer.wait()

    def close(self) -> None:
        """Ends the thread; what was begun is on disk then, or has failed."""
        self._writer.close()

    def _unwritten(self) -> list[tuple[Journal, list[Completion]]]:
        taken = [(place.journal, place.shard.take_unwritten()) for place in self._open.values()]
        return [(journal, completions) for journal, completions in taken if completions]

    def _append(self, unwritten: list[tuple[Journal, list[Completion]]]) -> None:
        for journal, completions in unwritten:
            journal.append(parts.to_batch(completions, self._imprint.completion))

    def _publish(self, place: _Place) -> None:
        final = self._run.part(place.shard.shard.index, self._imprint.num_shards)
        temporary = self._run.temporary(final.name)
        parts.write_part(temporary, place.shard.table(), self._footer(place))
        if place.is_replaced:
            self._run.replace(temporary, final)
        else:
            # If another worker was first, its part is as whole as this one.
            self._run.publish(temporary, final)
        place.journal.remove()

    def _take(self, shard: Shard) -> tuple[_Place, frozenset[int]]:
        """Opens a shard with what its journal holds; the positions of its rows that have ended."""
        completion = self._imprint.completion
        journal = Journal(self._run.journal(shard.index), parts.journal_schema(completion), self._imprint.fingerprint)
        part = self._run.part(shard.index, self._imprint.num_shards)
        is_replaced = bool(self._again) and part.exists()
        place = _Place(OpenShard(shard, self._imprint.part, completion), journal, _now(), is_replaced)
        kept = self._keep(place.shard, part) if is_replaced else []
        saved = [ended for batch in journal.read() for ended in parts.from_batch(batch, shard.index)]
        place.shard.restore(saved)
        self.num_resumed += len(saved)
        self._open[shard.index] = place
        return place, frozenset(ended.key.position for ended in (*kept, *saved))

    def _keep(self, opened: OpenShard, part: Path) -> list[Completion]:
        """Takes from a part what its rows carry, and what those ended as that do not run again."""
        table = parts.read_part(part)
        if table.num_rows != opened.shard.num_rows or table.schema.names != self._imprint.part.names:
            raise StorageError(
                f"{part}: holds other rows or columns than were planned; put back the one that was there"
            )
        carried, ended = parts.divide(table, self._imprint.completion)
        for batch in carried.to_batches(_ROWS_PER_BATCH):
            opened.carry(batch)
        completions = (each for batch in ended for each in parts.from_batch(batch, opened.shard.index))
        kept = [each for each in completions if each.status not in self._again]
        opened.restore(kept)
        return kept

    def _carry(self, rows: list[Row]) -> pa.RecordBatch:
        ids = pa.array([row.id for row in rows], pa.string())
        batch = carry(self._imprint.columns, rows)
        return pa.RecordBatch.from_arrays([ids, *batch.columns], names=["id", *batch.schema.names])

    def _footer(self, place: _Place) -> Footer:
        return Footer(
            format=parts.FORMAT,
            fingerprint=self._imprint.fingerprint,
            signature=self._imprint.signature,
            shard=place.shard.shard,
            stats=place.shard.stats(),
            started_at=place.started_at,
            committed_at=_now(),
            worker=self._imprint.worker,
            versions=self._imprint.versions,
            round=self._imprint.round,
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
