"""What a job would do, found out without an engine and without writing anything.

Must never import torch, transformers or vLLM: a plan is looked at in a second.
"""

import os
from collections.abc import Mapping
from itertools import chain, islice
from typing import Any

from seedx_batch import launch, ledger, models, plan, platforms, retry
from seedx_batch.decoding.budget import Budget
from seedx_batch.errors import RowRejected
from seedx_batch.models import Model
from seedx_batch.plan import Plan
from seedx_batch.platforms import EngineSettings
from seedx_batch.prompts import Prompts
from seedx_batch.records import Prompt
from seedx_batch.rundir import RunDirectory
from seedx_batch.sources import Reader
from seedx_batch.spec import JobSpec
from seedx_batch.stats import Histogram

_NUM_PLACES = 20
_ROWS_AT_A_PLACE = 50
_BARS = 10


def preview(spec: JobSpec, *, engine_config: bool = False) -> dict[str, Any]:
    """Files, rows, shards, lengths of a sample, what is done already and how long the rest may take, as JSON values.

    Args:
        engine_config: also what vLLM's platform layer makes of the engine's arguments (takes seconds).
    """
    prompts, model = launch.understand(spec, fetch=False)
    directory = RunDirectory(spec.directory)
    if directory.plan.is_file():
        planned = plan.read(directory)
        plan.resume(planned, spec, prompts, model)
    else:
        planned = plan.make(spec, prompts, model)
    left = planned.todo(directory.visible(planned.earlier).keys() - retry.pending(directory, planned))
    num_left = sum(shard.num_rows for shard in left)
    sample = _sample(spec, prompts, model, planned)
    shown: dict[str, Any] = {
        "job": spec.name,
        "run_dir": str(spec.directory),
        "model": {"name": spec.model.name, "folder": str(model.folder) if model.folder else None},
        "fingerprint": planned.fingerprint,
        "files": [
            {"path": file.path, "num_rows": file.num_rows, "num_bytes": file.num_bytes} for file in planned.files
        ],
        "warnings": list(planned.warnings),
        "num_rows": planned.num_rows,
        "num_shards": len(planned.shards),
        "rows_per_shard": spec.output.rows_per_shard,
        "num_rows_left": num_left,
        "num_shards_left": len(left),
        "sample": sample,
        "estimate": _estimate(spec, directory, num_left),
    }
    if not model.is_simulated:
        settings = _settings(spec, model, planned)
        shown["notes"] = list(settings.notes)
        if engine_config:
            shown["engine_config"] = _engine_config(settings)
    return shown


def _sample(spec: JobSpec, prompts: Prompts, model: Model, planned: Plan) -> dict[str, Any]:
    """Prompt lengths of rows from all over the input, and what is wrong with them."""
    encode, unit = _encoder(model)
    limit = spec.model.max_model_len or models.config_of(model).get("max_position_embeddings")
    budget = Budget(spec.decoding.max_tokens, prompts.render_empty, encode)
    lengths, budgets, errors, num_long, first = Histogram(), 0, dict[str, int](), 0, None
    step = max(1, len(planned.shards) // _NUM_PLACES)
    most = _ROWS_AT_A_PLACE if len(planned.shards) > 1 else _ROWS_AT_A_PLACE * 20
    # One reader for all places: a compressed file is gone through once.
    with Reader(planned.files, planned.id_column) as reader:
        for row in chain.from_iterable(islice(reader.rows(shard), most) for shard in planned.shards[::step]):
            try:
                if row.error is not None:
                    raise RowRejected(*row.error.split(": ", 1))
                prompt = prompts.render(row)
                length = len(encode(prompt))
                budgets += budget.max_tokens(row, length)
            except RowRejected as rejection:
                errors[rejection.kind] = errors.get(rejection.kind, 0) + 1
                continue
            first = first or prompt
            lengths = lengths + Histogram.of([length])
            num_long += unit == "tokens" and limit is not None and length >= limit
    return {
        "unit": unit,
        "num_rows": lengths.num + sum(errors.values()),
        "first_prompt": first,
        "prompt_lengths": {"mean": lengths.mean, **{f"p{q}": lengths.percentile(q) for q in (50, 95, 99, 100)}},
        "histogram": _bars(lengths),
        "mean_max_tokens": budgets / lengths.num if lengths.num else None,
        "max_model_len": limit,
        "num_too_long": num_long,
        "errors": errors,
    }


def _encoder(model: Model) -> tuple[Any, str]:
    path = model.folder / "tokenizer.json" if model.folder else None
    if path is None or not path.is_file():
        return lambda prompt: list(_text(prompt)), "characters"
    from tokenizers import Tokenizer  # Rust, without torch

    tokenizer = Tokenizer.from_file(str(path))
    return lambda prompt: tokenizer.encode(_text(prompt)).ids, "tokens"


def _text(prompt: Prompt) -> str:
    """A prompt as text; of a chat only what is said, as templates need transformers."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _bars(lengths: Histogram) -> list[dict[str, int]]:
    """The histogram in at most ten bars of equal width: `{"from": 0, "to": 19, "num_rows": 7}`."""
    if not lengths.num:
        return []
    width = (lengths.max or 0) // _BARS + 1
    bars = [{"from": low, "to": low + width - 1, "num_rows": 0} for low in range(0, (lengths.max or 0) + 1, width)]
    for value, count in lengths.counts.items():
        bars[value // width]["num_rows"] += count
    return bars


def _estimate(spec: JobSpec, directory: RunDirectory, num_left: int) -> dict[str, Any] | None:
    """Hours for what is left at the rate of this run, or of a trial run with --limit."""
    trials = sorted(directory.path.parent.glob(f"{directory.path.name}-limit-*"))
    for measured in (directory, *(RunDirectory(path) for path in reversed(trials))):
        totals: Mapping[str, float] = ledger.totals(measured.ledgers)
        seconds = totals.get("busy_s", 0) + totals.get("idle_s", 0) + totals.get("tail_s", 0)
        if seconds and totals.get("num_rows"):
            rate = totals["num_rows"] / seconds
            return {"rows_per_s": round(rate, 3), "hours": round(num_left / rate / 3600, 3), "from": str(measured.path)}
    return None


def _settings(spec: JobSpec, model: Model, planned: Plan) -> EngineSettings:
    num_tokens = plan.expected_output_tokens(planned, spec)
    return platforms.of_job(spec, model.folder, num_tokens, models.cache_folder(), os.environ)


def _engine_config(settings: EngineSettings) -> dict[str, Any]:
    from seedx_batch.engine.config_probe import probe

    return {"platform": settings.platform, **probe(settings.args, settings.env)}


def as_text(shown: Mapping[str, Any]) -> str:
    """A preview for a person."""
    sample, lengths = shown["sample"], shown["sample"]["prompt_lengths"]
    done = shown["num_rows"] - shown["num_rows_left"]
    lines = [
        f"{shown['job']}: {shown['num_rows']:,} rows in {shown['num_shards']:,} shards "
        f"of at most {shown['rows_per_shard']:,}",
        f"run_dir    {shown['run_dir']}: {done:,} rows in parts, {shown['num_rows_left']:,} left",
        f"model      {shown['model']['name']}" + ("" if shown["model"]["folder"] else " (not on this machine)"),
        *(
            f"input      {file['path']}: {file['num_rows']:,} rows, {file['num_bytes']:,} bytes"
            for file in shown["files"]
        ),
        *(f"warning    {warning}" for warning in shown["warnings"]),
    ]
    if sample["prompt_lengths"]["p50"] is not None:
        lines.append(
            f"prompts    of {sample['num_rows']:,} sampled rows, in {sample['unit']}: mean {lengths['mean']:,.0f}, "
            f"p50 {lengths['p50']:,}, p95 {lengths['p95']:,}, p99 {lengths['p99']:,}, max {lengths['p100']:,}"
        )
        most = max(bar["num_rows"] for bar in sample["histogram"])
        lines += [
            f"  {bar['from']:>7,}-{bar['to']:<7,} {bar['num_rows']:>6,} {'#' * round(40 * bar['num_rows'] / most)}"
            for bar in sample["histogram"]
        ]
        lines.append(f"budget     at most {sample['mean_max_tokens']:,.0f} output tokens a row on average")
    if sample["max_model_len"]:
        told = (
            f"{sample['num_too_long']:,} do not fit"
            if sample["unit"] == "tokens"
            else "not known without its tokenizer"
        )
        lines.append(f"context    {sample['max_model_len']:,} tokens: of the sampled rows, {told}")
    lines += [f"errors     {count:,} sampled rows: {kind}" for kind, count in sorted(sample["errors"].items())]
    if shown["estimate"]:
        estimate = shown["estimate"]
        lines.append(
            f"time       {estimate['hours']:,} h at {estimate['rows_per_s']:,} rows/s, measured in {estimate['from']}"
        )
    else:
        lines.append("time       no measured rate yet: try --limit 100 first")
    if sample["first_prompt"] is not None:
        lines.append(f"first prompt:\n{_indent(_text(sample['first_prompt']))}")
    lines += [f"engine     {note}" for note in shown.get("notes", ())]
    lines += _config_lines(shown.get("engine_config"))
    return "\n".join(lines)


def _config_lines(config: Mapping[str, Any] | None) -> list[str]:
    if config is None:
        return []
    return [
        "engine configuration:",
        *(f"  {name}: {value}" for name, value in config.items() if value not in (None, [], {})),
    ]


def _indent(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text[:2000].splitlines())
