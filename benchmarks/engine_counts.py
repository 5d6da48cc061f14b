"""Counts what a vLLM engine computes, in whichever process it runs: the same way for every system that is compared.

A plugin of vLLM's (`vllm.general_plugins`): the scheduler's calls are counted into a small shared file, which outlives
a killed process. Must never know which system runs the engine.
"""

import functools
import mmap
import os
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATH = "SEEDX_BENCHMARK_COUNTS"
_PLUGIN = "seedx-benchmark-counts"
_LAYOUT = struct.Struct("<4q2d")


@dataclass(frozen=True, slots=True)
class Counts:
    """What an engine has done.

    Args:
        num_computed_tokens: of prompts and outputs, as scheduled: what was not in the prefix cache.
        first_step_at: start of the first step, on the machine's monotonic clock; 0.0 before it.
        last_step_at: end of the last step.
    """

    num_steps: int
    num_computed_tokens: int
    num_output_tokens: int
    num_finished: int
    first_step_at: float
    last_step_at: float

    @property
    def engine_s(self) -> float:
        """Seconds from the first step to the last."""
        return self.last_step_at - self.first_step_at


def prepare(path: Path, site: Path) -> dict[str, str]:
    """The variables with which an engine counts into a fresh file at `path`; `site` is to be on its PYTHONPATH."""
    site.mkdir(parents=True, exist_ok=True)
    entry = f"[vllm.general_plugins]\n{_PLUGIN} = engine_counts:install\n"
    distribution(site, "seedx-benchmark-counts", "1", {"entry_points.txt": entry})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(_LAYOUT.size))
    return {_PATH: str(path), "VLLM_PLUGINS": _PLUGIN}


def distribution(site: Path, name: str, version: str, files: Mapping[str, str]) -> None:
    """Writes an installed distribution's metadata, nothing else of it."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    for file, text in {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", **files}.items():
        (folder / file).write_text(text, encoding="utf-8")


def read(path: Path) -> Counts:
    """What has been counted."""
    return Counts(*_LAYOUT.unpack(path.read_bytes()))


def install() -> None:
    """Makes vLLM's scheduler count; vLLM calls it in each of its processes."""
    from vllm.v1.core.sched.scheduler import Scheduler

    counted = [0, 0, 0, 0, 0.0, 0.0]
    shared: list[mmap.mmap] = []  # opened at the first step, by the one process that makes steps
    schedule, update = Scheduler.schedule, Scheduler.update_from_output

    @functools.wraps(schedule)
    def counting_schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        output = schedule(self, *args, **kwargs)
        if output.total_num_scheduled_tokens and not counted[4]:
            counted[4] = began
        return output

    @functools.wraps(update)
    def counting_update(self: Any, scheduled: Any, output: Any) -> Any:
        outputs = update(self, scheduled, output)
        if not scheduled.total_num_scheduled_tokens:
            return outputs
        answers = [answer for each in outputs.values() for answer in each.outputs]
        counted[0] += 1
        counted[1] += scheduled.total_num_scheduled_tokens
        counted[2] += sum(len(answer.new_token_ids) for answer in answers)
        counted[3] += sum(answer.finish_reason is not None for answer in answers)
        counted[5] = time.monotonic()
        if not shared:
            with open(os.environ[_PATH], "r+b") as file:
                shared.append(mmap.mmap(file.fileno(), _LAYOUT.size))
        _LAYOUT.pack_into(shared[0], 0, *counted)
        return outputs

    Scheduler.schedule, Scheduler.update_from_output = counting_schedule, counting_update
