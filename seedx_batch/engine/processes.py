"""The processes that vLLM starts: deaf to stop signals, watched, mortal, and ended without a trace.

Must never know requests or rows.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]
from vllm.v1.engine.exceptions import EngineDeadError

from seedx_batch import signals

_SIGNALS = {*signals.STOP, signals.HURRY}
_SPAWNED = "seedx_batch.engine.spawned"
_POLL_S = 0.25
_WORKERS_END_S = 3.0
_LEAVING_S = 5.0

Built = TypeVar("Built")


def in_deaf_thread(build: Callable[[], Built]) -> Built:
    """What `build` gives, from a thread that blocks stop signals: the processes it starts inherit that.

    A terminal's Ctrl-C and a scheduler's SIGTERM reach the whole process group, and vLLM's processes would drop the
    rows in flight. The thread that waits here goes on to hear them, so that loading, a matter of minutes, can be
    stopped. The other one stays: the processes that it has started end with it, which is with this process.
    """
    built: list[Built] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            with _mortal():
                built.append(build())
        except BaseException as error:  # raised again by the thread that waits
            failed.append(error)
        done.set()
        if built:
            threading.Event().wait()

    # Started later, it would unblock SIGINT and SIGTERM in the thread that starts it.
    resource_tracker.ensure_running()
    before = set(multiprocessing.active_children())
    thread = threading.Thread(target=run, name="build-engine", daemon=True)
    thread.start()
    try:
        done.wait()
        if failed:
            raise failed[0]
        return built[0]
    except BaseException:
        # vLLM gives up when its processes are gone; until then it may still start one.
        deadline = time.monotonic() + _LEAVING_S
        while True:
            for process in set(multiprocessing.active_children()) - before:
                _kill(process)
            if done.is_set() or time.monotonic() > deadline:
                raise
            done.wait(_POLL_S)


@contextlib.contextmanager
def _mortal() -> Iterator[None]:
    """Processes that are spawned inside end with the thread that does it.

    They import their parent's main module first, and here are told that it is another one.
    """
    main = sys.modules["__main__"]
    spec, parent = main.__spec__, os.environ.get(signals.PARENT)
    main.__spec__ = find_spec(_SPAWNED)
    os.environ[signals.PARENT] = str(os.getpid())
    try:
        yield
    finally:
        main.__spec__ = spec
        if parent is None:
            del os.environ[signals.PARENT]
        else:
            os.environ[signals.PARENT] = parent


def watch(core: Any, closing: threading.Event) -> None:
    """Turns the silent death of vLLM's engine process into an error.

    When that process is killed (out of memory, say), vLLM marks the engine dead but wakes nobody: `step` would wait for
    ever. Source: SyncMPClient in vllm/v1/engine/core_client.py.
    """
    resources = getattr(core, "resources", None)
    if resources is None:  # no process of its own
        return

    def run() -> None:
        while not resources.engine_dead:
            if closing.wait(_POLL_S):
                return
        core.outputs_queue.put_nowait(EngineDeadError())

    threading.Thread(target=run, name="watch-engine", daemon=True).start()


def end(core: Any) -> None:
    """Ends vLLM's processes.

    They block SIGTERM, by which vLLM would end them after five seconds of waiting. There is nothing to be saved in the
    engine process; its workers see that it is gone and end in order.
    """
    resources = getattr(core, "resources", None)
    if resources is not None:
        resources.engine_dead = True  # tells vLLM's own monitor that this is no accident
        for process in getattr(resources.engine_manager, "processes", ()):
            _kill(process)
    core.shutdown(timeout=0)


def _kill(process: BaseProcess) -> None:
    """Kills a process that was started here; its descendants are given a moment to end of themselves."""
    descendants: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        descendants = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.join()
    for descendant in psutil.wait_procs(descendants, timeout=_WORKERS_END_S)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
