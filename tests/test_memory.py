"""What an engine's memory goes to, and the numbers to lower when it is not enough."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from seedx_batch import memory

GIB = 1 << 30
PER_TOKEN = 32 * 2 * 8 * 128 * 2  # layers, keys and values, heads, width of a head, bytes: 128 KiB


@pytest.fixture
def args(tmp_path: Path) -> dict[str, Any]:
    """A 7B model in 16 bits, 14 GiB of it, with 8 GiB for keys and values of 64 sequences."""
    described = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(14 * GIB)
    return {
        "model": str(tmp_path),
        "dtype": "bfloat16",
        "max_model_len": 8192,
        "max_num_seqs": 64,
        "kv_cache_memory_bytes": 8 * GIB,
    }


def test_enough(args: dict[str, Any]) -> None:
    """Where everything fits, memory was not the reason, and nothing is advised."""
    assert memory.advice(args, "it was killed by SIGKILL", 26 * GIB) == ""


@pytest.mark.parametrize("free_gib", [17, 18, 20, 24])
def test_what_is_advised_fits(args: dict[str, Any], free_gib: int) -> None:
    """What to lower is told with what to: with that it fits, and with what it says nothing more is advised."""
    told = memory.advice(args, "it was killed by SIGKILL", free_gib * GIB)
    assert "the weights take 14.0 GiB, keys and values 8.0 GiB" in told
    lowered = dict(re.findall(r"(?:engine|model)\.(\w+) to (\d+)", told))
    assert "kv_cache_memory_bytes" in lowered
    better = args | {name: int(value) for name, value in lowered.items()}
    assert memory.advice(better, "", free_gib * GIB) == ""
    assert better["kv_cache_memory_bytes"] >= PER_TOKEN * min(better["max_model_len"], 1024)
    # One more than a tenth above would not fit: nobody is told to do with much less than there is.
    assert memory.advice(better | {"kv_cache_memory_bytes": better["kv_cache_memory_bytes"] + GIB}, "", free_gib * GIB)


def test_weights_that_do_not_fit(args: dict[str, Any]) -> None:
    """Where even one sequence finds no room, no number of the job's can help."""
    told = memory.advice(args, "it was killed by SIGKILL", 15 * GIB)
    assert "one sequence needs 15.6 GiB: take a smaller model, or a larger machine" in told


def test_vllm_reckons_itself(args: dict[str, Any]) -> None:
    """On a device vLLM says what would fit; that is told by the job's name for it."""
    del args["kv_cache_memory_bytes"]
    said = "... the estimated maximum model length is 4864. Try increasing ..."
    assert memory.advice(args, said, GIB) == "lower model.max_model_len to 4864, as vLLM reckons"
    assert memory.advice(args, "something else", GIB) == ""


def test_weights_in_two_formats_count_once(args: dict[str, Any], tmp_path: Path) -> None:
    """Of a folder that holds older files too only safetensors are loaded."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 100)
    assert memory.weight_bytes(tmp_path) == 14 * GIB
    (tmp_path / "model.safetensors").unlink()
    assert memory.weight_bytes(tmp_path) == 100
