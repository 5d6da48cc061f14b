"""What every engine keeps to, whatever generates its texts."""

import time
from collections.abc import Iterable
from typing import Any

import pytest

from seedx_batch.engine import Engine
from seedx_batch.errors import RowRejected
from seedx_batch.records import EngineOutput, Request, RequestId, RowKey

GREEDY = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
SAMPLED = {"temperature": 1.0, "max_tokens": 12, "ignore_eos": True, "seed": 7}
PROMPTS = ["hello the world", "中国今天", "abc", "learn the language, the text", "翻译", "a", "9 + 1"]


def request_of(engine: Engine, position: int, prompt: str, params: dict[str, Any], sequence: int = 0) -> Request:
    """A request for a text."""
    return Request(RequestId(RowKey(0, position), sequence), engine.encode(prompt), params)


def answers(engine: Engine, requests: Iterable[Request]) -> dict[int, EngineOutput]:
    """What the engine answers, by position; each must come once and be in flight."""
    for request in requests:
        engine.add(request)
    outputs: dict[int, EngineOutput] = {}
    while engine.num_unfinished:
        before = engine.num_unfinished
        finished = engine.step()
        assert engine.num_unfinished == before - len(finished)
        for output in finished:
            assert output.request_id.row.position not in outputs
            outputs[output.request_id.row.position] = output
    return outputs


def text_of(engine: Engine, prompt: str, params: dict[str, Any]) -> str:
    """The first candidate's text."""
    return answers(engine, [request_of(engine, 0, prompt, params)])[0].candidates[0].text


def test_answers_every_request_exactly_once(engine: Engine) -> None:
    """More requests than run at a time are all answered once, and the counters agree with the answers."""
    steps, tokens = engine.num_steps, engine.num_output_tokens
    requests = [
        request_of(engine, position, PROMPTS[position % len(PROMPTS)], {**SAMPLED, "max_tokens": 1 + position % 9})
        for position in range(3 * engine.max_num_seqs)
    ]
    outputs = answers(engine, requests)
    assert sorted(outputs) == list(range(len(requests)))
    generated = sum(candidate.num_output_tokens for output in outputs.values() for candidate in output.candidates)
    assert engine.num_output_tokens - tokens == generated
    assert engine.num_steps - steps >= 9


def test_tells_its_limits_and_versions(engine: Engine) -> None:
    """The limits are those that it was built with, and it names what results depend on."""
    assert (engine.max_num_seqs, engine.max_model_len) == (4, 256)
    assert engine.versions["vllm"]


def test_idle_engine_steps_at_once(engine: Engine) -> None:
    """A step with nothing in flight gives nothing and counts nothing."""
    before = engine.num_steps
    assert engine.step() == []
    assert engine.num_steps == before


def test_tells_when_its_last_step_was(engine: Engine) -> None:
    """A step lies between the call and its return, and does not overlap the one before."""
    engine.add(request_of(engine, 0, "abc", GREEDY))
    ended = 0.0
    while engine.num_unfinished:
        called_at = time.monotonic()
        engine.step()
        assert max(called_at, ended) <= engine.last_step[0] <= engine.last_step[1] <= time.monotonic()
        ended = engine.last_step[1]


def test_aborted_requests_are_never_answered(engine: Engine) -> None:
    """Abort takes running and waiting requests out and leaves the others; unknown ids are passed over."""
    requests = [request_of(engine, position, "abc", GREEDY) for position in range(engine.max_num_seqs + 2)]
    for request in requests:
        engine.add(request)
    first = engine.step()
    assert first == []
    gone = [requests[0].id, requests[-1].id]
    engine.abort([*gone, RequestId(RowKey(9, 9), 9)])
    assert engine.num_unfinished == len(requests) - 2
    answered = [output.request_id for output in answers(engine, []).values()]
    assert sorted(answered) == [request.id for request in requests[1:-1]]


def test_aborting_everything_leaves_an_idle_engine(engine: Engine) -> None:
    """After all were aborted, even those of several candidates, the engine is idle and takes the same ids again."""
    params = {**SAMPLED, "n": 3}
    requests = [request_of(engine, position, "abc", params) for position in range(3)]
    for request in requests:
        engine.add(request)
    engine.step()
    engine.abort([request.id for request in requests])
    assert engine.num_unfinished == 0
    assert engine.step() == []
    assert len(answers(engine, requests)) == 3


def test_too_long_prompt_takes_nobody_with_it(engine: Engine) -> None:
    """A prompt that does not fit is rejected with its length and the limit, and the others are answered."""
    engine.add(request_of(engine, 0, "abc", GREEDY))
    with pytest.raises(RowRejected, match="300 tokens; at most 255 fit") as caught:
        engine.add(Request(RequestId(RowKey(0, 1), 0), [5] * 300, GREEDY))
    assert caught.value.kind == "prompt_too_long"
    engine.add(request_of(engine, 2, "abc", GREEDY))
    assert sorted(answers(engine, [])) == [0, 2]


def test_longest_prompt_still_gets_a_token(engine: Engine) -> None:
    """One token less than the context is admitted and gives one token, however many were asked for."""
    ids = [5] * (engine.max_model_len - 1)
    candidate = answers(engine, [Request(RequestId(RowKey(0, 0), 0), ids, GREEDY)])[0].candidates[0]
    assert (candidate.num_output_tokens, candidate.finish_reason) == (1, "length")
    with pytest.raises(RowRejected):
        engine.add(Request(RequestId(RowKey(0, 1), 0), [5, *ids], GREEDY))


def test_encode_rejects_what_cannot_fit(engine: Engine) -> None:
    """A long text is rejected while it is tokenised, a huge one before."""
    for text in ("abc " * 1000, "abc " * 2_500_000):
        with pytest.raises(RowRejected) as caught:
            engine.encode(text)
        assert caught.value.kind == "prompt_too_long"


def test_empty_prompt_is_rejected(engine: Engine) -> None:
    """A prompt without tokens is the row's fault."""
    with pytest.raises(RowRejected) as caught:
        engine.add(Request(RequestId(RowKey(0, 0), 0), [], GREEDY))
    assert caught.value.kind == "prompt_empty"
    assert engine.num_unfinished == 0


def test_same_id_twice_is_a_mistake(engine: Engine) -> None:
    """An id that is in flight cannot be added again: one of the answers would be lost."""
    engine.add(request_of(engine, 0, "abc", GREEDY))
    with pytest.raises(ValueError, match="unfinished"):
        engine.add(request_of(engine, 0, "abc", GREEDY))
    assert len(answers(engine, [])) == 1


def test_ids_come_back_as_they_were_given(engine: Engine) -> None:
    """Shard, position and sequence survive the way through the engine."""
    ids = [
        RequestId(RowKey(shard, position), sequence) for shard in (0, 12) for position in (0, 1) for sequence in (0, 3)
    ]
    for request_id in ids:
        engine.add(Request(request_id, engine.encode("abc"), GREEDY))
    seen = []
    while engine.num_unfinished:
        seen += [output.request_id for output in engine.step()]
    assert sorted(seen) == sorted(ids)


def test_greedy_is_a_function_of_the_prompt(engine: Engine) -> None:
    """Greedy decoding gives the same text again, and another prompt another."""
    assert text_of(engine, "hello the world", GREEDY) == text_of(engine, "hello the world", GREEDY)
    assert text_of(engine, "hello the world", GREEDY) != text_of(engine, "中国今天", GREEDY)


def test_seed_decides_the_sample(engine: Engine) -> None:
    """The same seed gives the same text, in any company; another seed another."""
    alone = text_of(engine, "hello", SAMPLED)
    crowd = [
        request_of(engine, position, prompt, {**SAMPLED, "seed": position}) for position, prompt in enumerate(PROMPTS)
    ]
    outputs = answers(engine, [*crowd, request_of(engine, 90, "hello", SAMPLED)])
    assert outputs[90].candidates[0].text == alone
    assert text_of(engine, "hello", {**SAMPLED, "seed": 8}) != alone


def test_order_does_not_matter(engine: Engine) -> None:
    """Greedy texts are the same in whatever order rows come."""
    requests = [request_of(engine, position, prompt, GREEDY) for position, prompt in enumerate(PROMPTS)]
    forward, backward = answers(engine, requests), answers(engine, requests[::-1])
    assert {key: output.candidates for key, output in forward.items()} == {
        key: output.candidates for key, output in backward.items()
    }


def test_max_tokens_ends_a_text(engine: Engine) -> None:
    """No more tokens than were asked for, and the reason is said."""
    for most in (1, 5, 30):
        output = answers(engine, [request_of(engine, 0, "abc", {**GREEDY, "max_tokens": most})])[0]
        candidate = output.candidates[0]
        assert (candidate.num_output_tokens, candidate.finish_reason) == (most, "length")


def test_stop_string_ends_a_text_and_is_cut(engine: Engine) -> None:
    """A text ends before the first stop string in it, for the reason "stop"."""
    whole = text_of(engine, "hello the world", {**GREEDY, "max_tokens": 24})
    stop = whole[6:9]
    assert stop.isprintable()
    assert "�" not in stop
    params = {**GREEDY, "max_tokens": 24, "stop": ["no such text", stop]}
    candidate = answers(engine, [request_of(engine, 0, "hello the world", params)])[0].candidates[0]
    assert candidate.text == whole[: whole.find(stop)]
    assert candidate.finish_reason == "stop"
    assert candidate.num_output_tokens < 24


def test_several_candidates_come_together(engine: Engine) -> None:
    """n texts of one prompt come in one answer, differ, and are the same again for the same seed."""
    params = {**SAMPLED, "n": 3, "logprobs": 0}
    first = answers(engine, [request_of(engine, 0, "abc", params)])[0]
    assert len(first.candidates) == 3
    assert len({candidate.text for candidate in first.candidates}) == 3
    assert all(candidate.score is not None and candidate.score < 0 for candidate in first.candidates)
    assert answers(engine, [request_of(engine, 0, "abc", params)])[0].candidates == first.candidates


def test_score_only_where_it_was_asked_for(engine: Engine) -> None:
    """Without logprobs a candidate has no score."""
    assert answers(engine, [request_of(engine, 0, "abc", GREEDY)])[0].candidates[0].score is None


def test_counts_the_prompt_that_it_was_given(engine: Engine) -> None:
    """The number of prompt tokens is the length of the ids; cached tokens are among them."""
    requests = [request_of(engine, position, prompt, GREEDY) for position, prompt in enumerate(PROMPTS)]
    for position, output in answers(engine, requests).items():
        assert output.num_prompt_tokens == len(requests[position].prompt_token_ids)
        assert 0 <= output.num_cached_tokens <= output.num_prompt_tokens


def test_params_of_a_job_pass(engine: Engine) -> None:
    """What a job asks for by default passes the check, and leaves nothing in flight."""
    engine.check_params(
        {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "n": 2, "max_tokens": 9, "stop": ["x"], "seed": 1}
    )
    assert engine.num_unfinished == 0
    assert engine.step() == []


STREAM = {"temperature": 0.0, "max_tokens": 6, "ignore_eos": True, "logprobs": 5}


def stream(engine: Engine, request: Request) -> list[EngineOutput]:
    """All that a streaming request is answered, one output for each step that told something."""
    engine.add(request)
    outputs = []
    while engine.num_unfinished:
        outputs += engine.step()
    return outputs


def test_a_stream_tells_every_place(engine: Engine) -> None:
    """A streaming request is told token by token, each with the likeliest in order; only the last answer ends it."""
    request = Request(RequestId(RowKey(0, 0), 0), engine.encode("hello the world"), STREAM, streams=True)
    prefilled, tokens = engine.num_prefilled_tokens, engine.num_output_tokens
    outputs = stream(engine, request)
    places = [place for output in outputs for place in output.places]
    assert len(places) == 6
    assert engine.num_output_tokens - tokens == 6
    assert engine.num_prefilled_tokens - prefilled == outputs[0].num_prompt_tokens - outputs[0].num_cached_tokens
    assert [bool(output.candidates) for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert outputs[-1].candidates[0].finish_reason == "length"
    for token_id, likeliest in places:
        assert token_id == likeliest[0][0]
        assert len({token for token, _ in likeliest}) == 5
        assert [logprob for _, logprob in likeliest] == sorted((logprob for _, logprob in likeliest), reverse=True)
        assert all(logprob <= 0 for _, logprob in likeliest)


def test_a_fork_goes_on_as_if_alone(engine: Engine) -> None:
    """A fork tells what a request with all its tokens tells, and computes one token of them, also of one given up."""
    prompt = engine.encode("learn the language, the text")
    whole = Request(RequestId(RowKey(0, 0), 0), prompt, {**STREAM, "max_tokens": 20}, streams=True)
    engine.add(whole)
    told = []
    while len(told) < 3:
        told += [place for output in engine.step() for place in output.places]
    ids = [*prompt, *(place.token_id for place in told[:2]), told[2].likeliest[1][0]]
    prefilled = engine.num_prefilled_tokens
    fork = Request(RequestId(RowKey(0, 0), 1), ids, STREAM, streams=True, fork_of=whole.id)
    engine.add(fork)
    engine.abort([whole.id])
    forked = []
    while engine.num_unfinished:
        forked += engine.step()
    assert {output.request_id for output in forked} == {fork.id}
    alone = stream(engine, Request(RequestId(RowKey(0, 1), 0), ids, STREAM, streams=True))
    of_fork, of_alone = ([place for output in one for place in output.places] for one in (forked, alone))
    assert [place.token_id for place in of_fork] == [place.token_id for place in of_alone]
    for one, other in zip(of_fork, of_alone, strict=True):
        assert dict(one.likeliest) == pytest.approx(dict(other.likeliest), abs=1e-3)
    assert forked[0].num_cached_tokens == len(ids) - 1
    assert engine.num_prefilled_tokens - prefilled == 1 + alone[0].num_prompt_tokens - alone[0].num_cached_tokens


def test_decodes_after_a_prompt(engine: Engine) -> None:
    """The text of a stream's tokens is what the same request is answered as a whole; special tokens have none."""
    prompt, eos = engine.encode("hello"), sorted(engine.eos_token_ids)[:1]
    assert engine.decode(eos) == ""
    outputs = stream(engine, Request(RequestId(RowKey(0, 0), 0), prompt, STREAM, streams=True))
    token_ids = [place.token_id for output in outputs for place in output.places]
    text = engine.decode([*token_ids, *eos], prompt)
    assert text == engine.decode(token_ids, prompt) != ""
    if engine.versions["vllm"] != "simulated":  # whose texts are not made of tokens
        whole = answers(engine, [Request(RequestId(RowKey(0, 0), 0), prompt, {**GREEDY, "max_tokens": 6})])[0]
        assert text == whole.candidates[0].text


def test_tells_its_room(engine: Engine) -> None:
    """There is room for at least one sequence of full length, in whole blocks."""
    assert engine.num_kv_tokens >= engine.max_model_len
    assert engine.num_kv_tokens % engine.block_size == 0
