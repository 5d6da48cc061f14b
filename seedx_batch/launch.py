"""One launch of a job: spec, plan or resume, workers, and what is made when they are done.

Must never know the engine or rows; it prints nothing itself.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

from seedx_batch import card, memory, models, packaged, plan, platforms, report, status
from seedx_batch.errors import EngineError, Fault, SpecError, Stopped
from seedx_batch.executors.local import LocalWorker
from seedx_batch.models import Model
from seedx_batch.plan import Plan
from seedx_batch.prompts import Prompts
from seedx_batch.rundir import RunDirectory
from seedx_batch.spec import JobSpec
from seedx_batch.spec import load as load_spec
from seedx_batch.status import Reading, Status
from seedx_batch.supervision import Supervision

_POLL_S = 0.1
_SHOW_S = 0.5
_LOG_LINES = 15

Found = TypeVar("Found")


class View(Protocol):
    """Where progress is shown."""

    def say(self, message: str) -> None: ...

    def show(self, status: Status) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a launch ended as."""

    message: str
    exit_code: int


def load(path: Path, overrides: Sequence[str], limit: int | None) -> JobSpec:
    """The job of a yaml file; with a limit it gets a run directory of its own, so that a trial is never in the way.

    Raises:
        SpecError: with every fault that was found.
    """
    if limit is None:
        return load_spec(path, overrides)
    spec = load_spec(path, [*overrides, f"input.limit={limit}"])
    return spec.model_copy(update={"run_dir": spec.directory.with_name(f"{spec.directory.name}-limit-{limit}")})


def understand(spec: JobSpec, *, fetch: bool) -> tuple[Prompts, Model]:
    """The prompts and the model that a job means.

    Raises:
        SpecError: with the faults of both.
    """
    faults: list[Fault] = []

    def attempt(find: Callable[[], Found]) -> Found | None:
        try:
            return find()
        except SpecError as error:
            faults.extend(error.faults)
            return None

    prompts = attempt(lambda: Prompts.build(spec.prompt))
    model = attempt(lambda: models.resolve(spec.model, fetch=fetch))
    if prompts is None or model is None:
        raise SpecError(faults)
    return prompts, model


def run(spec: JobSpec, *, fresh: bool, progress: View) -> Outcome:
    """Runs a job, or goes on with it, until it is done or stopped.

    Raises:
        SpecError: the job cannot mean what it says, or may not be resumed.
        InputError, StorageError, EngineError: see errors.py.
    """
    directory = RunDirectory(spec.directory)
    if fresh and directory.path.exists() and any(directory.path.iterdir()):
        raise SpecError(
            Fault("--fresh", f"'{directory.path}' is not empty", "empty it, or give the job another run_dir")
        )
    _prepare(spec, progress)
    prompts, model = understand(spec, fetch=True)
    directory.create()
    with directory.lock() as lock_fd:
        planned = _plan(spec, prompts, model, directory, progress)
        todo = planned.todo(directory.committed())
        if not todo:
            if not directory.card.is_file():
                card.finalize(directory.path)
            if not directory.report.is_file():
                report.write(Reading(directory.path))
            return Outcome(f"nothing left to do: all {planned.num_rows:,} rows are done\n{_where(directory)}", 0)
        directory.sweep()
        settings = None if model.is_simulated else _settings(spec, model, planned)
        for note in () if settings is None else settings.notes:
            progress.say(note)
        environ = {} if settings is None else platforms.missing(settings, os.environ)
        code, died = _watch(directory, planned, spec, environ, lock_fd, progress)
        outcome = _outcome(directory, planned, code, died)
        if outcome.exit_code == EngineError.exit_code and settings is not None:
            advice = memory.advice(settings.args, outcome.message, memory.free_bytes())
            return replace(outcome, message=f"{outcome.message}\n{advice}") if advice else outcome
        return outcome


def _prepare(spec: JobSpec, progress: View) -> None:
    """Makes a packaged model ready, in a process of its own: it needs torch, which this one must not hold."""
    name = spec.model.name
    if not packaged.is_packaged(name) or packaged.is_prepared(name, models.cache_folder()):
        return
    progress.say(f"preparing {name} (once)")
    done = subprocess.run([sys.executable, "-m", "seedx_batch", "prepare", name], check=False)
    if done.returncode:
        raise SpecError(Fault("model.name", f"'{name}' could not be prepared", "see above"))


def _plan(spec: JobSpec, prompts: Prompts, model: Model, directory: RunDirectory, progress: View) -> Plan:
    if directory.plan.is_file():
        planned = Plan.from_json(directory.read_text(directory.plan), str(directory.plan))
        plan.check_resume(planned, spec, prompts, model)
    else:
        planned = plan.make(spec, prompts, model)
        for warning in planned.warnings:
            progress.say(f"warning: {warning}")
        directory.write_text(directory.plan, planned.to_json())
    # What does not decide results (engine, executor) may have changed since.
    directory.write_text(directory.job, spec.to_yaml())
    return planned


def _settings(spec: JobSpec, model: Model, planned: Plan) -> platforms.EngineSettings:
    """What the worker's engine will start with: what it wants of the environment it has so from its first moment."""
    num_tokens = plan.expected_output_tokens(planned, spec)
    return platforms.of_job(spec, model.folder, num_tokens, models.cache_folder(), os.environ)


def _watch(
    directory: RunDirectory, planned: Plan, spec: JobSpec, environ: dict[str, str], lock_fd: int, progress: View
) -> tuple[int, bool]:
    """Runs the worker and shows its progress, and starts it again when its engine has died.

    Stop signals are passed on to it.

    Args:
        environ: what the worker's environment has beside this process's.

    Returns:
        Its exit code, and whether the engine's death ended it.
    """
    pending: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        pending.append(number)

    supervision = Supervision(directory, 0, spec.executor)

    def attend(worker: LocalWorker) -> int:
        shown_at, num_stops = 0.0, 0
        while (code := worker.poll()) is None:
            if len(pending) > num_stops:
                num_stops = len(pending)
                progress.say(
                    "stopping: finished rows are being saved" + (" (once more: at once)" if num_stops > 1 else "")
                )
                worker.stop(at_once=num_stops > 1)
            if supervision.is_stalled():
                worker.kill()
            if time.monotonic() - shown_at >= _SHOW_S:
                progress.show(status.glance(directory, planned))
                shown_at = time.monotonic()
            time.sleep(_POLL_S)
        return code

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        while True:
            code = attend(LocalWorker.start(directory, environ, lock_fd, spec.executor.grace_s))
            seen = status.glance(directory, planned)
            progress.show(seen)
            how = supervision.death(code)
            if how is not None and pending:
                return Stopped.exit_code, False
            if how is None or not supervision.begins_again(how, seen.num_done):
                break
            directory.sweep()
            progress.say(f"{how}; starting again, rows in flight are generated again")
        if code == 0:
            supervision.forget()
        return code, how is not None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(directory: RunDirectory, planned: Plan, code: int, died: bool) -> Outcome:
    seen = status.glance(directory, planned)
    if code == 0 and seen.num_committed == seen.num_shards:
        card.finalize(directory.path)
        done = report.write(Reading(directory.path))
        return Outcome(f"{done.as_text()}\n{_where(directory)}", 0)
    if code == Stopped.exit_code:
        left = seen.num_rows - seen.num_done
        return Outcome(f"stopped: {seen.num_done:,} rows are done, {left:,} are left; the same command goes on", code)
    message, code = seen.failure or (f"the worker ended with exit code {code}", EngineError.exit_code)
    if seen.failure is not None and not died:
        return Outcome(f"error: {message}\nlog: {directory.log(0)}", code)
    tail = directory.log(0).read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    told = "\n".join(f"  {line}" for line in tail)
    return Outcome(f"error: {message}; the last lines of {directory.log(0)}:\n{told}", code)


def _where(directory: RunDirectory) -> str:
    return (
        f'result: {directory.path}\nload it: datasets.load_dataset("{directory.path}")\nlook at it: {directory.report}'
    )
