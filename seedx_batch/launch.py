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

from seedx_batch import card, memory, models, packaged, parts, plan, platforms, report, retry, seal, signals, status
from seedx_batch.errors import EngineError, Fault, ResumeRefused, SpecError, Stopped
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


def run(spec: JobSpec, *, fresh: bool, progress: View, extend: bool = False, retry_failed: bool = False) -> Outcome:
    """Runs a job, or goes on with it, until it is done or stopped.

    Args:
        extend: take rows in that were added to the input behind all others.
        retry_failed: run rows again that have ended as errors and, where the job's budget was raised, those cut off.

    Raises:
        SpecError: the job cannot mean what it says, or may not be resumed.
        InputError, StorageError, EngineError: see errors.py.
    """
    directory = RunDirectory(spec.directory)
    if fresh and directory.path.exists() and any(directory.path.iterdir()):
        raise SpecError(
            Fault("--fresh", f"'{directory.path}' is not empty", "empty it, or give the job another run_dir")
        )
    _check_folder(directory)
    _prepare(spec, progress)
    prompts, model = understand(spec, fetch=True)
    directory.create()
    with directory.lock() as lock_fd:
        planned = _plan(spec, prompts, model, directory, progress, extend=extend, retry_failed=retry_failed)
        todo = planned.todo(directory.committed() - retry.pending(directory, planned))
        if not todo:
            # What is there may have been made when there were fewer parts, or was never finished.
            card.finalize(directory.path)
            report.write(Reading(directory.path))
            return Outcome(f"nothing left to do: all {planned.num_rows:,} rows are done\n{_where(directory)}", 0)
        settings = None if model.is_simulated else _settings(spec, model, planned)
        for note in () if settings is None else settings.notes:
            progress.say(note)
        environ = {} if settings is None else platforms.missing(settings, os.environ)
        code, failure, died = _watch(directory, planned, spec, environ, lock_fd, progress)
        outcome = _outcome(directory, planned, code, failure, died)
        if outcome.exit_code == EngineError.exit_code and settings is not None:
            advice = memory.advice(settings.args, outcome.message, memory.free_bytes())
            return replace(outcome, message=f"{outcome.message}\n{advice}") if advice else outcome
        return outcome


def _check_folder(directory: RunDirectory) -> None:
    """Lets no run write its README.md and data/ into a folder that holds something else."""
    folder = directory.path.resolve()
    if folder.is_dir() and not (folder / ".state").is_dir() and any(folder.iterdir()):
        what = f"'{directory.path}' holds files, and none of a run"
        raise SpecError(Fault("run_dir", what, "name a folder that is new, empty, or an earlier run's"))


def _prepare(spec: JobSpec, progress: View) -> None:
    """Makes a packaged model ready, in a process of its own: it needs torch, which this one must not hold."""
    name = spec.model.name
    if not packaged.is_packaged(name) or packaged.is_prepared(name, models.cache_folder()):
        return
    progress.say(f"preparing {name} (once)")
    command = [sys.executable, "-m", "seedx_batch", "prepare", name]
    done = subprocess.run(command, env={**os.environ, signals.PARENT: str(os.getpid())}, check=False)
    if done.returncode:
        raise SpecError(Fault("model.name", f"'{name}' could not be prepared", "see above"))


def _plan(
    spec: JobSpec,
    prompts: Prompts,
    model: Model,
    directory: RunDirectory,
    progress: View,
    *,
    extend: bool,
    retry_failed: bool,
) -> Plan:
    if directory.plan.is_file():
        earlier = plan.read(directory)
        planned = plan.resume(earlier, spec, prompts, model, may_raise=retry_failed, may_extend=extend)
        if planned is not earlier:
            directory.write_text(directory.plan, planned.to_json())
            progress.say(f"rows were added: {earlier.num_rows:,} -> {planned.num_rows:,}")
        # Whatever broke an earlier launch off behind that line is made good here.
        directory.rename_parts(len(planned.shards), planned.earlier)
        pending = retry.pending(directory, planned)
        directory.sweep(keep=pending)
        is_raised = retry_failed and plan.is_raised(planned, spec)
        if is_raised or (retry_failed and not pending):
            planned = _begin_retry(spec, prompts, directory, planned, progress, is_raised=is_raised)
    else:
        directory.sweep()
        planned = plan.make(spec, prompts, model)
        for warning in planned.warnings:
            progress.say(f"warning: {warning}")
        _check_parts(planned, directory)
        directory.write_text(directory.plan, planned.to_json())
    # What does not decide results (engine, executor) may have changed since.
    directory.write_text(directory.job, seal.closed(f"{spec.to_yaml()}# {seal.OPEN}\n"))
    return planned


def _check_parts(planned: Plan, directory: RunDirectory) -> None:
    """Makes sure that parts whose plan is gone are of this one."""
    for index in sorted(directory.committed()):
        path = directory.part(index, len(planned.shards))
        if parts.read_footer(path).fingerprint != planned.fingerprint:
            raise ResumeRefused(
                Fault(str(path), "is a part of another job, whose plan.json is gone", "give this job another run_dir")
            )


def _begin_retry(
    spec: JobSpec, prompts: Prompts, directory: RunDirectory, planned: Plan, progress: View, *, is_raised: bool
) -> Plan:
    """The plan in which failed rows run again; a round that is under way is gone on with by every launch."""
    statuses = ("error", "truncated") if is_raised else ("error",)
    planned = retry.begin(directory, planned, statuses, plan.completion_schema(spec, prompts))
    if is_raised:
        planned = replace(planned, max_tokens=spec.results()["decoding"]["max_tokens"])
    directory.write_text(directory.plan, planned.to_json())
    if planned.retry is not None:
        progress.say(f"rows of finished shards that run again: {sum(planned.retry.shards.values()):,}")
    return planned


def _settings(spec: JobSpec, model: Model, planned: Plan) -> platforms.EngineSettings:
    """What the worker's engine will start with: what it wants of the environment it has so from its first moment."""
    num_tokens = plan.expected_output_tokens(planned, spec)
    return platforms.of_job(spec, model.folder, num_tokens, models.cache_folder(), os.environ)


def _watch(
    directory: RunDirectory, planned: Plan, spec: JobSpec, environ: dict[str, str], lock_fd: int, progress: View
) -> tuple[int, tuple[str, int] | None, bool]:
    """Runs the worker and shows its progress, and starts it again when its engine has died.

    Stop signals are passed on to it.

    Args:
        environ: what the worker's environment has beside this process's.

    Returns:
        Its exit code, its last words, and whether the engine's death ended it.
    """
    pending: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        pending.append(number)

    supervision = Supervision(directory, 0, spec.executor)

    def attend(worker: LocalWorker) -> int:
        shown_at, num_stops = 0.0, 0
        while True:
            code = worker.poll()
            if len(pending) > num_stops:
                num_stops = len(pending)
                worker.stop(at_once=num_stops > 1)
                progress.say(
                    "stopping: finished rows are being saved" + (" (once more: at once)" if num_stops > 1 else "")
                )
            if code is not None:
                return code
            if supervision.is_stalled():
                worker.kill()
            if time.monotonic() - shown_at >= _SHOW_S:
                progress.show(status.glance(directory, planned))
                shown_at = time.monotonic()
            time.sleep(_POLL_S)

    before = {number: signal.signal(number, note) for number in signals.heard()}
    try:
        while True:
            worker = LocalWorker.start(directory, environ, lock_fd, spec.executor.grace_s)
            code = attend(worker)
            seen = status.glance(directory, planned)
            progress.show(seen)
            how = supervision.death(code)
            if how is not None and pending:
                return Stopped.exit_code, None, False
            if how is None or not supervision.begins_again(how, seen.num_done):
                break
            directory.sweep(keep=retry.pending(directory, planned))
            progress.say(f"{how}; starting again, rows in flight are generated again")
        if code == 0:
            supervision.forget()
        return code, worker.last_words(), how is not None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(directory: RunDirectory, planned: Plan, code: int, failure: tuple[str, int] | None, died: bool) -> Outcome:
    seen = status.glance(directory, planned)
    if code == 0 and seen.phase == "finished":
        card.finalize(directory.path)
        done = report.write(Reading(directory.path))
        return Outcome(f"{done.as_text()}\n{_where(directory)}", 0)
    if code == Stopped.exit_code:
        left = seen.num_rows - seen.num_done
        return Outcome(f"stopped: {seen.num_done:,} rows are done, {left:,} are left; the same command goes on", code)
    if not died:
        failure = failure or seen.failure  # the ledger may be on the disk that failed
        if failure is not None:
            message, code = failure
            return Outcome(f"error: {message}\nlog: {directory.log(0)}", code)
    message, code = seen.failure or (f"the worker ended with exit code {code}", EngineError.exit_code)
    told = "\n".join(f"  {line}" for line in _log_lines(directory.log(0)))
    return Outcome(f"error: {message}; the last lines of {directory.log(0)}:\n{told}", code)


def _log_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    except OSError as error:
        return [f"(cannot be read: {error.strerror})"]


def _where(directory: RunDirectory) -> str:
    return (
        f'result: {directory.path}\nload it: datasets.load_dataset("{directory.path}")\nlook at it: {directory.report}'
    )
