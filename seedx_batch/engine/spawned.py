"""What vLLM's processes import before anything else, by which none of them outlives the one that started it.

Its engine would wait for requests for ever, and keep its memory, when the process that has it was killed; the engine's
workers notice its death themselves, but not while they load, or hang. Must never know vLLM.
"""

import os
import signal
import threading
import time

from seedx_batch import signals

_ENGINE = "SEEDX_BATCH_ENGINE_PROCESS"
_POLL_S = 0.5
_LEAVING_S = 3.0  # for a worker to end in order


def _follow(engine: int) -> None:
    while os.getppid() == engine:
        time.sleep(_POLL_S)
    time.sleep(_LEAVING_S)
    os.kill(os.getpid(), signal.SIGKILL)


if _ENGINE not in os.environ:
    # SIGTERM is blocked here, see processes.py; there is nothing to be saved.
    signals.end_with_parent(signal.SIGKILL)
    os.environ[_ENGINE] = str(os.getpid())
elif os.getppid() == int(os.environ[_ENGINE]):
    threading.Thread(target=_follow, args=[os.getppid()], name="follow-engine", daemon=True).start()
