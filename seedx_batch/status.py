"""How far a run is, read from what it leaves on disk: parts, journals, ledgers; also while it runs.

Changes nothing, and must never know workers other than by their ledgers.
"""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from seedx_batch import ledger
from seedx_batch.footers import Footers
from seedx_batch.journal import count_rows
from seedx_batch.plan import Plan
from seedx_batch.plan import read as read_plan
from seedx_batch.rundir import RunDirectory
from seedx_batch.stats import TokenStats

_PHASES = {
    "started": "loading the model",
    "loaded": "running",
    "checkpoint": "running",
    "stopping": "stopping",
    "stopped": "stopped",
    "finished": "stopped",  # if there is more to do since then: rows were added, or failed ones are to run again
    "failed": "failed",
    "died": "starting again",
    "restarting": "starting again",
}
_AT_WORK = ("loading the model", "running", "stopping", "starting again")
_GONE = "ended without a word"
_RATE_WINDOW_S = 60.0
_BAR = 40  # characters


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What one worker is at; rates and the idle share are of the last minute.

    Args:
        idle: share of its time that the engine had sequences free though rows were left; None while it does not step.
        num_restarts: starts after deaths of its engine, over all launches.
    """

    rank: int
    phase: str
    rows_per_s: float
    tokens_per_s: float
    idle: float | None
    num_in_flight: int
    num_restarts: int

    def as_text(self) -> str:
        """One line for a person."""
        figures = [self.phase]
        if self.phase == "running":
            figures += [f"{self.rows_per_s:,.1f} rows/s", f"{self.tokens_per_s:,.0f} tok/s"]
            figures += [f"{self.num_in_flight} in flight"]
            figures += [] if self.idle is None else [f"engine idle {100 * self.idle:.1f} %"]
        figures += [f"{self.num_restarts} restarts"] if self.num_restarts else []
        return f"worker {self.rank}  " + ", ".join(figures)


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run is.

    Args:
        num_done: rows in parts and journals, without those that are to run again.
        num_output_tokens: what engines have generated for finished rows, over all launches.
        num_restarts: starts of workers after deaths of their engines, over all launches.
        num_in_flight: requests in the engine at the last checkpoint.
        busy_s, idle_s, tail_s: how the engines' time was used, see occupancy.py; host_s: what workers did beside.
        is_running: whether a launch is at it, or starts.
        stats: of the committed parts; None where it was not asked for.
        workers: likewise, none where they were not asked for.
        failure: what ended the last launch, and its exit code.
    """

    name: str
    num_rows: int
    num_done: int
    num_shards: int
    num_committed: int
    phase: str
    num_in_flight: int
    num_errors: int
    num_output_tokens: int
    busy_s: float
    idle_s: float
    tail_s: float
    host_s: float
    load_s: float
    num_restarts: int
    is_running: bool = False
    stats: TokenStats | None = None
    workers: tuple[WorkerStatus, ...] = ()
    failure: tuple[str, int] | None = None

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second in the last minute, of all workers."""
        return sum(worker.tokens_per_s for worker in self.workers)

    @property
    def rows_per_s(self) -> float:
        """Rows a second in the last minute, of all workers."""
        return sum(worker.rows_per_s for worker in self.workers)

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last row ends if it goes on like this; None where it does not go on."""
        return (self.num_rows - self.num_done) / self.rows_per_s if self.is_running and self.rows_per_s else None

    @property
    def overall_tokens_per_s(self) -> float:
        """Output tokens a second of one engine's time, over all launches and without loading."""
        running_s = self.busy_s + self.idle_s + self.tail_s
        return self.num_output_tokens / running_s if running_s else 0.0

    def to_json(self) -> dict[str, Any]:
        """The status as JSON values; statistics flat."""
        apart = ("stats", "workers", "failure")
        tree = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in apart}
        for name in ("tokens_per_s", "rows_per_s", "overall_tokens_per_s", "eta_s"):
            tree[name] = getattr(self, name)
        workers = [asdict(worker) for worker in self.workers]
        stats = self.stats.flat() if self.stats else None
        return tree | {"workers": workers, "stats": stats, "failure": self.failure}

    def as_line(self) -> str:
        """The status in one line, for a log."""
        return (
            f"{self.name}: {self.phase}, {self.num_done:,}/{self.num_rows:,} rows, {self.tokens_per_s:,.0f} output "
            f"tok/s, {self.num_in_flight} in flight, {self.num_errors} errors, ETA {_duration(self.eta_s)}"
        )

    def as_text(self) -> str:
        """The status for a person."""
        done = self.num_done / self.num_rows if self.num_rows else 1.0
        running_s = self.busy_s + self.idle_s + self.tail_s
        idle, tail = (100 * value / running_s if running_s else 0.0 for value in (self.idle_s, self.tail_s))
        lines = [
            f"{self.name}: {self.phase}",
            f"{_bar(done)} {100 * done:.1f} %",
            f"rows      {self.num_done:,} of {self.num_rows:,}, {self.num_in_flight} in flight",
            f"shards    {self.num_committed:,} of {self.num_shards:,} committed",
            f"engine    {self.num_output_tokens:,} output tokens, {self.overall_tokens_per_s:,.1f} a second",
            f"time      loading {self.load_s:,.0f} s, running {running_s:,.0f} s: idle {idle:.1f} %, tail {tail:.1f} %",
        ]
        if self.is_running:
            lines.append(
                f"now       {self.tokens_per_s:,.1f} output tok/s, {self.rows_per_s:,.1f} rows/s in the last minute, "
                f"ETA {_duration(self.eta_s)}"
            )
        lines += [worker.as_text() for worker in self.workers]
        if self.stats is not None and self.stats.num_rows:
            flat = self.stats.flat()
            lines.append(
                f"committed {flat['num_ok']:,} ok, {flat['num_truncated']:,} truncated, {flat['num_error']:,} error, "
                f"{flat['num_deduplicated']:,} deduplicated"
            )
            for kind in ("prompt", "cached", "output"):
                figures = {
                    name: flat[f"{kind}_tokens_{name}"] for name in ("sum", "min", "mean", "p50", "p95", "p99", "max")
                }
                shown = "  ".join(f"{name} {value:,.6g}" for name, value in figures.items() if value is not None)
                lines.append(f"{kind:<9} {shown}")
            lines += [f"error     {count:,} x {kind}" for kind, count in sorted(self.stats.errors.items())]
        if self.num_restarts:
            lines.append(f"restarts  {self.num_restarts:,} after deaths of the engine")
        if self.failure is not None:
            lines.append(f"failed    {self.failure[0]}")
        return "\n".join(lines)


def read(path: Path) -> Status:
    """The status of the run in a folder, with the statistics of its parts and its workers.

    Raises:
        SpecError: the folder holds no run.
    """
    return Reading(path).status()


class Reading:
    """A run that is read again and again: each footer only once.

    Raises:
        SpecError: the folder holds no run.
    """

    def __init__(self, path: Path) -> None:
        self.run = RunDirectory(path)
        self.plan = read_plan(self.run)
        self.footers = Footers(self.run, self.plan)

    def status(self) -> Status:
        """The status now, with the statistics of the parts and the workers."""
        seen = glance(self.run, self.plan)
        self.footers.refresh()
        return replace(seen, stats=self.footers.total, workers=tuple(_workers(self.run, seen.is_running)))


def glance(run: RunDirectory, plan: Plan) -> Status:
    """The status without the statistics of parts and without workers: cheap enough for every second."""
    # Journals before parts: a shard that is published in between is counted as a part only.
    journaled = {index: count_rows(run.journal(index)) for index in run.journaled()}
    committed = run.visible(plan.earlier).keys()
    num_done = sum(shard.num_rows for shard in plan.shards if shard.index in committed)
    num_done += sum(count for index, count in journaled.items() if index not in committed)
    # A committed shard has a journal as long as failed rows of it run again.
    shards = plan.retry.shards if plan.retry else {}
    again = {index: shards[index] for index in committed & shards.keys() & journaled.keys()}
    num_done -= sum(count - journaled[index] for index, count in again.items())
    last = ledger.read_last(run.ledger(0)) or {}
    totals = ledger.totals(run.ledgers)
    event = last.get("event", "")
    failure = (str(last.get("message", "")), int(ledger.number(last, "exit_code", 70))) if event == "failed" else None
    phase = "finished" if len(committed) == len(plan.shards) and not again else _PHASES.get(event, "planned")
    is_held = run.is_held()
    if is_held is False and phase in _AT_WORK:
        phase = _GONE
    return Status(
        name=path_name(run),
        num_rows=plan.num_rows,
        num_done=num_done,
        num_shards=len(plan.shards),
        num_committed=len(committed),
        phase=phase,
        num_in_flight=int(ledger.number(last, "num_in_flight")) if event == "checkpoint" and phase == "running" else 0,
        num_errors=int(totals.get("num_errors", 0)),
        num_output_tokens=int(totals.get("num_output_tokens", 0)),
        busy_s=float(totals.get("busy_s", 0)),
        idle_s=float(totals.get("idle_s", 0)),
        tail_s=float(totals.get("tail_s", 0)),
        host_s=float(totals.get("host_s", 0)),
        load_s=float(totals.get("load_s", 0)),
        num_restarts=int(totals.get("num_restarts", 0)),
        is_running=phase != "finished" and (phase in _AT_WORK if is_held is None else is_held),
        failure=failure,
    )


def _workers(run: RunDirectory, is_running: bool) -> Iterable[WorkerStatus]:
    """What every worker is at, from the end of its ledger."""
    now = time.time()
    for rank, path in ledger.ranks(run.ledgers).items():
        lines = ledger.read_since(path, now - _RATE_WINDOW_S)
        if not lines:
            continue
        last = lines[-1]
        phase = "finished" if last["event"] == "finished" else _PHASES.get(last["event"], "planned")
        phase = _GONE if phase in _AT_WORK and not is_running else phase
        # Counters begin anew with each start, and before its first checkpoint they are 0.
        own = [line for line in lines if line["launch"] == last["launch"] and line["event"] in ("loaded", "checkpoint")]
        since, until = (own[0], own[-1]) if phase == "running" and own else ({}, {})
        seconds = until.get("t", 0) - since.get("t", 0)

        def grown(name: str, since: dict[str, Any] = since, until: dict[str, Any] = until) -> float:
            return float(until.get(name, 0) - since.get(name, 0))

        engine_s = grown("busy_s") + grown("idle_s") + grown("tail_s")
        yield WorkerStatus(
            rank=rank,
            phase=phase,
            rows_per_s=grown("num_rows") / seconds if seconds else 0.0,
            tokens_per_s=grown("num_output_tokens") / seconds if seconds else 0.0,
            idle=grown("idle_s") / engine_s if engine_s else None,
            num_in_flight=int(until.get("num_in_flight", 0)),
            num_restarts=int(ledger.totals_of(path)["num_restarts"]),
        )


def _bar(share: float) -> str:
    full = int(_BAR * share)
    return "█" * full + "░" * (_BAR - full)


def _duration(seconds: float | None) -> str:
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))


def path_name(run: RunDirectory) -> str:
    """The run directory's last name."""
    return run.path.resolve().name
