"""What is derived from a run's parts: stats.parquet and the dataset card; both can be made again at any time.

Must never know the engine, and changes no part.
"""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from seedx_batch import parts
from seedx_batch.errors import SpecError
from seedx_batch.parts import Footer
from seedx_batch.plan import Plan
from seedx_batch.plan import read as read_plan
from seedx_batch.prompts import Prompts
from seedx_batch.rundir import RunDirectory
from seedx_batch.spec import JobSpec, parse
from seedx_batch.stats import TokenStats

_HEAD = """---
configs:
- config_name: default
  default: true
  version: {version}
  data_files: data/*.parquet
- config_name: stats
  version: {version}
  data_files: stats.parquet
{languages}tags:
- seedx-batch
- synthetic
---
"""


def finalize(path: Path) -> str:
    """Writes the statistics and the card of the run in a folder; says in one line what they cover.

    Raises:
        SpecError: the folder holds no run, or no shard of it is committed.
    """
    run = RunDirectory(path)
    plan = read_plan(run)
    spec = parse(run.read_text(run.job), str(run.job))
    footers = _footers(run, plan)
    if not footers:
        raise SpecError(f"'{path}' holds no committed shard yet: run the job first")
    stats = sum((footer.stats for footer in footers), TokenStats())
    run.write_text(run.card, _card(spec, Prompts.build(spec.prompt), plan, footers, stats))
    _write_stats(run, footers)
    return f"{len(footers)} of {len(plan.shards)} shards, {stats.num_rows:,} of {plan.num_rows:,} rows: {run.card}"


def _footers(run: RunDirectory, plan: Plan) -> list[Footer]:
    return [parts.read_footer(path) for _, path in sorted(run.visible(plan.earlier).items())]


def _write_stats(run: RunDirectory, footers: list[Footer]) -> None:
    """One row for every shard."""
    rows = [
        {
            "shard": footer.shard.index,
            "input": footer.shard.path,
            "start_row": footer.shard.start_row,
            **footer.stats.flat(),
            "started_at": footer.started_at,
            "committed_at": footer.committed_at,
            "worker": footer.worker,
        }
        for footer in footers
    ]
    run.write_bytes(run.stats, parts.sealed(pa.Table.from_pylist(rows, schema=_stats_schema(rows[0])), {}))


def _stats_schema(row: dict[str, Any]) -> pa.Schema:
    """Integers for counts, doubles for means and percentiles, text for the rest; the same for every run."""

    def type_of(name: str) -> pa.DataType:
        if name.endswith("_mean"):
            return pa.float64()
        if name in ("input", "finish_reasons", "errors", "started_at", "committed_at", "worker"):
            return pa.string()
        return pa.int64()

    return pa.schema([pa.field(name, type_of(name)) for name in row])


def _card(spec: JobSpec, prompts: Prompts, plan: Plan, footers: list[Footer], stats: TokenStats) -> str:
    flat = stats.flat()
    languages = "language:\n" + "".join(f"- '{code}'\n" for code in prompts.languages) if prompts.languages else ""
    signatures = list(dict.fromkeys(footer.signature for footer in footers))
    whole = "" if len(footers) == len(plan.shards) else f" (of {plan.num_rows:,}; the run is not finished)"
    lines = [
        f"# {spec.name}",
        "",
        f"{stats.num_rows:,} rows{whole} made by [seedx-batch](https://pypi.org/project/seedx-batch/) with "
        f"`{spec.model.name}`, prompt preset `{spec.prompt.preset}`.",
        "",
        "| rows | |",
        "|---|---:|",
        *(f"| {name} | {flat['num_' + name]:,} |" for name in ("ok", "truncated", "error", "deduplicated")),
        "",
        "| tokens | sum | mean | p50 | p95 | p99 | max |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(_token_line(kind, flat) for kind in ("prompt", "cached", "output")),
        "",
        "Signature" + ("s" if len(signatures) > 1 else "") + ":",
        "",
        *(f"    {signature}" for signature in signatures),
        "",
        '`load_dataset(folder)` gives the rows, `load_dataset(folder, "stats")` the statistics of every shard. '
        "A row with `status` `error` has its reason in `error`; `truncated`: the output budget ended the text.",
        "",
    ]
    return _HEAD.format(version=_version(footers), languages=languages) + "\n" + "\n".join(lines)


def _version(footers: list[Footer]) -> str:
    """A version that other parts do not have.

    `datasets` caches a folder with a card by the folder's last name, the configuration's name and its version: without
    this, another run of the same name would be taken for this one.
    """
    told = "".join(f"{footer.fingerprint}{footer.shard.index}{footer.committed_at}" for footer in footers)
    return f"0.0.{int(hashlib.sha256(told.encode()).hexdigest()[:12], 16)}"


def _token_line(kind: str, flat: dict[str, Any]) -> str:
    figures = (flat[f"{kind}_tokens_{name}"] for name in ("sum", "mean", "p50", "p95", "p99", "max"))
    return f"| {kind} | " + " | ".join("" if value is None else f"{value:,.10g}" for value in figures) + " |"
