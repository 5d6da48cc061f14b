"""Runs a command and measures its whole tree of processes; medians, spreads and Markdown tables of what was measured.

Must never know what it runs.
"""

import contextlib
import ctypes
import itertools
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SAMPLE_S = 0.1
_SAMPLES_PER_TREE = 5  # looking for new processes takes longer than looking at them
_POLL_S = 0.05
_GROWTH = 1.01
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Run:
    """How a command ran.

    Args:
        exit_code: None where it was killed.
        began_at: on the machine's monotonic clock.
        seconds: until the command's own process ended.
        peak_mib: of the whole tree, each shared page counted once (PSS).
        others: share of the machine's CPU time that went to processes outside the tree.
    """

    exit_code: int | None
    began_at: float
    seconds: float
    peak_mib: float
    others: float


def run(
    command: Sequence[str | Path], log: Path, env: Mapping[str, str], kill_when: Callable[[], bool] | None = None
) -> Run:
    """Runs a command to its end, or kills its whole tree as soon as that is so; what it prints is added to the log.

    Processes that it leaves behind are killed, so that the next one has the machine to itself.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    killed = False
    with _adopting(), log.open("ab") as output:
        began, busy_before, own_before = time.monotonic(), _machine_busy_s(), own_busy_s()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(env), start_new_session=True
        )
        try:
            with _Memory() as memory:
                while process.poll() is None:
                    if kill_when is not None and kill_when():
                        killed = True
                        kill_tree()
                    time.sleep(_POLL_S)
            seconds = time.monotonic() - began
        finally:
            kill_tree()
    others_s = _machine_busy_s() - busy_before - (own_busy_s() - own_before)
    others = max(0.0, others_s / ((time.monotonic() - began) * (os.cpu_count() or 1)))
    return Run(None if killed else process.returncode, began, seconds, memory.peak / (1 << 20), others)


def kill_tree() -> None:
    """Kills everything that descends from this process, at once."""
    while pids := descendants(os.getpid()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    with contextlib.suppress(ChildProcessError):  # there is none left
        while os.waitpid(-1, os.WNOHANG)[0]:  # those whose parents are gone have become children of this process
            pass


def descendants(root: int) -> list[int]:
    """The processes that descend from one and have not ended, itself not among them."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(folder.name))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _machine_busy_s() -> float:
    """CPU seconds that this machine has worked since it was started."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def own_busy_s() -> float:
    """CPU seconds of this process and of all that descended from it and have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class _Memory:
    """The peak of a tree's memory, sampled in a thread.

    Proportional sizes are what adds up, but the kernel walks page tables to tell them; so they are read only when the
    resident sizes, which cost nothing, have grown.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        highest = 0.0
        for number in itertools.count():
            if self._ended.wait(_SAMPLE_S):
                return
            if number % _SAMPLES_PER_TREE == 0:
                pids = descendants(os.getpid())
            resident = sum(_resident(pid) for pid in pids)
            if resident > highest * _GROWTH:
                highest = resident
                self.peak = max(self.peak, sum(_proportional(pid) for pid in pids))


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def _proportional(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Makes this process the parent of descendants whose own parent ends, so that none gets out of sight.

    A SIGTERM raises SystemExit meanwhile, so that what runs is killed then too.
    """
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    _set_child_subreaper(1)
    try:
        yield
    finally:
        _set_child_subreaper(0)
        signal.signal(signal.SIGTERM, before)


def _set_child_subreaper(value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def keep(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a record to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def kept(path: Path) -> list[dict[str, Any]]:
    """The records of such a file; none if there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def quiet(records: Sequence[dict[str, Any]], most: float) -> list[dict[str, Any]]:
    """The records of runs during which other processes had at most such a share of the machine."""
    return [record for record in records if record["others"] <= most]


def left_out(records: Sequence[dict[str, Any]], most: float) -> str:
    """How many runs were disturbed, and how much the others were, in words."""
    kept = quiet(records, most)
    others = middle((100 * record["others"] for record in kept), 0)
    return f"Others had {others} % of the machine; runs left out because it was more: {len(records) - len(kept)}."


def middle(values: Iterable[float], digits: int = 1) -> str:
    """Median and spread, as in `12.3 (11.9 to 14.0)`; the median alone where there is one value, - where none."""
    numbers = sorted(values)
    if not numbers:
        return "-"
    median = f"{statistics.median(numbers):,.{digits}f}"
    return f"{median} ({numbers[0]:,.{digits}f} to {numbers[-1]:,.{digits}f})" if len(numbers) > 1 else median


def ratios(reference: Mapping[int, float], measured: Mapping[int, float]) -> list[float]:
    """By how much the reference is slower than what was measured, in each round that has both."""
    return [reference[number] / measured[number] for number in sorted(reference.keys() & measured.keys())]


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ruler, *lines))


def machine() -> str:
    """What ran it, in a few words."""
    cpus = len(os.sched_getaffinity(0))
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) >> 20
    return f"{cpus} CPUs ({names[0] if names else 'unknown'}), {memory} GiB"
