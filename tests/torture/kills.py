"""Kills of whole launches with the simulated engine: at random lines of Python, and at random moments of the clock.

A launch runs in a process forked from this one, so that hundreds take minutes; what it generates is counted in memory
that outlives it. Must never know how the figures are shown.
"""

import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from struct import Struct
from types import FrameType
from typing import Any

import pyarrow as pa

from seedx_batch import launch, ledger, parts, plan, worker
from seedx_batch.engine import simulated
from seedx_batch.engine.simulated import SimulatedEngine
from seedx_batch.journal import Journal
from seedx_batch.plan import Plan
from seedx_batch.records import EngineOutput
from seedx_batch.rundir import RunDirectory
from tests.jobs import parts_of, write_job, write_rows

NUM_ROWS = 300
MAX_NUM_SEQS = 8
MAX_TOKENS = 24
ROWS_PER_SHARD = 20
_STEP_S = 0.0005
_PACKAGE = str(Path(worker.__file__).parent)
_COUNTS = Struct("<QQ")
_PLACE = Struct("<H254s")


class Shared:
    """What a killed process leaves to its parent: tokens generated, tokens of rows that ended, where it was."""

    def __init__(self) -> None:
        self._map = mmap(-1, 4096)

    def clear(self) -> None:
        """Forgets everything."""
        self._map[:] = bytes(len(self._map))

    def count(self, generated: int, ended: int) -> None:
        """Adds tokens."""
        before = self.counts
        _COUNTS.pack_into(self._map, 0, before[0] + generated, before[1] + ended)

    @property
    def counts(self) -> tuple[int, int]:
        """Tokens generated, and those of rows that ended."""
        generated, ended = _COUNTS.unpack_from(self._map)
        return generated, ended

    @property
    def place(self) -> str:
        """Where the process was."""
        length, text = _PLACE.unpack_from(self._map, _COUNTS.size)
        return bytes(text[:length]).decode()

    @place.setter
    def place(self, told: str) -> None:
        text = told.encode()[:254]
        _PLACE.pack_into(self._map, _COUNTS.size, len(text), text)


SHARED = Shared()


class Counting(SimulatedEngine):
    """Counts every token when it is generated, not when its row ends; a step takes a moment, as on a device."""

    def step(self) -> list[EngineOutput]:
        """A step, in which each running sequence gets a token."""
        time.sleep(_STEP_S)
        outputs = super().step()
        SHARED.count(
            self._num_running + len(outputs), sum(output.candidates[0].num_output_tokens for output in outputs)
        )
        return outputs


@dataclass
class Here:
    """Stands where the local worker stands: its work is done at once, in this process."""

    code: int

    @classmethod
    def start(cls, run: RunDirectory, *rest: Any) -> "Here":
        """Does a worker's work."""
        return cls(worker.work(run.path, 0, 1))

    def poll(self) -> int:
        """Its exit code."""
        return self.code

    def last_words(self) -> None:
        """None that its ledger does not hold."""


class Silent:
    """Shows nothing."""

    def say(self, message: str) -> None: ...

    def show(self, status: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Kill:
    """What one kill did.

    Args:
        where: the line that was about to run, or the millisecond.
        num_saved: rows on disk afterwards.
        num_in_flight: tokens that unfinished rows had.
        num_unsaved: tokens of rows that had ended since the last write.
        num_broken: tokens that a checkpoint had told of and that are not on disk: 0, or a promise is broken.
    """

    run: int
    where: str
    num_saved: int
    num_in_flight: int
    num_unsaved: int
    num_broken: int


@dataclass(frozen=True, slots=True)
class End:
    """What a run has come to after its kills: rows that are missing, there twice, or not what they should be."""

    num_lost: int
    num_twice: int
    num_other: int


def torture(seed: int, num_kills: int, folder: Path) -> Iterator[Kill | End]:
    """Kills launches until there were so many, run after run; every run goes on until it is done."""
    draw = random.Random(seed)
    job = _job(folder / "undisturbed")
    num_lines = _launch(job, _counting_lines)
    wanted = parts_of(job.parent / "run")
    shutil.rmtree(job.parent / "run")
    began = time.monotonic()
    _launch(job, _nothing)
    seconds = time.monotonic() - began
    run = 0
    while num_kills > 0:
        run += 1
        job = _job(folder / f"run-{run}")
        for _ in range(min(num_kills, draw.randint(3, 12))):
            before = saved(job.parent / "run")
            left = 1 - 0.8 * len(before) / NUM_ROWS  # about so much of a whole launch is what is left of this one
            if run % 2:
                killed = _launch(job, _killing_at(draw.randrange(int(num_lines * left)))) is None
            else:
                killed = _launch(job, _nothing, kill_after_s=draw.uniform(0, seconds * left)) is None
            if not killed:
                break
            num_kills -= 1
            yield _judge_kill(run, job.parent / "run", before)
        if _launch(job, _nothing) is None:
            raise RuntimeError(f"{job}: the last launch did not end")
        yield _judge_end(parts_of(job.parent / "run"), wanted)
        shutil.rmtree(job.parent)


def _job(folder: Path) -> Path:
    rows = write_rows(folder / "rows.jsonl", [f"{number} {'x' * (number * 37 % 90)}" for number in range(NUM_ROWS)])
    return write_job(
        folder,
        rows,
        engine={"max_num_seqs": MAX_NUM_SEQS},
        decoding={"max_tokens": MAX_TOKENS},
        output={"rows_per_shard": ROWS_PER_SHARD},
        executor={"checkpoint_s": 0.05},
    )


def _launch(job: Path, prepare: Callable[[], Callable[[], int]], kill_after_s: float | None = None) -> int | None:
    """Runs a launch in a process of its own; what `prepare` made there tells in the end, None where it was killed."""
    SHARED.clear()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        _be_the_child(job, prepare, writing)
    os.close(writing)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
        SHARED.place = f"{1000 * kill_after_s:.0f} ms"
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(reading) as told:
        text = told.read()
    if code == -signal.SIGKILL:
        return None
    if code:
        raise RuntimeError(f"{job}: a launch ended with {code}: {text}")
    return int(text)


def _be_the_child(job: Path, prepare: Callable[[], Callable[[], int]], told: int) -> None:
    code = 1
    try:
        simulated.SimulatedEngine = Counting  # type: ignore[misc]
        launch.LocalWorker = Here  # type: ignore[assignment,misc]
        os.dup2(os.open(job.parent / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
        tell = prepare()
        outcome = launch.run(launch.load(job, [], None), fresh=False, progress=Silent())
        sys.settrace(None)
        os.write(told, str(tell()).encode() if not outcome.exit_code else outcome.message.encode())
        code = outcome.exit_code
    finally:
        os._exit(code)


def _nothing() -> Callable[[], int]:
    return lambda: 0


def _counting_lines() -> Callable[[], int]:
    lines = [0]

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        lines[0] += event == "line"
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    return lambda: lines[0]


def _killing_at(line: int) -> Callable[[], Callable[[], int]]:
    """Kills the process before the line of that number, of all that it runs in the package, is run."""

    def prepare() -> Callable[[], int]:
        left = [line]

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            if not frame.f_code.co_filename.startswith(_PACKAGE):
                return None
            if event == "line":
                left[0] -= 1
                if left[0] < 0:
                    code = frame.f_code
                    SHARED.place = f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_qualname}"
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        threading.settrace(trace)
        sys.settrace(trace)
        return lambda: 0

    return prepare


def saved(run: Path) -> dict[tuple[int, int], int]:
    """Output tokens of the rows on disk, by shard and position; changes nothing."""
    if not (run / "plan.json").is_file():
        return {}
    planned = Plan.from_json((run / "plan.json").read_text(encoding="utf-8"), "plan.json")
    directory = RunDirectory(run)
    found: dict[tuple[int, int], int] = {}
    for index in directory.journaled():
        copy = run.with_name("copy.journal")
        shutil.copyfile(directory.journal(index), copy)
        spec = launch.load(run.parent / "job.yaml", [], None)
        prompts, _ = launch.understand(spec, fetch=False)
        completion = plan.completion_schema(spec, prompts)
        journal = Journal(copy, parts.journal_schema(completion), planned.fingerprint)
        for batch in journal.read():
            for ended in parts.from_batch(batch, index):
                found[index, ended.key.position] = ended.num_output_tokens
    for index in directory.committed():
        table = parts.read_part(directory.part(index, len(planned.shards)))
        for position, number in enumerate(table["num_output_tokens"].to_pylist()):
            found[index, position] = number
    return found


def _judge_kill(run: int, folder: Path, before: dict[tuple[int, int], int]) -> Kill:
    generated, ended = SHARED.counts
    after = saved(folder)
    num_saved = sum(after.values()) - sum(before.values())
    lines = ledger.read(folder / ".state" / "ledger" / "rank-00000.jsonl")
    launches = [line["launch"] for line in lines if line["event"] == "started"]
    told = [line for line in lines if line["event"] == "checkpoint" and line["launch"] == launches[-1]]
    acknowledged = max((line["num_output_tokens"] for line in told), default=0) if generated else 0
    lost_before = sum(number for row, number in before.items() if row not in after)
    num_broken = max(0, acknowledged - num_saved) + lost_before
    return Kill(run, SHARED.place, len(after), generated - ended, ended - num_saved, num_broken)


def _judge_end(found: pa.Table, wanted: pa.Table) -> End:
    ids = found["id"].to_pylist()
    rows = {row["id"]: row for row in wanted.to_pylist()}
    num_other = sum(rows.get(row["id"]) != row for row in found.to_pylist())
    return End(len(rows.keys() - set(ids)), len(ids) - len(set(ids)), num_other + (ids != list(rows)))
