"""For tests: holds every process that calls the function named by HOLD, until the test lets it go on.

HOLD is `module:name` or `module:Class.name`; the file HELD then exists and names the process, which goes on when that
file is removed, and is not held again. With CLOCK_RUNS_BACK the time of day is a minute earlier at every look, from a
year ago on. Python imports this by itself where PYTHONPATH names the folder.
"""

import functools
import importlib
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def held(call: Callable[..., Any], mark: Path) -> Callable[..., Any]:
    """The same function, whose first call waits."""

    @functools.wraps(call)
    def wait(*args: Any, **options: Any) -> Any:
        once = mark.with_suffix(".once")
        if not once.exists():
            once.touch()
            unready = mark.with_suffix(".unready")
            unready.write_text(str(os.getpid()))
            unready.rename(mark)
            while mark.exists():
                time.sleep(0.01)
        return call(*args, **options)

    return wait


if "HOLD" in os.environ:
    module, _, path = os.environ["HOLD"].partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    setattr(owner, name, held(getattr(owner, name), Path(os.environ["HELD"])))

if "CLOCK_RUNS_BACK" in os.environ:
    minutes = itertools.count(365 * 24 * 60)
    began = time.time()
    time.time = lambda: began - 60 * next(minutes)
