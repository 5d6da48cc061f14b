"""What this machine is, told from a few of its files: processor, memory, accelerators.

Starts nothing and imports no driver, so that it costs milliseconds; must never know jobs or engines.
"""

import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any


def describe(root: Path = Path("/")) -> dict[str, Any]:
    """The machine as JSON values: `cpu`, `num_cpus` this process may use, `memory_bytes`, `devices` by name and count.

    Args:
        root: where the machine's files are.
    """
    return {
        "cpu": _cpu(root) or platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(root),
        "devices": dict(_devices(root)),
    }


def _cpu(root: Path) -> str | None:
    """The processor's name; ARM's kernels tell none, but their firmware may."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Hardware") and value.strip():
            return value.strip()
    return _read(root / "sys/firmware/devicetree/base/model").strip("\0\n ") or None


def _memory_bytes(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0] == "MemTotal:" and fields[1].isdigit():
            return int(fields[1]) * 1024
    return None


def _devices(root: Path) -> Counter[str]:
    """Accelerators by name; an NPU's model is the driver's to tell, so it is only counted."""
    found = Counter[str]()
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        names = [line.partition(":")[2].strip() for line in _read(path).splitlines() if line.startswith("Model:")]
        found[names[0] if names else "NVIDIA GPU"] += 1
    num_npus = sum(1 for _ in (root / "dev").glob("davinci[0-9]*"))
    if num_npus:
        found["Ascend NPU"] = num_npus
    return found


def _read(path: Path) -> str:
    """A small file's text; nothing where it cannot be read, as on a machine that has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
