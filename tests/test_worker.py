"""Whole runs on real vLLM with tiny random models in Seed-X's shape: what only a real engine can show."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from seedx_batch import ledger
from tests.jobs import (
    LEDGER,
    environment,
    has_ended,
    parts_of,
    seedx_batch,
    start,
    wait_for_rows,
    wait_until,
    write_job,
    write_rows,
)
from tests.tiny_models import tiny_seed_x

pytestmark = pytest.mark.engine
TEXTS = [f"第{number}句：今天天气很好。" for number in range(24)] + ["长" * 3000]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random MistralForCausalLM with a sliding window, a tokenizer that adds BOS, and no chat template."""
    return tiny_seed_x(tmp_path_factory.mktemp("model"))


def job(folder: Path, model: Path, **sections: Any) -> Path:
    """A seed-x job of 25 rows on the CPU, the last of which does not fit."""
    folder.mkdir()
    rows = write_rows(folder / "rows.jsonl", TEXTS)
    base = {"model": {"name": str(model), "dtype": "float32", "max_model_len": 1024}, "engine": {"platform": "cpu"}}
    return write_job(folder, rows, **{name: base.get(name, {}) | sections.get(name, {}) for name in base | sections})


def test_seed_x_prompts_on_its_architecture(tmp_path: Path, model: Path) -> None:
    """Every row is sampled with a seed of its own: in batches of another size the texts are the same."""
    sampling = {"temperature": 1.0, "n": 2, "max_tokens": 12, "seed": 5, "logprobs": 0}
    runs = []
    for name, max_num_seqs in (("a", 16), ("b", 3)):
        path = job(tmp_path / name, model, decoding=sampling, engine={"max_num_seqs": max_num_seqs})
        ended = seedx_batch("run", path)
        assert ended.returncode == 0, ended.stderr
        runs.append(parts_of(tmp_path / name / "run").to_pylist())
    one, other = runs
    assert [row["status"] == "error" for row in one] == [False] * 24 + [True]
    assert one[-1]["error"].startswith("prompt_too_long: ")
    for row in one[:-1]:
        assert len(row["candidates"]) == 2
        assert row["candidates"][0]["text"] == row["translation"]
        assert row["num_output_tokens"] == sum(candidate["num_output_tokens"] for candidate in row["candidates"])
        assert all(candidate["score"] < 0 for candidate in row["candidates"])
    assert len({row["translation"] for row in one[:-1]}) > 12
    same = sum(
        row["candidates"] is not None and row["translation"] == twin["translation"]
        for row, twin in zip(one, other, strict=True)
    )
    assert same >= 23  # rounding may differ between batches, and with it a row
    started = next(
        line for line in ledger.read(tmp_path / "a/run/.state/ledger/rank-00000.jsonl") if line["event"] == "started"
    )
    assert started["platform"] == "cpu"
    assert started["args"]["max_num_seqs"] == 16
    assert "VLLM_CPU_OMP_THREADS_BIND" in started["env"]


@pytest.mark.parametrize(
    ("sections", "code", "told"),
    [
        ({"prompt": {"preset": "chat", "user": "{{ source }}"}}, 78, "the model has no chat template"),
        ({"prompt": {"preset": "raw", "template": "<s>{{ source }}"}}, 78, "twice"),
        ({"decoding": {"stop_token_ids": [-1]}}, 78, "decoding"),
        ({"engine": {"kv_cache_memory_bytes": 1000}}, 69, "log: "),
    ],
    ids=["no template", "two BOS", "refused parameter", "no memory"],
)
def test_faults_that_only_the_engine_knows(
    tmp_path: Path, model: Path, sections: dict[str, Any], code: int, told: str
) -> None:
    """What only the model or vLLM can tell ends the run with the right code and one clear message."""
    path = job(tmp_path / "a", model, **sections)
    tree = json.loads(path.read_text())
    if "prompt" in sections:
        path.write_text(json.dumps(tree | {"prompt": sections["prompt"]}))
    ended = seedx_batch("run", path)
    assert ended.returncode == code, ended.stderr
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def engine_of(folder: Path) -> psutil.Process:
    """The engine process of the run's worker, once rows have ended in it."""
    worker = psutil.Process(next(line["pid"] for line in ledger.read(folder / LEDGER) if line["event"] == "started"))
    return next(process for process in worker.children() if "EngineCore" in process.name())


def test_the_engine_process_is_killed(tmp_path: Path, model: Path) -> None:
    """kill -9 of vLLM's EngineCore in mid-run: it is noticed, another engine comes up, and every row is there once."""
    path = job(
        tmp_path / "a",
        model,
        decoding={"max_tokens": 400, "ignore_eos": True},
        engine={"max_num_seqs": 2},
        executor={"checkpoint_s": 0.1},
    )
    process = start(path, env={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
    wait_for_rows(path, 4)
    engine_of(tmp_path / "a").kill()
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 0, told
    assert "starting again" in told
    table = parts_of(tmp_path / "a" / "run")
    assert table["id"].to_pylist() == [f"r{number}" for number in range(25)]
    assert set(table["num_output_tokens"].to_pylist()[:-1]) == {400}
    assert sum(line["event"] == "restarting" for line in ledger.read(tmp_path / "a" / LEDGER)) == 1


def test_a_row_that_kills_the_engine(tmp_path: Path, model: Path) -> None:
    """A prompt in whose presence the process is killed becomes an error row, and all others are generated."""
    engine = {"max_num_seqs": 1, "logits_processors": ["tests.engine.poison:Poison"]}
    path = job(tmp_path / "a", model, engine=engine)
    write_rows(tmp_path / "a" / "rows.jsonl", [*TEXTS[:7], "☠", *TEXTS[8:]])
    tokens = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    ended = seedx_batch("run", path, env={"POISON_TOKEN": str(tokens["<0xE2>"])}, timeout=600)
    assert ended.returncode == 0, ended.stderr
    table = parts_of(tmp_path / "a" / "run").to_pylist()
    killed = [row["id"] for row in table if (row["error"] or "").startswith("engine_killed: ")]
    assert killed == ["r7"]
    assert [row["status"] == "error" for row in table] == [row["id"] in ("r7", "r24") for row in table]


def test_no_engine_outlives_its_run(tmp_path: Path, model: Path) -> None:
    """kill -9 of the worker and the launch ends every process of vLLM's within seconds."""
    path = job(
        tmp_path / "a",
        model,
        decoding={"max_tokens": 900, "ignore_eos": True},
        engine={"max_num_seqs": 2},
        executor={"grace_s": 4},
    )
    told = tmp_path / "a/run/.state/ledger/rank-00000.jsonl"
    launch = subprocess.Popen(
        [sys.executable, "-m", "seedx_batch", "run", str(path)],
        env=environment({"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}),
        start_new_session=True,
    )
    try:
        wait_until(lambda: launch.poll() is not None or "loaded" in {line["event"] for line in ledger.read(told)}, 400)
        (worker,) = psutil.Process(launch.pid).children()
        below = worker.children(recursive=True)
        names = {process.name() for process in below}
        assert any("EngineCor" in name for name in names), names
        assert any("Worker" in name for name in names), names
        launch.kill()
        worker.kill()
        launch.wait()
        began = time.monotonic()
        wait_until(lambda: all(has_ended(process.pid) for process in (worker, *below)), 60)
        print(f"all have ended after {time.monotonic() - began:.1f} s")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launch.pid, signal.SIGKILL)
        launch.wait()
