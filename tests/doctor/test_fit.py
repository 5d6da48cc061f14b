"""Whether a job fits, in numbers that a reader can check: weights, keys and values, what is left."""

import json
from pathlib import Path
from typing import Any

import pytest

from seedx_batch import memory
from seedx_batch.doctor import Finding, fit
from seedx_batch.memory import Demand
from seedx_batch.spec import JobSpec

GIB = 1 << 30
SEED_X = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
PER_TOKEN = 128 << 10
ONE = PER_TOKEN * (8192 + 256)
NUM_BYTES = 15_028_543_488


def job(name: str, **engine: Any) -> JobSpec:
    """A job with a model of this name."""
    return JobSpec.model_validate(
        {
            "name": "x",
            "input": {"path": "x.jsonl"},
            "prompt": {"preset": "seed-x", "target_lang": "en"},
            "model": {"name": name},
            "engine": engine,
        }
    )


def demand(**args: Any) -> Demand:
    """Seed-X with 16 sequences of 8,192 tokens."""
    needed = memory.demand(SEED_X, NUM_BYTES, args, 8192, 16)
    assert needed is not None
    return needed


def test_seed_x_in_numbers() -> None:
    """14 GiB of weights and 128 KiB for each token, of a known model that is not here as of one that is."""
    needed = fit.demand(job("ByteDance-Seed/Seed-X-Instruct-7B"), None, {"max_model_len": 8192, "max_num_seqs": 16})
    assert isinstance(needed, Demand)
    assert needed == Demand(NUM_BYTES, PER_TOKEN, 8192, 16)
    assert (needed.one, needed.all) == (ONE, 16 * ONE)


def test_a_model_in_a_folder(tmp_path: Path) -> None:
    """Sizes of files and the config's own context count; vLLM's default is 256 sequences."""
    (tmp_path / "config.json").write_text(json.dumps(SEED_X))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(5 * GIB)
    assert fit.demand(job(str(tmp_path)), tmp_path, {}) == Demand(5 * GIB, PER_TOKEN, 32768, 256)


def test_what_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    """Of a model that is neither here nor known, and of a config that does not say, no numbers are told."""
    (tmp_path / "config.json").write_text("{}")
    for name, folder in (("org/model", None), (str(tmp_path), tmp_path)):
        finding = fit.demand(job(name), folder, {})
        assert isinstance(finding, Finding)
        assert (finding.state, finding.found[:9]) == ("note", "not known")


@pytest.mark.parametrize(
    ("args", "weights", "per_token"),
    [
        ({}, 1, 1),
        ({"tensor_parallel_size": 2}, 1 / 2, 1 / 2),
        ({"tensor_parallel_size": 16}, 1 / 16, 1 / 8),  # eight heads: a rank has a whole one
        ({"pipeline_parallel_size": 2, "tensor_parallel_size": 4}, 1 / 8, 1 / 8),
        ({"dtype": "float32"}, 2, 2),
        ({"dtype": "float16"}, 1, 1),
        ({"kv_cache_dtype": "fp8"}, 1, 1 / 2),
        ({"kv_cache_dtype": "fp8", "dtype": "float32"}, 2, 1 / 2),
    ],
)
def test_each_device_has_its_part(args: dict[str, Any], weights: float, per_token: float) -> None:
    """Ranks divide weights and heads, stages divide layers, and a dtype that the job asks for is what is held."""
    needed = demand(**args)
    assert (needed.weights, needed.per_token) == (int(NUM_BYTES * weights), int(PER_TOKEN * per_token))


def test_quantized_weights_and_latent_attention() -> None:
    """Quantized weights stay as small as their files, and a latent vector is not multiplied by heads."""
    quantized = memory.demand(SEED_X | {"quantization_config": {"bits": 4}}, GIB, {"dtype": "float32"}, 128, 1)
    latent = SEED_X | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    divided = memory.demand(latent, GIB, {"tensor_parallel_size": 8}, 128, 1)
    assert quantized is not None
    assert divided is not None
    assert (quantized.weights, divided.per_token) == (GIB, 32 * (512 + 64) * 2)


def test_on_a_large_card() -> None:
    """Everything fits into 60 GiB, which is told in numbers."""
    finding = fit.on_device(demand(), 60 * GIB, 0.9)
    assert finding.state == "ok"
    for told in (
        "weights 14.0 GiB",
        "keys and values 16.5 GiB",
        "16 x 8,192 tokens of 128 KiB",
        "takes 54.0",
        "all 16",
    ):
        assert told in finding.found


def test_on_a_small_card() -> None:
    """Where not all full sequences fit at a time, it is told how many do, and up to what mean length none waits."""
    finding = fit.on_device(demand(), 28 * GIB, 0.9)
    room = int(28 * GIB * 0.9) - NUM_BYTES - memory.PROGRAM
    assert (finding.state, finding.wanted) == ("warn", f"{room // ONE} of 16 sequences fit at full length")
    assert f"below {room // (PER_TOKEN * 16):,} tokens on average" in finding.remedy


def test_on_a_card_that_is_too_small() -> None:
    """Where not one full sequence fits, the length that would is told, and one fits with it; or a smaller model."""
    finding = fit.on_device(demand(), 18 * GIB, 0.9)
    assert finding.state == "fault"
    length = int(finding.remedy.split("max_model_len to ")[1].split(",")[0])
    shorter = memory.demand(SEED_X, NUM_BYTES, {}, length, 1)
    assert shorter is not None
    assert fit.on_device(shorter, 18 * GIB, 0.9).state == "ok"
    longer = memory.demand(SEED_X, NUM_BYTES, {}, length + 128, 1)
    assert longer is not None
    assert fit.on_device(longer, 18 * GIB, 0.9).state == "fault"
    assert "take a smaller" in fit.on_device(demand(), 16 * GIB, 0.9).remedy


def test_on_no_card() -> None:
    """Where no device's memory is known, it is told what cards of both usual sizes would do."""
    finding = fit.on_device(demand(), None, 0.9)
    assert finding.state == "note"
    assert "of 64 GiB 16 of 16 sequences fit at full length; of 32 GiB 9 of 16" in " ".join(finding.found.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seed-X's config, with weights of its size."""
    (tmp_path / "config.json").write_text(json.dumps(SEED_X))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(NUM_BYTES)
    return tmp_path


def test_on_a_cpu(folder: Path) -> None:
    """What is set aside and what is free decide; what is to be lowered is told with what to."""
    args = {"model": str(folder), "kv_cache_memory_bytes": 4 * GIB, "max_model_len": 8192, "max_num_seqs": 16}
    fits = fit.on_cpu(demand(), args, 24 * GIB)
    assert (fits.state, fits.found.endswith("3 of 16 at full length, more of shorter ones")) == ("ok", True)
    full = fit.on_cpu(demand(), args, 18 * GIB)
    assert (full.state, full.remedy.startswith("lower engine.kv_cache_memory_bytes to ")) == ("fault", True)
    small = fit.on_cpu(demand(), args | {"kv_cache_memory_bytes": GIB}, 24 * GIB)
    assert (small.state, small.wanted) == ("fault", "1.0 GiB for one full sequence")
    # float32 weights are twice what the file holds.
    assert fit.on_cpu(demand(dtype="float32"), args | {"dtype": "float32"}, 32 * GIB).state == "fault"
    assert fit.on_cpu(demand(), {"model": str(folder), "gpu_memory_utilization": 0.5}, GIB).state == "note"
