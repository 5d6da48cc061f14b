"""One worker: joins job, plan, platform, engine and loop; obeys signals; keeps its ledger.

Must never know other workers, or who started it.
"""

import gc
import json
import logging
import os
import signal
import sys
import time
import traceback
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from seedx_batch import __version__, hardware, identity, models, platforms, retry, signals, suspects
from seedx_batch.ahead import Ahead, num_rows_ahead
from seedx_batch.engine import Engine
from seedx_batch.error_rate import ErrorRate
from seedx_batch.errors import EngineDied, InputError, SeedxBatchError, Stopped, StorageError, TooManyErrors
from seedx_batch.flight import Flight
from seedx_batch.intake import Intake
from seedx_batch.ledger import Ledger, rows_since
from seedx_batch.loop import Counters, Loop
from seedx_batch.models import Model
from seedx_batch.plan import completion_schema, expected_output_tokens, part_schema
from seedx_batch.plan import read as read_plan
from seedx_batch.prompts import Prompts
from seedx_batch.rundir import RunDirectory
from seedx_batch.shelf import Imprint, Shelf
from seedx_batch.sources import Reader
from seedx_batch.spec import JobSpec, SampleDecoding, parse
from seedx_batch.telling import masked
from seedx_batch.twins import Twins

_log = logging.getLogger(__name__)

POISON, STALL = "SEEDX_BATCH_SIMULATED_POISON", "SEEDX_BATCH_SIMULATED_STALL"
"""Environment variables by which a rehearsal is told of a text that kills the simulated engine, or silences it."""
LAST_WORDS = "SEEDX_BATCH_LAST_WORDS"
"""Environment variable with the descriptor of the pipe into which a worker says what ended it."""

_WINDOWS = 2
"""Sequences in the engine at once, in units of max_num_seqs: with as many waiting as run none is free, even where a
whole batch ends in one step and the engine, in a process of its own, does not wait for the next rows."""
_OBJECTS_PER_COLLECTION = 20_000  # rows leave no cycles to speak of; Python's default looks every hundred rows
_MOST_WORDS = 4000  # characters: all of it goes into a pipe that nobody may be reading yet
_LEAVING_S = 5.0  # of the grace: for the last checkpoint and the engine's end


class StopSignals:
    """SIGTERM, SIGUSR2, SIGHUP and SIGINT ask for an early end; a second one asks for it at once.

    Those that were sent before, and that the launch has kept from a process not ready for them, count from here.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._drain_s = max(grace_s - _LEAVING_S, grace_s / 2)
        self._asked_at: float | None = None
        self._at_once = False
        self._is_child = signals.PARENT in os.environ
        self.loading = True
        for number in (*signals.heard(), signals.HURRY):
            signal.signal(number, self._note)
        if self._is_child:  # a terminal's Ctrl-C is for the parent, which passes it on
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.STOP)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked_at is not None:
            # What reaches the whole process group comes a second time, from the parent.
            self._at_once = self._at_once or number == signals.HURRY or not self._is_child
            return
        self._asked_at = time.monotonic()
        self._at_once = number == signals.HURRY
        # An engine that hangs must not keep this process, should nobody be left to kill it.
        signal.setitimer(signal.ITIMER_REAL, self._grace_s)
        if self.loading:
            raise Stopped("stopped while the engine was loading")

    def seconds_left(self) -> float | None:
        """Seconds that rows in flight still have; None while nobody asked to stop."""
        if self._asked_at is None:
            return None
        return 0.0 if self._at_once else self._drain_s - (time.monotonic() - self._asked_at)


def work(path: Path, rank: int, world_size: int) -> int:
    """Does a worker's share of a run: the shards `rank`, `rank + world_size`, ... of those that have no part.

    Returns:
        The exit code; what went wrong is in the ledger and the log.
    """
    signals.end_with_parent(signal.SIGTERM)
    _log.setLevel(logging.INFO)
    run = RunDirectory(path)
    ledger = Ledger(run.ledger(rank))
    try:
        spec = parse(run.read_text(run.job), str(run.job))
        finished = _work(run, spec, rank, world_size, ledger)
        ledger.write("finished" if finished else "stopped")
    except SeedxBatchError as error:
        _tell(error, ledger)
        return error.exit_code
    return 0 if finished else Stopped.exit_code


def _tell(error: SeedxBatchError, ledger: Ledger) -> None:
    """Says what ended the worker: in its log, its ledger, and a pipe, as the disk of those may be full."""
    with suppress(OSError):
        print(masked(traceback.format_exc()), file=sys.stderr)
    with suppress(StorageError):
        if isinstance(error, Stopped):
            ledger.write("stopped")
        elif isinstance(error, EngineDied):
            ledger.write("died", message=str(error), exit_code=error.exit_code)
        else:
            ledger.write("failed", message=str(error), exit_code=error.exit_code)
    if LAST_WORDS in os.environ:
        with suppress(OSError):  # whoever started this worker is gone
            os.write(int(os.environ[LAST_WORDS]), json.dumps([str(error)[:_MOST_WORDS], error.exit_code]).encode())


def _work(run: RunDirectory, spec: JobSpec, rank: int, world_size: int, ledger: Ledger) -> bool:
    plan = read_plan(run)
    shards = plan.todo(run.committed() - retry.pending(run, plan))[rank::world_size]
    model = models.resolve(spec.model, fetch=True)
    settings = None if model.is_simulated else _settings(spec, model, expected_output_tokens(plan, spec))
    stop = StopSignals(spec.executor.grace_s)
    told = {} if settings is None else asdict(settings)
    ledger.write("started", pid=os.getpid(), hardware=hardware.describe(), **told)
    prompts = Prompts.build(spec.prompt)
    began = time.monotonic()
    engine = _engine(spec, settings, prompts)
    try:
        load_s = round(time.monotonic() - began, 2)
        ledger.write("loaded", load_s=load_s, versions=dict(engine.versions), max_num_seqs=engine.max_num_seqs)
        stop.loading = False
        _spare_collections()
        versions = {**engine.versions, "seedx-batch": __version__}
        imprint = Imprint(
            part=part_schema(plan.columns, spec, prompts),
            completion=completion_schema(spec, prompts),
            columns=plan.columns,
            num_shards=len(plan.shards),
            fingerprint=plan.fingerprint,
            signature=identity.signature(spec.name, spec.results(), model.identity, plan.fingerprint, versions),
            worker=f"rank-{rank:05d}",
            versions=versions,
            round=plan.retry.round if plan.retry else 0,
        )
        again = plan.retry.statuses if plan.retry else ()
        with (
            Reader(plan.files, plan.id_column) as reader,
            closing(Shelf(run, shards, reader, imprint, again)) as shelf,
            closing(Flight(run.flight(rank))) as flight,
        ):
            ahead = Ahead(
                shelf.rows(),
                Intake(prompts, spec.decoding, engine),
                num_rows_ahead(engine.max_num_seqs),
                suspects.load(run.suspects(rank)),
            )
            # Rows that failed before may well fail again, and have been counted.
            most = None if plan.retry else spec.executor.max_error_rate
            errors = ErrorRate(most, *rows_since(ledger.path, TooManyErrors.exit_code))
            return _loop(spec, ahead, engine, shelf, flight, errors, ledger, stop)
    finally:
        engine.close()


def _settings(spec: JobSpec, model: Model, num_output_tokens: int) -> platforms.EngineSettings:
    settings = platforms.of_job(spec, model.folder, num_output_tokens, models.cache_folder(), os.environ)
    absent = platforms.missing(settings, os.environ)
    if absent:
        # Preloads and thread settings count only from a process's first moment, so it begins again with them.
        # A launch has set them before already.
        os.execve(sys.executable, [sys.executable, "-m", "seedx_batch", *sys.argv[1:]], {**os.environ, **absent})
    for note in settings.notes:
        _log.info("%s", note)
    return settings


def _engine(spec: JobSpec, settings: platforms.EngineSettings | None, prompts: Prompts) -> Engine:
    # Imported here: only a worker with a model needs vLLM, and it takes seconds.
    if settings is None:
        from seedx_batch.engine.simulated import SimulatedEngine

        return SimulatedEngine(
            spec.engine.max_num_seqs or 64,
            spec.model.max_model_len or 32_768,
            poison=os.environ.get(POISON),
            stall=os.environ.get(STALL),
        )
    from seedx_batch.engine.vllm import VllmEngine

    return VllmEngine(settings.args, prompts.chat_template)


def _loop(
    spec: JobSpec,
    ahead: Ahead,
    engine: Engine,
    shelf: Shelf,
    flight: Flight,
    errors: ErrorRate,
    ledger: Ledger,
    stop: StopSignals,
) -> bool:
    untold: list[StorageError] = []

    def tell(counters: Counters) -> None:
        try:
            ledger.write("checkpoint", **asdict(counters), num_resumed=shelf.num_resumed)
        except StorageError as error:
            untold.append(error)  # rows are worth more than what is told of them: those that have ended are saved first

    loop = Loop(
        ahead=ahead,
        engine=engine,
        shelf=shelf,
        flight=flight,
        # Beams would push one another out of a queue, so what they take in runs at once.
        window=(_WINDOWS if isinstance(spec.decoding, SampleDecoding) else 1) * engine.max_num_seqs,
        twins=Twins() if spec.decoding.merges else None,
        checkpoint_s=spec.executor.checkpoint_s,
        stopping=lambda: 0.0 if untold else stop.seconds_left(),
        on_checkpoint=tell,
        errors=errors,
    )
    try:
        finished = loop.run()
    except (EngineDied, InputError):
        loop.checkpoint()
        shelf.wait()
        raise
    if untold:
        raise untold[0]
    return finished


def _spare_collections() -> None:
    """Keeps the garbage collector from what is loaded for good, and from looking at every row again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_PER_COLLECTION, 20, 20)
