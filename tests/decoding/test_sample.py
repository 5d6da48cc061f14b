"""Sampling: one request in, one completion out."""

import pytest

from seedx_batch.decoding import Wanted
from seedx_batch.decoding.sample import SampleDecoder, base_params, row_seed
from seedx_batch.records import Candidate, Completion, EngineOutput, RequestId, RowKey
from seedx_batch.spec import SampleDecoding

KEY = RowKey(1, 2)


def decode(*candidates: Candidate) -> Completion:
    """What an answer with these candidates makes of a row."""
    decoder = SampleDecoder(KEY, [1, 2, 3], {}, lambda text: (text.strip(), {"explanation": None}))
    (request,) = decoder.start()
    assert decoder.completion is None
    assert decoder.unfinished == [request.id]
    assert decoder.advance(EngineOutput(request.id, candidates, 3, 2)) == Wanted([], [])
    assert decoder.unfinished == []
    assert decoder.completion is not None
    return decoder.completion


@pytest.mark.parametrize(
    ("reason", "status"),
    [("stop", "ok"), ("length", "truncated"), ("repetition", "truncated"), ("abort", "error"), (None, "error")],
)
def test_status_follows_the_finish_reason(reason: str | None, status: str) -> None:
    """stop is ok, what the budget or a loop ended is truncated, what the engine gave up is an error with a reason."""
    completion = decode(Candidate(" a ", reason, 4))
    assert completion.status == status
    assert (completion.error is None) == (status != "error")
    assert completion.text == (None if status == "error" else "a")
    assert (completion.num_prompt_tokens, completion.num_cached_tokens, completion.num_output_tokens) == (3, 2, 4)


def test_candidates_are_kept_when_there_are_several() -> None:
    """n > 1: all candidates, each cut as the text is; the first is the text, the tokens are those of all."""
    several = (Candidate("a", "stop", 1, -0.5), Candidate("b", "length", 2, -0.1))
    completion = decode(several[0], Candidate(" b ", "length", 2, -0.1))
    assert (completion.text, completion.candidates, completion.num_output_tokens) == ("a", several, 3)
    assert decode(several[0]).candidates == ()


def test_parameters_have_vllms_names() -> None:
    """The shared parameters hold vLLM's names, the preset's stops first and none twice, and nothing of ours."""
    spec = SampleDecoding.model_validate(
        {"temperature": 0.5, "stop": ["b", "x"], "structured_outputs": {"json": {"type": "object"}}, "dedup": True}
    )
    params = base_params(spec, ("[COT]", "x"))
    assert params["stop"] == ["[COT]", "x", "b"]
    assert params["structured_outputs"] == {"json": {"type": "object"}}
    assert not {"method", "dedup", "seed", "max_tokens", "logprobs"} & params.keys()


def test_row_seeds() -> None:
    """A row's seed depends on the job's seed and the row's id, and on nothing else."""
    seeds = {row_seed(job, name) for job in range(3) for name in ("a", "b", "1", "\ud800")}
    assert len(seeds) == 12
    assert row_seed(0, "a") == row_seed(0, "a")
    assert all(0 <= seed < 2**48 for seed in seeds)


def test_request_ids_name_the_row() -> None:
    """The request carries the row's key, the tokens and the parameters as they were given."""
    (request,) = SampleDecoder(KEY, [4, 5], {"max_tokens": 3}, lambda text: (text, {})).start()
    assert (request.id, request.prompt_token_ids, request.params) == (RequestId(KEY, 0), [4, 5], {"max_tokens": 3})
