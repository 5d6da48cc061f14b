"""The simulated engine's own promises: its clock, its batch, its faults."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedx_batch.engine import Engine
from seedx_batch.engine.simulated import SimulatedEngine, StepCost
from seedx_batch.errors import EngineDied, RowRejected, SpecError
from seedx_batch.records import EngineOutput, Request, RequestId, RowKey


def request_of(position: int, ids: list[int], **params: object) -> Request:
    """A greedy request unless the params say otherwise."""
    return Request(RequestId(RowKey(0, position), 0), ids, {"temperature": 0.0, "max_tokens": 16, **params})


def drain(engine: Engine) -> list[EngineOutput]:
    """Everything that is in flight."""
    outputs = []
    while engine.num_unfinished:
        outputs += engine.step()
    return outputs


def test_is_an_engine() -> None:
    """It has the protocol's shape (mypy checks it), without arguments."""
    engine: Engine = SimulatedEngine()
    assert engine.num_unfinished == 0


@given(
    rows=st.lists(
        st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 20), st.integers(1, 3)),
        max_size=25,
    ),
    max_num_seqs=st.integers(3, 9),
)
def test_continuous_batching(rows: list[tuple[list[int], int, int]], max_num_seqs: int) -> None:
    """Every request is answered once, no text depends on its company, and steps lie between the two bounds."""
    engine = SimulatedEngine(max_num_seqs)
    for position, (ids, max_tokens, n) in enumerate(rows):
        engine.add(request_of(position, ids, max_tokens=max_tokens, n=n, temperature=0.5, seed=3))
    outputs = {output.request_id.row.position: output for output in drain(engine)}
    assert sorted(outputs) == list(range(len(rows)))
    lengths = []
    for position, (ids, max_tokens, n) in enumerate(rows):
        alone = SimulatedEngine()
        alone.add(request_of(position, ids, max_tokens=max_tokens, n=n, temperature=0.5, seed=3))
        assert drain(alone) == [outputs[position]]
        lengths += [candidate.num_output_tokens for candidate in outputs[position].candidates]
        assert all(1 <= length <= max_tokens for length in lengths[-n:])
    assert engine.num_output_tokens == sum(lengths)
    # From every sequence always at work to one after the other.
    assert -(-sum(lengths) // max_num_seqs) <= engine.num_steps <= sum(lengths)


def test_batch_is_full_while_rows_wait() -> None:
    """With rows of one length the number of steps is exactly that of full batches."""
    engine = SimulatedEngine(max_num_seqs=4)
    for position in range(10):
        engine.add(request_of(position, [1], max_tokens=5, ignore_eos=True))
    finished = []
    while engine.num_unfinished:
        finished.append(len(engine.step()))
    assert finished == [0, 0, 0, 0, 4, 0, 0, 0, 0, 4, 0, 0, 0, 0, 2]


def test_freed_sequence_is_taken_in_the_next_step() -> None:
    """A short row's place goes to a waiting row while the long row runs on."""
    engine = SimulatedEngine(max_num_seqs=2)
    for position, length in enumerate((6, 2, 3)):
        engine.add(request_of(position, [1], max_tokens=length, ignore_eos=True))
    order = [output.request_id.row.position for output in drain(engine)]
    assert (order, engine.num_steps) == ([1, 2, 0], 6)


def test_clock_counts_steps_sequences_and_prefill() -> None:
    """Virtual time is the cost of every step; no real time passes."""
    engine = SimulatedEngine(2, cost=StepCost(step_s=1.0, per_sequence_s=0.1, per_prefilled_token_s=0.01))
    engine.add(request_of(0, [1] * 7, max_tokens=2, ignore_eos=True))
    engine.add(request_of(1, [1] * 3, max_tokens=1, ignore_eos=True))
    drain(engine)
    assert engine.clock_s == pytest.approx((1.0 + 2 * 0.1 + 10 * 0.01) + (1.0 + 0.1))


def test_greedy_ignores_the_seed() -> None:
    """At temperature 0 the prompt alone decides; above it the seed and the temperature do too."""
    engine = SimulatedEngine()
    for position, (temperature, seed) in enumerate([(0.0, 1), (0.0, 2), (1.0, 1), (1.0, 2), (0.5, 1)]):
        engine.add(request_of(position, [1, 2], temperature=temperature, seed=seed, ignore_eos=True))
    texts = {output.request_id.row.position: output.candidates[0].text for output in drain(engine)}
    assert texts[0] == texts[1]
    assert len(set(texts.values())) == 4


def test_tokens_are_four_characters() -> None:
    """A text of the engine's, encoded again, has as many tokens as were counted, and BOS."""
    engine = SimulatedEngine()
    engine.add(request_of(0, [1, 2], max_tokens=9, ignore_eos=True))
    candidate = drain(engine)[0].candidates[0]
    assert candidate.num_output_tokens == 9
    assert len(engine.encode(candidate.text)) == 10
    assert engine.encode("") == [1]


@given(st.text(max_size=60))
def test_encoding_is_stable(text: str) -> None:
    """Any text, lone surrogates too, has tokens that depend on it alone."""
    ids = SimulatedEngine().encode(text)
    assert ids == SimulatedEngine().encode(text)
    assert len(ids) == 1 + -(-len(text) // 4)


def test_encodes_messages() -> None:
    """Roles and order of messages are part of the prompt."""
    engine = SimulatedEngine()
    user, system = {"role": "user", "content": "a"}, {"role": "system", "content": "a"}
    prompts = ([user], [system], [user, system], [system, user])
    assert len({tuple(engine.encode(list(prompt))) for prompt in prompts}) == 4  # type: ignore[arg-type]


def test_dies_when_told_to() -> None:
    """At the given step the engine dies, and stays dead."""
    engine = SimulatedEngine(die_at_step=3)
    engine.add(request_of(0, [1], max_tokens=9, ignore_eos=True))
    assert engine.step() == engine.step() == []
    with pytest.raises(EngineDied, match="step 3"):
        engine.step()
    with pytest.raises(EngineDied):
        engine.step()
    with pytest.raises(EngineDied):
        engine.add(request_of(1, [1]))
    engine.abort([RequestId(RowKey(0, 0), 0)])
    engine.close()


def test_rejects_what_it_is_told_to() -> None:
    """A row that the test wants refused is refused; the others are answered."""
    engine = SimulatedEngine(rejects={RequestId(RowKey(0, 1), 0)})
    engine.add(request_of(0, [1]))
    with pytest.raises(RowRejected):
        engine.add(request_of(1, [1]))
    assert len(drain(engine)) == 1


def test_more_candidates_than_sequences() -> None:
    """A job that asks for more texts than run at a time is refused at the start."""
    with pytest.raises(SpecError, match="max_num_seqs"):
        SimulatedEngine(2).check_params({"n": 3})


def test_close_forgets_everything() -> None:
    """After close nothing is in flight; a second close does nothing."""
    engine = SimulatedEngine()
    engine.add(request_of(0, [1]))
    engine.close()
    engine.close()
    assert engine.num_unfinished == 0
