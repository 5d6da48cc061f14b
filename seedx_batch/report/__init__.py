"""One HTML page about a run, made of its footers, its ledgers and a few of its rows; it can be made again at any time.

Changes nothing else, and must never know the engine.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from seedx_batch import __version__, spec
from seedx_batch.report import charts, page, results, rows, timeline
from seedx_batch.report.page import Language
from seedx_batch.report.timeline import Timeline
from seedx_batch.stats import TokenStats
from seedx_batch.status import Reading, Status
from seedx_batch.telling import names_secret

REFRESH_S = 5
"""Seconds between two pages of a run that goes on."""

_MOST_STARTS = 100
_MOST_SHARDS = 400
_MOST_FILES = 10


def write(reading: Reading, *, price: float | None = None, language: Language = "en", live: bool = False) -> Status:
    """Writes RUN/report.html, and gives the status that it tells.

    Args:
        price: of a device-hour, in any currency.
        language: shown first; the other is a click away.
        live: the page is made again while the run goes on, and is to load itself again until then.

    Raises:
        StorageError: a part is damaged, or the page cannot be written.
    """
    status = reading.status()
    refresh_s = REFRESH_S if live and status.is_running else None
    reading.run.write_text(reading.run.report, page.render(language, _values(reading, status, price, refresh_s)))
    return status


def _values(reading: Reading, status: Status, price: float | None, refresh_s: int | None) -> dict[str, Any]:
    run, plan, footers = reading.run, reading.plan, reading.footers
    job = spec.parse(run.read_text(run.job), str(run.job))
    told, stats = timeline.read(run.ledgers, is_running=status.is_running), footers.total
    columns = rows.Columns.of(plan, job)
    tokens_in, tokens_out = told.total("num_prompt_tokens"), told.total("num_output_tokens")
    shards = list(footers.shards.values())
    return {
        "status": status,
        "plan": plan,
        "stats": stats,
        "refresh_s": refresh_s,
        "badge": "gone" if status.phase.startswith("ended") else status.phase if " " not in status.phase else "",
        "made_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "done": status.num_done / status.num_rows if status.num_rows else 1.0,
        "tokens_in": int(tokens_in),
        "tokens_out": int(tokens_out),
        "num_errors": max(status.num_errors, stats.statuses.get("error", 0)),
        "price": price,
        **_costs(told, price, tokens_in, tokens_out),
        "signatures": list(footers.signatures),
        "all_versions": _distinct(
            [*footers.signatures.values()]
            or [{**start.versions, "seedx-batch": __version__} for start in told.starts if start.versions]
        ),
        "machines": list(_machines(told)),
        "files": plan.files[:_MOST_FILES],
        "num_more_files": max(0, len(plan.files) - _MOST_FILES),
        "job": spec.as_yaml(without_secrets(spec.given(job))),
        "statuses": _shares(stats.statuses),
        "finish_reasons": _shares(stats.finish_reasons),
        "errors": _shares(stats.errors),
        "examples": rows.error_examples(shards, columns),
        "dedup_share": stats.num_deduplicated / stats.num_rows if stats.num_rows else 0.0,
        "token_rows": list(_token_rows(stats)),
        **_charts(told, stats),
        "engine_time": list(_engine_time(status)),
        "starts": told.starts[-_MOST_STARTS:][::-1],
        "num_starts": len(told.starts),
        "num_earlier_starts": max(0, len(told.starts) - _MOST_STARTS),
        "num_restarts": sum(start.is_restart for start in told.starts),
        "shards": shards if len(shards) <= _MOST_SHARDS else shards[: _MOST_SHARDS // 2] + shards[-_MOST_SHARDS // 2 :],
        "num_omitted_shards": max(0, len(shards) - _MOST_SHARDS),
        "samples": rows.samples(shards, columns),
        "parity": results.tables(run.path / "parity.json"),
        "bench": results.tables(run.path / "bench.json"),
        "version": __version__,
        "run": str(run.path),
    }


def without_secrets(tree: Any) -> Any:
    """A job's values with `***` for those whose key names a secret; what looks like one elsewhere the page masks."""
    if isinstance(tree, Mapping):
        return {
            key: "***" if names_secret(str(key)) and branch is not None else without_secrets(branch)
            for key, branch in tree.items()
        }
    return [without_secrets(branch) for branch in tree] if isinstance(tree, list) else tree


def _costs(told: Timeline, price: float | None, tokens_in: float, tokens_out: float) -> dict[str, float | None]:
    cost = None if price is None else told.device_hours * price
    return {
        "device_hours": told.device_hours,
        "cost_per_million": 1e6 * cost / tokens_out if cost is not None and tokens_out else None,
        "cost_per_million_all": 1e6 * cost / (tokens_in + tokens_out) if cost is not None and tokens_out else None,
    }


def _charts(told: Timeline, stats: TokenStats) -> dict[str, Any]:
    curve = timeline.curve(told)
    unit, unit_s = charts.unit_of(curve.seconds[-1] if curve.seconds else 0.0)
    starts = told.starts
    starts_unit, starts_unit_s = charts.unit_of(max(s.ended for s in starts) - starts[0].began if starts else 0.0)
    lengths = []
    for name, histogram in (("source", stats.prompt_tokens), ("output", stats.output_tokens)):
        drawn, most = charts.longest_shown(histogram), histogram.max
        cut = (drawn, most) if drawn != most else None
        lengths.append((name, Markup(charts.lengths(name, histogram)), cut))
    return {
        "unit": unit,
        "has_pauses": bool(told.pauses()),
        "time_charts": [
            ("throughput", Markup(charts.throughput(curve, unit_s))),
            ("in-flight", Markup(charts.in_flight(curve, unit_s))),
        ],
        "length_charts": lengths,
        "starts_unit": starts_unit,
        "starts_chart": Markup(charts.starts(told, starts_unit_s)),
    }


def _machines(told: Timeline) -> Iterator[dict[str, Any]]:
    """The machines that workers ran on, each once."""
    for machine in _distinct([start.told.get("hardware") for start in told.starts]):
        devices = machine.get("devices")
        yield {
            "cpu": machine.get("cpu", "?"),
            "num_cpus": machine.get("num_cpus", "?"),
            "memory": page.size(machine.get("memory_bytes")),
            "devices": devices if isinstance(devices, Mapping) else {},
        }


def _engine_time(status: Status) -> Iterator[tuple[str, float, float]]:
    seconds = {"busy": status.busy_s, "idle": status.idle_s, "tail": status.tail_s, "load": status.load_s}
    total = sum(seconds.values())
    for name, value in seconds.items():
        yield name, value, value / total if total else 0.0


def _token_rows(stats: TokenStats) -> Iterator[tuple[str, list[Any]]]:
    flat = stats.flat()
    for kind in ("prompt", "cached", "output"):
        yield kind, [flat[f"{kind}_tokens_{name}"] for name in ("sum", "mean", "p50", "p95", "p99", "max")]


def _shares(counts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """Name, count and share, the most frequent first."""
    total = sum(counts.values())
    return [(name, count, count / total) for name, count in sorted(counts.items(), key=lambda entry: -entry[1])]


def _distinct(values: list[Any]) -> list[dict[str, Any]]:
    """The mappings among some values, each once, in order."""
    found: list[dict[str, Any]] = []
    for value in values:
        if isinstance(value, Mapping) and value and dict(value) not in found:
            found.append(dict(value))
    return found
