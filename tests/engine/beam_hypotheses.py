"""A program for test_beam_references.py: the hypotheses that one system gives for prompts.

usage: beam_hypotheses.py SYSTEM MODEL CACHE < {"prompts": [[token id, ...], ...], "decoding": {...}, ...}
SYSTEM is ours, separate (ours, the engine in a process of its own), vllm or transformers. Prints one JSON object as its
last line: for every prompt the hypotheses, best first, as [token ids without the one that ends it, score], and of ours
how near the search came to a tie, and what the engine did.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from seedx_batch import platforms
from seedx_batch.ahead import Ahead
from seedx_batch.decoding import Admitted
from seedx_batch.decoding.beam import BeamDecoder, Ends, Search
from seedx_batch.engine import Engine
from seedx_batch.loop import Loop
from seedx_batch.records import Completion, Row, RowKey
from seedx_batch.spec import BeamDecoding, EngineSpec, ModelSpec

MAX_MODEL_LEN = 256
MAX_NUM_SEQS = 64


class Narrow(BeamDecoder):
    """Remembers the smallest difference between two log-probabilities that were ranked one after the other."""

    margin = float("inf")

    def _step(self) -> None:
        ranked = sorted(
            (logprob + more for logprob, node in self._live for _, more in node.likeliest or ()), reverse=True
        )
        ranked = ranked[: self._search.num_likeliest + 1]
        self.margin = min([self.margin, *(one - other for one, other in pairwise(ranked))])
        super()._step()


class Texts:
    """Stands where the shelf stands, and where rows in flight are noted."""

    def __init__(self) -> None:
        self.completions: dict[int, Completion] = {}

    def put(self, completion: Completion) -> None:
        self.completions[completion.key.position] = completion

    def write(self) -> None:
        pass

    def enter(self, key: RowKey) -> None:
        pass

    def leave(self, key: RowKey) -> None:
        pass

    def begin_step(self) -> None:
        pass

    def end_step(self) -> None:
        pass

    def save(self, then: Callable[[], None]) -> None:
        then()

    def publish_full(self) -> None:
        pass

    def wait(self) -> None:
        pass


def settings(model: Path, cache: Path, beam_width: int | None, given: dict[str, Any]) -> platforms.EngineSettings:
    """What the program itself would start this model with, but small."""
    spec = ModelSpec(name=str(model), dtype="float32", max_model_len=MAX_MODEL_LEN)
    engine = EngineSpec.model_validate({"max_num_seqs": MAX_NUM_SEQS, "block_size": 32, **given})
    return platforms.settings(spec, engine, model, 1, cache, os.environ, beam_width)


def ours(model: Path, cache: Path, asked: dict[str, Any], *, separate: bool) -> dict[str, Any]:
    """This program's."""
    spec = BeamDecoding.model_validate(asked["decoding"])
    chosen = settings(model, cache, spec.beam_width, asked.get("engine", {}))
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"} if separate else {}
    os.environ.update({**chosen.env, **own})
    from seedx_batch.engine.vllm import VllmEngine

    engine: Engine = VllmEngine(chosen.args)
    # Token ids in the place of texts.
    ends = Ends(frozenset() if spec.ignore_eos else engine.eos_token_ids, spec.stop, engine.decode)
    search = Search(
        spec, ends, engine.max_model_len, lambda ids, prompt: " ".join(map(str, ids)), lambda text: (text, {})
    )
    decoders = {
        position: Narrow(RowKey(0, position), prompt, spec.max_tokens.max, search)
        for position, prompt in enumerate(asked["prompts"])
    }
    texts = Texts()

    def rows() -> Iterator[Row]:
        for position in decoders:
            yield Row(RowKey(0, position), str(position), {})

    loop = Loop(
        ahead=Ahead(
            rows(), lambda row: Admitted(decoders[row.key.position], [], {"max_tokens": 1}, spec.beam_width), 1
        ),
        engine=engine,
        shelf=texts,
        flight=texts,
        window=engine.max_num_seqs,
        twins=None,
        checkpoint_s=1e9,
        stopping=lambda: None,
        on_checkpoint=lambda counters: None,
    )
    loop.run()
    engine.close()
    found = [texts.completions[position] for position in decoders]
    return {
        "hypotheses": [
            [[[int(word) for word in one.text.split()], one.score] for one in completion.candidates]
            for completion in found
        ],
        "finish_reasons": [completion.finish_reason for completion in found],
        "margins": [decoder.margin for decoder in decoders.values()],
        "num_steps": engine.num_steps,
        "num_places": sum(decoder._depth for decoder in decoders.values()),
        "num_wasted_tokens": loop.counters.num_wasted_tokens,
        "num_engine_tokens": engine.num_output_tokens,
        "num_forks": sum(decoder._num_requests - 1 for decoder in decoders.values()),
        "num_prefilled_tokens": engine.num_prefilled_tokens,
    }


def by_vllm(model: Path, cache: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """`LLM.beam_search`'s."""
    spec = BeamDecoding.model_validate(asked["decoding"])
    chosen = settings(model, cache, None, asked.get("engine", {}))
    os.environ.update(chosen.env)
    from vllm import LLM
    from vllm.sampling_params import BeamSearchParams

    llm = LLM(**chosen.args)
    eos = llm.get_tokenizer().eos_token_id
    params = BeamSearchParams(
        beam_width=spec.beam_width,
        max_tokens=spec.max_tokens.max,
        ignore_eos=spec.ignore_eos,
        length_penalty=spec.length_penalty,
    )
    prompts = asked["prompts"]
    found = []
    for prompt, output in zip(
        prompts, llm.beam_search([{"prompt_token_ids": prompt} for prompt in prompts], params), strict=True
    ):
        hypotheses = []
        for sequence in output.sequences:
            token_ids = sequence.tokens[len(prompt) :]
            num_tokens = len(sequence.tokens) - (token_ids[-1] == eos)
            score = sequence.cum_logprob / num_tokens**spec.length_penalty
            hypotheses.append([token_ids[:-1] if token_ids[-1] == eos else token_ids, score])
        found.append(hypotheses)
    return {"hypotheses": found}


def by_transformers(model: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """`generate`'s, all prompts in one batch, padded on the left."""
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    import torch
    from transformers import AutoModelForCausalLM

    spec = BeamDecoding.model_validate(asked["decoding"])
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    eos = loaded.generation_config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos])
    prompts = asked["prompts"]
    longest = max(map(len, prompts))
    output = loaded.generate(
        torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        num_beams=spec.beam_width,
        num_return_sequences=spec.num_return,
        max_new_tokens=spec.max_tokens.max,
        length_penalty=spec.length_penalty,
        early_stopping=spec.early_stopping,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    hypotheses = []
    for sequence, score in zip(output.sequences[:, longest:].tolist(), output.sequences_scores.tolist(), strict=True):
        end = next((place for place, token_id in enumerate(sequence) if token_id in ends), None)
        # Without an end a hypothesis has all the tokens that were asked for.
        hypotheses.append([sequence[: spec.max_tokens.max if end is None else end], score])
    width = spec.num_return
    return {"hypotheses": [hypotheses[place : place + width] for place in range(0, len(hypotheses), width)]}


if __name__ == "__main__":
    system, folder, cache = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    asked = json.load(sys.stdin)
    if system == "transformers":
        print(json.dumps(by_transformers(folder, asked)))
    elif system == "vllm":
        print(json.dumps(by_vllm(folder, cache, asked)))
    else:
        print(json.dumps(ours(folder, cache, asked, separate=system == "separate")))
