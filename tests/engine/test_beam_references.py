"""Beam search on the real engine against the real references, in float32, hypothesis by hypothesis."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import CACHE
from tests.tiny_models import tiny_seed_x

pytestmark = pytest.mark.engine

PROGRAM = Path(__file__).with_name("beam_hypotheses.py")
ROOT = Path(__file__).parents[2]
NUM_PROMPTS = 64
NEAR_TIE = 1e-4
"""Two log-probabilities closer than this may be ranked either way: kernels differ by some 1e-6 in float32."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Seed-X whose texts end now and then."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tiny_seed_x(tmp_path_factory.mktemp("beam"))
    weights = load_file(folder / "model.safetensors")
    ends = torch.randn(64, generator=torch.Generator().manual_seed(5)) * 0.4
    weights["lm_head.weight"][2] = ends
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Prompts of 4 to 90 tokens, letters only."""
    draw = random.Random(1)
    return [[1, *draw.choices(range(259, 330), k=draw.randrange(3, 90))] for _ in range(NUM_PROMPTS)]


def hypotheses(
    system: str, model: Path, prompts: list[list[int]], *, engine: dict[str, Any] | None = None, **decoding: Any
) -> dict[str, Any]:
    """What a system gives, in a process of its own."""
    asked = {"prompts": prompts, "decoding": {"method": "beam", "num_return": 4, **decoding}, "engine": engine or {}}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), system, str(model), str(CACHE)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check_same(found: dict[str, Any], reference: dict[str, Any]) -> None:
    """Every row has the reference's hypotheses and scores; one that has not met a near-tie, and those are few."""
    excused = 0
    for one, other, margin in zip(found["hypotheses"], reference["hypotheses"], found["margins"], strict=True):
        same = [ids for ids, _ in one] == [ids for ids, _ in other]
        if same:
            assert [score for _, score in one] == pytest.approx([score for _, score in other], abs=1e-3)
        else:
            assert margin < NEAR_TIE, (margin, one, other)
            excused += 1
    assert excused <= NUM_PROMPTS // 16


@pytest.mark.parametrize(
    "decoding",
    [{}, {"early_stopping": True, "length_penalty": 0.6}, {"early_stopping": "never", "beam_width": 5}],
    ids=["default", "early", "never"],
)
def test_gives_what_transformers_gives(model: Path, prompts: list[list[int]], decoding: dict[str, Any]) -> None:
    """The default search is that of `generate(num_beams=...)`, for each of its ways to stop, all hypotheses."""
    found = hypotheses("ours", model, prompts, max_tokens=24, **decoding)
    assert {"stop", "length"} == set(found["finish_reasons"])
    assert found["num_wasted_tokens"] == 0
    check_same(found, hypotheses("transformers", model, prompts, max_tokens=24, **decoding))


def test_gives_what_vllm_gives(model: Path, prompts: list[list[int]]) -> None:
    """With vLLM's normaliser and without early stopping it is `LLM.beam_search`, in one process as in two."""
    decoding = {"early_stopping": "never", "length_normalizer": "sequence", "max_tokens": 12}
    found = hypotheses("ours", model, prompts, **decoding)
    check_same(found, hypotheses("vllm", model, prompts, **decoding))
    separate = hypotheses("separate", model, prompts, **decoding)
    check_same(separate, found)
    # The engine waits for its reader: it runs ahead of nobody, and no token is in vain.
    assert separate["num_wasted_tokens"] == 0
    assert separate["num_steps"] <= found["num_steps"] + 8
    # A fork computes one token.
    assert found["num_prefilled_tokens"] == sum(map(len, prompts)) + found["num_forks"]


def test_gives_the_same_where_room_is_short(model: Path, prompts: list[list[int]]) -> None:
    """Where the loop admits more than there is room for, vLLM pushes streams out and back, and nothing else changes."""
    rows = prompts[:24]
    short = hypotheses("ours", model, rows, max_tokens=20, engine={"num_gpu_blocks_override": 21})
    plenty = hypotheses("ours", model, rows, max_tokens=20)
    assert short["num_steps"] > plenty["num_steps"]
    check_same(short, plenty)
