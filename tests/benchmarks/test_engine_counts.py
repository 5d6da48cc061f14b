"""The plugin that counts what an engine does, and how it is found."""

import os
import subprocess
import sys
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


@pytest.mark.engine
def test_an_engine_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrapped scheduler counts its steps, tokens and answers, also those that nobody has yet fetched."""
    from vllm.v1.core.sched.scheduler import Scheduler

    class Answer:
        def __init__(self, num_tokens: int, finish_reason: str | None) -> None:
            self.new_token_ids = [7] * num_tokens
            self.finish_reason = finish_reason

    class Scheduled:
        def __init__(self, num_tokens: int) -> None:
            self.total_num_scheduled_tokens = num_tokens
            self.outputs = [Answer(1, None), Answer(2, "length")]

    env = engine_counts.prepare(tmp_path / "counts", tmp_path / "site")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Scheduler, "schedule", lambda self, scheduled: scheduled)
    monkeypatch.setattr(Scheduler, "update_from_output", lambda self, scheduled, output: {0: scheduled})
    engine_counts.install()
    for num_tokens in (9, 0, 3):
        Scheduler.update_from_output(None, Scheduler.schedule(None, Scheduled(num_tokens)), None)
    counts = engine_counts.read(tmp_path / "counts")
    assert (counts.num_steps, counts.num_computed_tokens, counts.num_output_tokens, counts.num_finished) == (
        2,
        12,
        6,
        2,
    )
    assert 0 < counts.first_step_at <= counts.last_step_at
