"""A program for test_vllm.py: a real engine in processes of its own, and what signals and death do to it.

usage: separate_processes.py SCENARIO MODEL CACHE; prints one JSON object as its last line.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import psutil  # type: ignore[import-untyped]

from seedx_batch.engine import Engine
from seedx_batch.errors import EngineDied, Stopped
from seedx_batch.records import Request, RequestId, RowKey
from tests.engine.tiny_engine import make_settings

PARAMS = {"temperature": 0.0, "max_tokens": 100, "ignore_eos": True}


def build(model: Path, cache: Path) -> Engine:
    """The engine, as the program starts it where the platform wants processes of its own."""
    settings = make_settings(model, cache)
    os.environ.update({**settings.env, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
    from seedx_batch.engine.vllm import VllmEngine

    return VllmEngine(settings.args)


def descendants() -> list[str]:
    """Names of the living processes below this one that are vLLM's."""
    names = [process.name() for process in psutil.Process().children(recursive=True) if process.status() != "zombie"]
    return [name for name in names if "VLLM" in name or "EngineCore" in name]


def add(engine: Engine, positions: range) -> None:
    """Puts requests in flight."""
    ids = engine.encode("hello the world")
    for position in positions:
        engine.add(Request(RequestId(RowKey(0, position), 0), ids, PARAMS))


def signals(model: Path, cache: Path) -> dict[str, object]:
    """Signals to the whole process group: the rows in flight are answered all the same."""
    heard: list[int] = []
    sent = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    for number in sent:
        signal.signal(number, lambda number, frame: heard.append(number))
    engine = build(model, cache)
    num_processes = len(descendants())
    add(engine, range(6))
    engine.step()
    for number in sent:
        os.killpg(0, number)
    answered = []
    while engine.num_unfinished:
        answered += [output.candidates[0].finish_reason for output in engine.step()]
    began = time.monotonic()
    engine.close()
    engine.close()
    return {
        "heard": sorted(set(heard)),
        "answered": answered,
        "num_processes": num_processes,
        "close_s": time.monotonic() - began,
        "left": descendants(),
    }


def killed(model: Path, cache: Path) -> dict[str, object]:
    """The kernel kills the engine's process while a step waits for it."""
    engine = build(model, cache)
    add(engine, range(3))
    core = next(process for process in psutil.Process().children() if "EngineCore" in process.name())
    core.suspend()  # so that the step certainly waits
    threading.Timer(1.0, core.kill).start()
    errors = []
    for call in (engine.step, engine.step, lambda: add(engine, range(3, 4))):
        try:
            while True:
                call()
        except EngineDied as error:
            errors.append(str(error))
    engine.abort([RequestId(RowKey(0, 0), 0)])
    engine.close()
    return {"errors": errors, "left": descendants()}


def steps(model: Path, cache: Path) -> dict[str, object]:
    """When steps were by the engine's own clock, with this process asleep in between and with an engine that waits."""
    engine = build(model, cache)
    told = []
    for position in range(2):
        added_at = time.monotonic()
        add(engine, range(position, position + 1))
        while engine.num_unfinished:
            time.sleep(0.02)
            engine.step()
            told.append(engine.last_step)
        told.append((added_at, time.monotonic()))
        time.sleep(0.5)
    engine.close()
    return {"steps": told}


def stopped(model: Path, cache: Path) -> dict[str, object]:
    """A stop signal while the engine is loading: the loading ends, and nothing stays behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("while loading")

    def send() -> None:
        while not descendants():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=send, daemon=True).start()
    raised = ""
    try:
        build(model, cache)
    except Stopped as error:
        raised = str(error)
    return {"raised": raised, "left": descendants()}


if __name__ == "__main__":
    scenario = {"signals": signals, "killed": killed, "steps": steps, "stopped": stopped}[sys.argv[1]]
    print(json.dumps(scenario(Path(sys.argv[2]), Path(sys.argv[3]))))
