"""Beam search over the simulated engine's language model, against the same searches written down plainly."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedx_batch.decoding.beam import BeamDecoder, Ends, Search
from seedx_batch.engine.simulated import SimulatedEngine, _likeliest
from seedx_batch.records import Candidate, Completion, EngineOutput, RequestId, RowKey
from seedx_batch.spec import BeamDecoding

KEY = RowKey(2, 7)
Hypothesis = tuple[float, list[int], str]


def search_of(engine: SimulatedEngine, **decoding: Any) -> Search:
    """A search whose texts are the token ids."""
    spec = BeamDecoding.model_validate({"method": "beam", "num_return": decoding.get("beam_width", 4), **decoding})
    eos = frozenset() if spec.ignore_eos else engine.eos_token_ids
    ends = Ends(eos | frozenset(spec.stop_token_ids), spec.stop, engine.decode)
    return Search(
        spec, ends, engine.max_model_len, lambda ids, prompt: " ".join(map(str, ids)), lambda text: (text, {})
    )


def run(engine: SimulatedEngine, decoders: Sequence[BeamDecoder], late: random.Random | None = None) -> None:
    """Decodes rows side by side; with `late`, some of what a step tells is passed on only after the next ones."""
    for decoder in decoders:
        for request in decoder.start():
            engine.add(request)
    kept: list[EngineOutput] = []
    while any(decoder.completion is None for decoder in decoders):
        kept += engine.step()
        told = kept
        if late is not None and engine.num_unfinished:
            told = kept[: late.randrange(len(kept) + 1)]
        kept = kept[len(told) :]
        for output in told:
            decoder = next(one for one in decoders if one._key == output.request_id.row)
            wanted = decoder.advance(output)
            for request in wanted.requests:
                engine.add(request)
            engine.abort(wanted.aborts)
    assert engine.num_unfinished == 0


def decode(prompt: list[int], max_tokens: int, **decoding: Any) -> Completion:
    """One row's completion."""
    engine = SimulatedEngine(max_model_len=64)
    decoder = BeamDecoder(KEY, prompt, max_tokens, search_of(engine, **decoding))
    run(engine, [decoder])
    assert decoder.completion is not None
    return decoder.completion


def as_transformers(prompt: list[int], max_tokens: int, spec: BeamDecoding, ends: set[int]) -> list[Hypothesis]:
    """The search that `generate` does, over whole sequences."""
    width = spec.beam_width
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[Hypothesis] = []
    for length in range(1, max_tokens + 1):
        follow = [(s + more, [*ids, token]) for s, ids in running for token, more in _likeliest([*prompt, *ids])]
        follow = sorted(follow, key=lambda each: -each[0])[: max(2, 1 + len(ends)) * width]
        stops = [ids[-1] in ends for _, ids in follow]
        for (score, ids), stop in list(zip(follow, stops, strict=True))[:width]:
            if stop or length == max_tokens:
                ended.append((score / length**spec.length_penalty, ids, "stop" if stop else "length"))
        ended = sorted(ended, key=lambda each: -each[0])[:width]
        running = [each for each, stop in zip(follow, stops, strict=True) if not stop][:width]
        if len(ended) == width:
            never = spec.early_stopping == "never" and spec.length_penalty > 0
            hoped = running[0][0] / (max_tokens if never else length) ** spec.length_penalty
            if spec.early_stopping is True or hoped <= ended[-1][0]:
                break
    return ended


def as_vllm(prompt: list[int], max_tokens: int, spec: BeamDecoding, ends: set[int]) -> list[Hypothesis]:
    """The search that `LLM.beam_search` does: to the end, and every end counts."""
    width = spec.beam_width
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[Hypothesis] = []
    for length in range(1, max_tokens + 1):
        follow = [
            (s + more, [*ids, token]) for s, ids in running for token, more in _likeliest([*prompt, *ids])[: 2 * width]
        ]
        share = (len(prompt) + length - 1) ** spec.length_penalty
        ended += [(score / share, ids, "stop") for score, ids in follow if ids[-1] in ends]
        running = sorted((each for each in follow if each[1][-1] not in ends), key=lambda each: -each[0])[:width]
    share = (len(prompt) + max_tokens) ** spec.length_penalty
    ended += [(score / share, ids, "length") for score, ids in running]
    return sorted(ended, key=lambda each: -each[0])[:width]


SEARCHES = st.fixed_dictionaries(
    {
        "beam_width": st.integers(1, 6),
        "length_penalty": st.sampled_from([1.0, 0.0, 0.6, 2.0, -0.5]),
        "early_stopping": st.sampled_from([True, False, "never"]),
    }
)
PROMPTS = st.lists(st.lists(st.integers(2, 99), min_size=1, max_size=8), min_size=1, max_size=5)


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 14), SEARCHES, st.booleans(), st.none() | st.integers())
def test_gives_what_the_references_give(
    prompts: list[list[int]], max_tokens: int, decoding: dict[str, Any], as_vllm_does: bool, late: int | None
) -> None:
    """All hypotheses, scores and reasons are those of the plain search, in any company, however late answers come."""
    if as_vllm_does:
        decoding = {**decoding, "length_normalizer": "sequence", "early_stopping": "never"}
    engine = SimulatedEngine(30)
    search = search_of(engine, **decoding)
    decoders = [BeamDecoder(RowKey(0, position), prompt, max_tokens, search) for position, prompt in enumerate(prompts)]
    run(engine, decoders, None if late is None else random.Random(late))
    plain = as_vllm if as_vllm_does else as_transformers
    for decoder, prompt in zip(decoders, prompts, strict=True):
        assert decoder.completion is not None
        expected = plain(prompt, max_tokens, search.spec, {0})
        found = decoder.completion.candidates
        assert [one.finish_reason for one in found] == [reason for *_, reason in expected]
        assert [one.score for one in found] == pytest.approx([score for score, *_ in expected])
        texts = [" ".join(map(str, ids[:-1] if reason == "stop" else ids)) for _, ids, reason in expected]
        assert [one.text for one in found] == texts
        assert [one.num_output_tokens for one in found] == [len(ids) for _, ids, _ in expected]


@given(st.lists(st.integers(2, 99), min_size=1, max_size=8), st.integers(1, 5))
def test_asks_for_no_more_than_live_hypotheses_need(prompt: list[int], width: int) -> None:
    """Told step by step, the engine generates nothing in vain, and takes one step for each of the row's."""
    engine = SimulatedEngine(30)
    decoder = BeamDecoder(KEY, prompt, 12, search_of(engine, beam_width=width, early_stopping="never"))
    run(engine, [decoder])
    assert decoder.num_wasted_tokens == 0
    assert engine.num_steps == decoder._depth <= 12
    # A fork computes one token; only the first stream computes the prompt.
    assert engine.num_prefilled_tokens == len(prompt) + decoder._num_requests - 1


def test_counts_what_was_in_vain() -> None:
    """Where answers come late, streams go on with what no hypothesis comes to, and that is counted."""
    engine = SimulatedEngine(30)
    decoder = BeamDecoder(KEY, [5, 6], 12, search_of(engine))
    run(engine, [decoder], random.Random(3))
    assert decoder.num_wasted_tokens > 0


def test_text_is_that_of_the_best() -> None:
    """A row's text and reason are the best hypothesis's; as many are candidates as were asked for, best first."""
    whole = decode([3, 4, 5], 12)
    some = decode([3, 4, 5], 12, num_return=2)
    assert len(whole.candidates) == 4
    assert some.candidates == whole.candidates[:2]
    assert (some.text, some.finish_reason) == (some.candidates[0].text, some.candidates[0].finish_reason)
    scores = [one.score or 0.0 for one in whole.candidates]
    assert scores == sorted(scores, reverse=True)
    assert some.num_output_tokens == sum(one.num_output_tokens for one in some.candidates)


def test_status_follows_the_best() -> None:
    """What the budget cut is truncated, what ended of itself is ok."""
    cut, ended = decode([3, 4, 5], 1, ignore_eos=True), decode([3, 4, 5], 30, early_stopping=True)
    assert (cut.status, cut.finish_reason) == ("truncated", "length")
    assert (ended.status, ended.finish_reason) == ("ok", "stop")


def test_context_limit_truncates() -> None:
    """A row whose prompt nearly fills the context ends where that is full, as truncated."""
    completion = decode(list(range(2, 63)), 30, ignore_eos=True)
    assert {one.num_output_tokens for one in completion.candidates} == {64 - 61}
    assert completion.status == "truncated"


def test_stop_token_ends_a_hypothesis() -> None:
    """A further stop token ends hypotheses as the end of text does, and is none of the text."""
    free = decode([9, 8], 12, ignore_eos=True, beam_width=1)
    words = (free.text or "").split()
    ended = decode([9, 8], 12, ignore_eos=True, beam_width=1, stop_token_ids=[int(words[2])])
    assert (ended.text, ended.finish_reason) == (" ".join(words[:2]), "stop")
    assert ended.num_output_tokens == 3


def test_stop_string_ends_a_hypothesis() -> None:
    """A hypothesis whose text comes to a stop string, also one over several tokens, ends there and is cut before it."""
    engine = SimulatedEngine()
    free = BeamDecoder(KEY, [9, 8], 12, search_of(engine, ignore_eos=True, beam_width=1))
    run(engine, [free])
    assert free.completion is not None
    assert free.completion.text is not None
    text = engine.decode([int(word) for word in free.completion.text.split()])
    stop = text[6:13]  # begins in the second token and ends in the fourth
    search = search_of(engine, ignore_eos=True, beam_width=1, stop=["no such text", stop])
    search = Search(search.spec, search.ends, 64, engine.decode, lambda text: (f"<{text}>", {"more": "x"}))
    decoder = BeamDecoder(KEY, [9, 8], 12, search)
    run(engine, [decoder])
    assert decoder.completion is not None
    (stopped,) = decoder.completion.candidates
    assert (stopped.text, stopped.finish_reason) == (f"<{text[:6]}>", "stop")
    assert stopped.num_output_tokens == 4
    assert decoder.completion.extra == {"more": "x"}


def test_engine_that_gives_up_makes_an_error() -> None:
    """When the engine gives one stream up the row is an error with the reason, and its other streams are given up."""
    engine = SimulatedEngine()
    decoder = BeamDecoder(KEY, [9, 8], 12, search_of(engine))
    (first,) = decoder.start()
    engine.add(first)
    for request in decoder.advance(engine.step()[0]).requests:
        engine.add(request)
    assert len(decoder.unfinished) == 4
    wanted = decoder.advance(EngineOutput(RequestId(KEY, 0), (Candidate("", "abort", 1),), 2, 0))
    assert decoder.completion is not None
    assert (decoder.completion.status, decoder.completion.finish_reason) == ("error", "abort")
    assert len(wanted.aborts) == 3
    assert decoder.unfinished == []
