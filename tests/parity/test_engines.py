"""vLLM against transformers on a tiny model, both real, by the command line; a planted fault must not pass."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seedx_batch.parity.recording import Record
from tests.engine.conftest import CACHE
from tests.jobs import environment
from tests.tiny_models import tiny_seed_x

pytestmark = pytest.mark.engine

NUM_TOKENS = "16"
FAULTY = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Seed-X, `model`, and the same with one tensor a twentieth too large, `faulty`."""
    from safetensors.torch import load_file, save_file

    made = tmp_path_factory.mktemp("parity")
    tiny_seed_x(made / "model")
    shutil.copytree(made / "model", made / "faulty")
    weights = load_file(made / "model/model.safetensors")
    weights[FAULTY] = weights[FAULTY] * 1.05
    save_file(weights, made / "faulty/model.safetensors", metadata={"format": "pt"})
    return made


def parity(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a folder."""
    settings = ["--set", "engine.platform=cpu", "--set", "engine.max_num_seqs=4", "--set", "model.max_model_len=256"]
    given = [*arguments, *([] if arguments[0] == "compare" else settings)]
    return subprocess.run(
        [sys.executable, "-m", "seedx_batch", "parity", *given],
        cwd=folder,
        env=environment({"SEEDX_BATCH_CACHE": str(CACHE)}),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    """What `parity` says of the model in bfloat16."""
    ended = parity(folder, "model", "--set", "model.dtype=bfloat16", "--max-tokens", NUM_TOKENS, "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


@pytest.fixture(scope="module")
def reference(folder: Path) -> Path:
    """The record of transformers in float32."""
    asked = ("record", "model", "--engine", "transformers", "--dtype", "float32", "--max-tokens", NUM_TOKENS)
    ended = parity(folder, *asked, "-o", "reference.parquet")
    assert ended.returncode == 0, ended.stderr
    return folder / "reference.parquet"


def test_bfloat16_is_as_good_as_the_noise_floor(told: dict[str, Any]) -> None:
    """vLLM's bfloat16 is no further from float32 than transformers' is, and all places of all prompts were scored."""
    engine, floor, other = (one["totals"] for one in told["comparisons"])
    assert told["comparisons"][0]["distributions"].startswith("the whole vocabulary")
    assert engine["num_places"] == floor["num_places"] == other["num_places"] == engine["num_tokens"]
    for figure in ("relative_error", "cosine_distance", "rmse", "kl"):
        assert 0.3 < engine[figure] / floor[figure] < 2
        assert other[figure] < 2 * floor[figure]
    assert told["verdict"]["passed"]


def test_records_of_two_machines(folder: Path, reference: Path) -> None:
    """A record of vLLM's own continuations in float32 is the reference's, compared without an engine."""
    asked = ("record", "model", "--set", "model.dtype=float32", "--max-tokens", NUM_TOKENS)
    ended = parity(folder, *asked, "-o", "engine.parquet")
    assert ended.returncode == 0, ended.stderr
    ended = parity(folder, "compare", "reference.parquet", "engine.parquet", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["comparisons"][0]["totals"]["relative_error"] < 1e-5
    engine, other = Record(folder / "engine.parquet"), Record(reference)
    for number in range(len(other)):
        assert engine[number].output_token_ids == other[number].output_token_ids
        assert np.allclose(engine[number].likeliest.logprobs, other[number].likeliest.logprobs, atol=1e-4)


def test_a_planted_fault_fails(folder: Path, reference: Path) -> None:
    """With one weight tensor a twentieth too large the model fails against the record of the right one."""
    ended = parity(folder, "faulty", "--set", "model.dtype=float32", "--against", str(reference), "--json")
    assert ended.returncode == 65, ended.stderr
    totals = json.loads(ended.stdout)["comparisons"][0]["totals"]
    assert 0.01 < totals["relative_error"] < 0.2
    assert totals["num_places"] == sum(len(one.output_token_ids) for one in Record(reference).prompts())


def test_an_engine_that_breaks_is_told(folder: Path) -> None:
    """A model without weights ends with 69 and the reason, and leaves no record."""
    shutil.copytree(folder / "model", folder / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    ended = parity(folder, "record", "empty", "--engine", "transformers", "-o", "none.parquet")
    assert ended.returncode == 69
    assert "transformers cannot load" in ended.stderr
    assert "safetensors" in ended.stderr
    assert not (folder / "none.parquet").exists()
