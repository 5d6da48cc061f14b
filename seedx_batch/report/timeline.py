"""When workers ran and what they did meanwhile, reckoned from their ledgers; holds no more for a long run than for a
short one.

Must never know parts or rows.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from seedx_batch import ledger

_NUM_CHECKPOINTS = 4_000
"""Of each ledger; more would not be seen in a curve of `_NUM_BINS` points."""
_NUM_BINS = 120
_COUNTED = ("num_rows", "num_prompt_tokens", "num_output_tokens", "busy_s", "idle_s", "tail_s")
_LAST = {"finished", "stopped", "failed", "died"}
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


@dataclass(slots=True)
class Start:
    """One start of a worker.

    Args:
        began, loaded, ended: Unix time; `ended`: of its last line.
        outcome: the event that it ended with; else `killed`, or `running` where it may be alive.
        is_restart: whether it followed the death of an engine, told in `why`.
        counters: what it had done at its last checkpoint.
        told: its `started` line; versions: from its `loaded` line.
    """

    rank: int
    began: float
    ended: float
    loaded: float | None = None
    outcome: str = "killed"
    is_restart: bool = False
    why: str = ""
    message: str = ""
    counters: dict[str, float] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_devices(self) -> int:
        """Devices of its engine; a CPU counts as one."""
        args = self.told.get("args")
        sizes = [args.get(name) or 1 for name in _PARALLEL] if isinstance(args, Mapping) else []
        return math.prod(size for size in sizes if isinstance(size, int))

    @property
    def device_hours(self) -> float:
        """From its first line to its last one, for each of its devices."""
        return (self.ended - self.began) * self.num_devices / 3600


@dataclass(frozen=True, slots=True)
class Interval:
    """What one worker did between two checkpoints."""

    began: float
    ended: float
    num_output_tokens: float
    num_rows: float
    num_in_flight: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """All starts of all workers, in order of time, and what was done when."""

    starts: list[Start]
    intervals: list[Interval]

    @property
    def device_hours(self) -> float:
        """Of all starts."""
        return sum(start.device_hours for start in self.starts)

    def total(self, name: str) -> float:
        """A counter of all starts."""
        return sum(start.counters.get(name, 0) for start in self.starts)

    def pauses(self) -> list[tuple[float, float]]:
        """When no worker ran between the first start and the last one's end."""
        pauses, end = [], self.starts[0].began if self.starts else 0.0
        for start in self.starts:
            if start.began > end:
                pauses.append((end, start.began))
            end = max(end, start.ended)
        return pauses


@dataclass(frozen=True, slots=True)
class Curve:
    """What was done in every bin of the time that workers ran; pauses between launches are left out.

    Args:
        seconds: the bins' middles, from the first start.
        tokens_per_s: output tokens.
        in_flight: rows, on average.
    """

    seconds: list[float]
    tokens_per_s: list[float]
    rows_per_s: list[float]
    in_flight: list[float]


def read(folder: Path, *, is_running: bool) -> Timeline:
    """The timeline of the ledgers in a folder.

    Args:
        is_running: whether a rank's last start may be alive, though it has not said how it ended.

    Raises:
        StorageError: a ledger cannot be read.
    """
    starts: list[Start] = []
    intervals: list[Interval] = []
    for rank, path in ledger.ranks(folder).items():
        found = list(_of_rank(rank, ledger.thinned(path, _NUM_CHECKPOINTS)))
        if is_running and found and found[-1][0].outcome == "killed":
            found[-1][0].outcome = "running"
        for start, own in found:
            starts.append(start)
            intervals += own
    starts.sort(key=lambda start: start.began)
    return Timeline(starts, intervals)


def curve(timeline: Timeline) -> Curve:
    """Throughput and rows in flight over time."""
    pauses = timeline.pauses()

    def worked(t: float) -> float:
        return t - origin - sum(min(t, end) - begin for begin, end in pauses if t > begin)

    origin = timeline.starts[0].began if timeline.starts else 0.0
    end = worked(max((start.ended for start in timeline.starts), default=origin))
    if not timeline.intervals or end <= 0:
        return Curve([], [], [], [])
    width = end / _NUM_BINS
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * _NUM_BINS)
    for interval in timeline.intervals:
        begin, until = worked(interval.began), worked(interval.ended)
        if until <= begin:
            continue
        for place in range(int(begin / width), min(_NUM_BINS - 1, int(until / width)) + 1):
            overlap = min(until, (place + 1) * width) - max(begin, place * width)
            share = max(0.0, overlap) / (until - begin)
            sums["tokens"][place] += interval.num_output_tokens * share
            sums["rows"][place] += interval.num_rows * share
            sums["in_flight"][place] += interval.num_in_flight * max(0.0, overlap)
    return Curve(
        [(place + 0.5) * width for place in range(_NUM_BINS)],
        *([value / width for value in sums[name]] for name in ("tokens", "rows", "in_flight")),
    )


def _of_rank(rank: int, lines: Iterable[Mapping[str, Any]]) -> Iterable[tuple[Start, list[Interval]]]:
    """Every start of one worker, with its intervals."""
    by_launch: dict[str, tuple[Start, list[Mapping[str, Any]]]] = {}
    why = None
    for line in lines:
        event, launch, t = line["event"], str(line.get("launch")), float(line.get("t", 0))
        if event == "restarting":
            why = str(line.get("message", ""))
        if event == "started":
            start = Start(rank, t, t, is_restart=why is not None, why=why or "", told=line)
            by_launch[launch], why = (start, []), None
        if launch not in by_launch:  # a line of the launch itself, which is no worker
            continue
        start, checkpoints = by_launch[launch]
        start.ended = t
        if event in _LAST:
            start.outcome, start.message = event, str(line.get("message", ""))
        if event == "loaded":
            start.loaded, start.versions = t, line.get("versions") or {}
        if event in ("loaded", "checkpoint"):
            checkpoints.append(line)
            start.counters = {name: float(line.get(name, 0)) for name in _COUNTED}
    for start, checkpoints in by_launch.values():
        yield start, [_interval(before, after) for before, after in pairwise(checkpoints)]


def _interval(before: Mapping[str, Any], after: Mapping[str, Any]) -> Interval:
    """What was done from one checkpoint to the next; counters are 0 before the first one."""
    tokens, rows = (max(0, after.get(name, 0) - before.get(name, 0)) for name in ("num_output_tokens", "num_rows"))
    return Interval(float(before["t"]), float(after["t"]), tokens, rows, float(after.get("num_in_flight", 0)))
