"""Records made of numbers rather than by engines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seedx_batch.parity import recording
from seedx_batch.parity.recording import Floats, Header, Record, Recorded

VOCAB_SIZE = 50
NUM_PLACES = 12


def header(**changes: Any) -> Header:
    """What could have made a record."""
    given: dict[str, Any] = {
        "name": "vllm bfloat16",
        "engine": "vllm",
        "dtype": "bfloat16",
        "model": "m",
        "identity": {},
        "prompts": "card",
        "mark": "01234567",
        "max_tokens": NUM_PLACES,
        "scored": "own",
        "vocab_size": VOCAB_SIZE,
        "num_kept": None,
        "versions": {"vllm": "0.32.0"},
        "hardware": {"device": "cpu", "processor": "p"},
        "signature": "model:m",
    }
    return Header(**{**given, **changes})


def logits(seed: int, num_places: int = NUM_PLACES) -> Floats:
    """Logits of places, spread by about 3."""
    return (np.random.default_rng(seed).standard_normal((num_places, VOCAB_SIZE)) * 3).astype(np.float32)


def recorded(
    scores: Floats, *, free: Floats | None = None, scored: Sequence[int] | None = None, num_kept: int | None = None
) -> Recorded:
    """What an engine with these logits would have recorded; `scored` are tokens that it was given."""
    free = scores if free is None else free
    output = free.argmax(axis=1).tolist()
    return Recorded(
        name="fact",
        prompt="The capital of France is",
        prompt_token_ids=[1, 2, 3],
        output_token_ids=output,
        output_text=" ".join(map(str, output)),
        likeliest=recording.likeliest(free, recording.NUM_LIKELIEST),
        scored_token_ids=output if scored is None else list(scored),
        logits=scores if num_kept is None else None,
        kept=None if num_kept is None else recording.likeliest(scores, num_kept),
    )


def write(path: Path, prompts: Sequence[Recorded], **changes: Any) -> Record:
    """A record's file."""
    with recording.writing(path, header(**changes)) as writer:
        for one in prompts:
            writer.add(one)
    return Record(path)
