"""How far a run is, read from what it leaves on disk: parts, journals, ledgers; also while it runs.

Changes nothing, and must never know workers other than by their ledgers.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seedx_batch import ledger, parts
from seedx_batch.errors import SpecError
from seedx_batch.journal import count_rows
from seedx_batch.plan import Plan
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


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run is.

    Args:
        num_done: rows in parts and journals, without those that are to run again.
        num_output_tokens: what engines have generated for finished rows, over all launches.
        num_restarts: starts of workers after deaths of their engines, over all launches.
        num_in_flight: requests in the engine at the last checkpoint.
        busy_s, idle_s, tail_s: how the engines' time was used, see occupancy.py; host_s: what workers did beside.
        stats: of the committed parts; None where it was not asked for.
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
    stats: TokenStats | None = None
    failure: tuple[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """The status as JSON values; statistics flat."""
        tree = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("stats", "failure")}
        return tree | {"stats": self.stats.flat() if self.stats else None, "failure": self.failure}

    def as_text(self) -> str:
        """The status for a person."""
        share = 100 * self.num_done / self.num_rows if self.num_rows else 100.0
        running_s = self.busy_s + self.idle_s + self.tail_s
        rate, idle, tail = (
            value / running_s if running_s else 0.0
            for value in (self.num_output_tokens, 100 * self.idle_s, 100 * self.tail_s)
        )
        lines = [
            f"{self.name}: {self.phase}",
            f"rows      {self.num_done:,} of {self.num_rows:,} ({share:.1f} %), {self.num_in_flight} in flight",
            f"shards    {self.num_committed:,} of {self.num_shards:,} committed",
            f"engine    {self.num_output_tokens:,} output tokens, {rate:,.1f} a second; "
            f"loading {self.load_s:,.0f} s, running {running_s:,.0f} s: engine idle {idle:.1f} %, tail {tail:.1f} %",
        ]
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
    """The status of the run in a folder, with the statistics of its parts.

    Raises:
        SpecError: the folder holds no run.
    """
    run = RunDirectory(path)
    if not run.plan.is_file():
        raise SpecError(f"'{path}' holds no run: give the run_dir of a job that was started")
    plan = Plan.from_json(run.read_text(run.plan), str(run.plan))
    stats = TokenStats()
    for _, path in sorted(run.visible(plan.earlier).items()):
        stats = stats + parts.read_footer(path).stats
    return replace(glance(run, plan), stats=stats)


def glance(run: RunDirectory, plan: Plan) -> Status:
    """The status without the statistics of parts: cheap enough for every second."""
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
    return Status(
        name=path_name(run),
        num_rows=plan.num_rows,
        num_done=num_done,
        num_shards=len(plan.shards),
        num_committed=len(committed),
        phase="finished" if len(committed) == len(plan.shards) and not again else _PHASES.get(event, "planned"),
        num_in_flight=int(ledger.number(last, "num_in_flight")) if event == "checkpoint" else 0,
        num_errors=int(totals.get("num_errors", 0)),
        num_output_tokens=int(totals.get("num_output_tokens", 0)),
        busy_s=float(totals.get("busy_s", 0)),
        idle_s=float(totals.get("idle_s", 0)),
        tail_s=float(totals.get("tail_s", 0)),
        host_s=float(totals.get("host_s", 0)),
        load_s=float(totals.get("load_s", 0)),
        num_restarts=int(totals.get("num_restarts", 0)),
        failure=failure,
    )


def path_name(run: RunDirectory) -> str:
    """The run directory's last name."""
    return run.path.resolve().name
