"""The tiny model that the engine's tests share, and how the program itself would start it."""

import json
import os
from pathlib import Path

from seedx_batch import platforms
from seedx_batch.spec import EngineSpec, ModelSpec
from tests.tiny_models import tiny_seed_x

MAX_MODEL_LEN = 256
MAX_NUM_SEQS = 4
EXTRA_EOS = "界"
"""A character that the tiny model's generation_config.json makes an end of sequence too, as chat models' do."""


def make_model(folder: Path) -> Path:
    """A tiny Seed-X with a second end-of-sequence token."""
    tiny_seed_x(folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    eos = [2, vocabulary[EXTRA_EOS]]
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": eos}))
    return folder


def make_settings(model: Path, cache: Path, beam_width: int | None = None) -> platforms.EngineSettings:
    """What the program itself would start this model with, but small."""
    spec = ModelSpec(name=str(model), dtype="float32", max_model_len=MAX_MODEL_LEN)
    engine = EngineSpec.model_validate({"max_num_seqs": MAX_NUM_SEQS})
    return platforms.settings(spec, engine, model, 1, cache, os.environ, beam_width)
