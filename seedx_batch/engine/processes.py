"""The processes that vLLM starts: deaf to stop signals, watched, and ended without a trace.

Must never know requests or rows.
"""

import contextlib
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]
from vllm.v1.engine.exceptions import EngineDeadError

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}
_POLL_S = 0.25
_WORKERS_END_S = 3.0
_LEAVING_S = 5.0

Built = TypeVar("Built")


def in_deaf_thread(build: Callable[[], Built]) -> Built:
    """What `build` gives, from a thread that blocks stop signals: the processes it starts inherit that.

    A terminal's Ctrl-C and a scheduler's SIGTERM reach the whole process group, and vLLM's processes would drop the
    rows in flight. The thread that waits here goes on to hear them, so that loading, a matter of minutes, can be
    stopped.
    """
    built: list[Built] = []
    failed: list[BaseException] = []

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            built.append(build())
        except BaseException as error:  # raised again by the thread that waits
            failed.append(error)

    # Started later, it would unblock SIGINT and SIGTERM in the thread that starts it.
    resource_tracker.ensure_running()
    before = set(multiprocessing.active_children())
    thread = threading.Thread(target=run, name="build-engine", daemon=True)
    thread.start()
    try:
        thread.join()
        if failed:
            raise failed[0]
        return built[0]
    except BaseException:
        # vLLM gives up when its processes are gone; until then it may still start one.
        deadline = time.monotonic() + _LEAVING_S
        while True:
            for process in set(multiprocessing.active_children()) - before:
                _kill(process)
            if not thread.is_alive() or time.monotonic() > deadline:
                raise
            thread.join(_POLL_S)


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
