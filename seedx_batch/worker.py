"""One worker: joins job, plan, platform, engine and loop; obeys signals; keeps its ledger.

Must never know other workers, or who started it.
"""

import ctypes
import gc
import logging
import os
import signal
import sys
import time
import traceback
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from seedx_batch import __version__, hardware, identity, models, platforms, suspects
from seedx_batch.ahead import Ahead, num_rows_ahead
from seedx_batch.engine import Engine
from seedx_batch.errors import EngineDied, SeedxBatchError, Stopped
from seedx_batch.flight import Flight
from seedx_batch.intake import Intake
from seedx_batch.ledger import Ledger
from seedx_batch.loop import Loop
from seedx_batch.models import Model
from seedx_batch.plan import Plan, completion_schema, expected_output_tokens, part_schema
from seedx_batch.prompts import Prompts
from seedx_batch.rundir import RunDirectory
from seedx_batch.shelf import Imprint, Shelf
from seedx_batch.sources import Reader
from seedx_batch.spec import JobSpec, SampleDecoding, parse
from seedx_batch.twins import Twins

_log = logging.getLogger(__name__)

PARENT = "SEEDX_BATCH_PARENT"
"""Environment variable by which a worker knows the process that it must not outlive."""

POISON, STALL = "SEEDX_BATCH_SIMULATED_POISON", "SEEDX_BATCH_SIMULATED_STALL"
"""Environment variables by which a rehearsal is told of a text that kills the simulated engine, or silences it."""

_WINDOWS = 2
"""Sequences in the engine at once, in units of max_num_seqs: with as many waiting as run none is free, even where a
whole batch ends in one step and the engine, in a process of its own, does not wait for the next rows."""
_OBJECTS_PER_COLLECTION = 20_000  # rows leave no cycles to speak of; Python's default looks every hundred rows
_PR_SET_PDEATHSIG = 1
_LEAVING_S = 5.0  # of the grace: for the last checkpoint and the engine's end


class StopSignals:
    """SIGTERM, SIGUSR2, SIGHUP and SIGINT ask for an early end; a second one asks for it at once."""

    def __init__(self, grace_s: float) -> None:
        self._drain_s = max(grace_s - _LEAVING_S, grace_s / 2)
        self._times: list[float] = []
        self.loading = True
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(number, self._note)
        # A parent passes the terminal's Ctrl-C on as SIGTERM; taking it twice would count as the second one.
        signal.signal(signal.SIGINT, signal.SIG_IGN if PARENT in os.environ else self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._times.append(time.monotonic())
        if self.loading:
            raise Stopped("stopped while the engine was loading")

    def seconds_left(self) -> float | None:
        """Seconds that rows in flight still have; None while nobody asked to stop."""
        if not self._times:
            return None
        return 0.0 if len(self._times) > 1 else self._drain_s - (time.monotonic() - self._times[0])


def work(path: Path, rank: int, world_size: int) -> int:
    """Does a worker's share of a run: the shards `rank`, `rank + world_size`, ... of those that have no part.

    Returns:
        The exit code; what went wrong is in the ledger and the log.
    """
    _end_with_parent()
    _log.setLevel(logging.INFO)
    run = RunDirectory(path)
    ledger = Ledger(run.ledger(rank))
    try:
        spec = parse(run.read_text(run.job), str(run.job))
        finished = _work(run, spec, rank, world_size, ledger)
    except SeedxBatchError as error:
        traceback.print_exc()
        if isinstance(error, Stopped):
            ledger.write("stopped")
        elif isinstance(error, EngineDied):
            ledger.write("died", message=str(error), exit_code=error.exit_code)
        else:
            ledger.write("failed", message=str(error), exit_code=error.exit_code)
        return error.exit_code
    ledger.write("finished" if finished else "stopped")
    return 0 if finished else Stopped.exit_code


def _work(run: RunDirectory, spec: JobSpec, rank: int, world_size: int, ledger: Ledger) -> bool:
    plan = Plan.from_json(run.read_text(run.plan), str(run.plan))
    shards = plan.todo(run.committed())[rank::world_size]
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
        )
        with (
            Reader(plan.files, plan.id_column) as reader,
            closing(Shelf(run, shards, reader, imprint)) as shelf,
            closing(Flight(run.flight(rank))) as flight,
        ):
            ahead = Ahead(
                shelf.rows(),
                Intake(prompts, spec.decoding, engine),
                num_rows_ahead(engine.max_num_seqs),
                suspects.load(run.suspects(rank)),
            )
            return _loop(spec, ahead, engine, shelf, flight, ledger, stop)
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
    spec: JobSpec, ahead: Ahead, engine: Engine, shelf: Shelf, flight: Flight, ledger: Ledger, stop: StopSignals
) -> bool:
    loop = Loop(
        ahead=ahead,
        engine=engine,
        shelf=shelf,
        flight=flight,
        # Beams would push one another out of a queue, so what they take in runs at once.
        window=(_WINDOWS if isinstance(spec.decoding, SampleDecoding) else 1) * engine.max_num_seqs,
        twins=Twins() if spec.decoding.merges else None,
        checkpoint_s=spec.executor.checkpoint_s,
        stopping=stop.seconds_left,
        on_checkpoint=lambda counters: ledger.write("checkpoint", **asdict(counters), num_resumed=shelf.num_resumed),
    )
    try:
        return loop.run()
    except EngineDied:
        loop.checkpoint()
        shelf.wait()
        raise


def _spare_collections() -> None:
    """Keeps the garbage collector from what is loaded for good, and from looking at every row again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_PER_COLLECTION, 20, 20)


def _end_with_parent() -> None:
    """Asks the kernel for a SIGTERM when the parent that started this worker is gone."""
    parent = os.environ.get(PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        raise Stopped("the process that started this worker is gone")
