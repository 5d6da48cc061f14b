"""The plugin that counts what an engine does, and how it is found."""

import os
import subprocess
import sys
import types
from pathlib import Path

import engine_counts
import pytest


def test_a_fresh_file_holds_zeros(tmp_path: Path) -> None:
    """Before the first step everything is 0, also where an earlier run has counted."""
    engine_counts.prepare(tmp_path / "counts", tmp_path / "site")
    (tmp_path / "counts").write_bytes(b"\1" * 48)
    engine_counts.prepare(tmp_path / "counts", tmp_path / "site")
    assert engine_counts.read(tmp_path / "counts") == engine_counts.Counts(0, 0, 0, 0, 0.0, 0.0)


def test_the_plugin_is_an_entry_point_of_vllm(tmp_path: Path) -> None:
    """A Python with the site on its path finds the plugin in vLLM's group, under the name that VLLM_PLUGINS allows."""
    env = engine_counts.prepare(tmp_path / "counts", tmp_path / "site")
    code = "from importlib.metadata import entry_points as e; print([p.name for p in e(group='vllm.general_plugins')])"
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run([sys.executable, "-c", code], env=environ, check=True, capture_output=True, text=True).stdout
    assert env["VLLM_PLUGINS"] in found


class _Answer:
    def __init__(self, num_tokens: int, finish_reason: str | None) -> None:
        self.new_token_ids = [7] * num_tokens
        self.finish_reason = finish_reason


class _Step:
    """What a step schedules and, here, also what it answers: three tokens, of which one ends a row."""

    def __init__(self, num_tokens: int) -> None:
        self.total_num_scheduled_tokens = num_tokens
        self.outputs = [_Answer(1, None), _Answer(2, "length")]


class _Scheduler:
    def schedule(self, step: _Step) -> _Step:
        return step

    def update_from_output(self, step: _Step, output: None) -> dict[int, _Step]:
        return {0: step}


def test_steps_tokens_and_answers_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler's calls are counted and otherwise as they were; a step with nothing to compute is none."""
    module = types.ModuleType("vllm.v1.core.sched.scheduler")
    module.__dict__["Scheduler"] = _Scheduler
    parents = ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched")
    for name in parents:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, value in engine_counts.prepare(tmp_path / "counts", tmp_path / "site").items():
        monkeypatch.setenv(name, value)
    engine_counts.install()
    scheduler = _Scheduler()
    for step in (_Step(9), _Step(0), _Step(3)):
        assert scheduler.update_from_output(scheduler.schedule(step), None) == {0: step}
    counts = engine_counts.read(tmp_path / "counts")
    assert (counts.num_steps, counts.num_computed_tokens) == (2, 12)
    assert (counts.num_output_tokens, counts.num_finished) == (6, 2)
    assert 0 < counts.first_step_at <= counts.last_step_at
