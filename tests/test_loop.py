"""The loop, with the simulated engine and a shelf that only remembers."""

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedx_batch.decoding import Admitted
from seedx_batch.decoding.sample import SampleDecoder
from seedx_batch.engine.simulated import SimulatedEngine
from seedx_batch.errors import EngineDied, RowRejected
from seedx_batch.loop import Counters, Loop
from seedx_batch.records import Completion, Request, RequestId, Row, RowKey
from seedx_batch.twins import Twins


class Remembering:
    """Stands where the shelf stands."""

    def __init__(self) -> None:
        self.unsaved: dict[RowKey, Completion] = {}
        self.saved: dict[RowKey, Completion] = {}

    def put(self, completion: Completion) -> None:
        assert completion.key not in self.unsaved | self.saved, "a row ended twice"
        self.unsaved[completion.key] = completion

    def save(self) -> None:
        self.saved |= self.unsaved
        self.unsaved = {}

    def publish_full(self) -> None:
        pass


def rows(texts: list[str]) -> Iterator[Row]:
    """Rows of shards of ten; a text "!" cannot be read."""
    for number, text in enumerate(texts):
        error = "invalid_json: no" if text == "!" else None
        yield Row(RowKey(*divmod(number, 10)), str(number), {} if error else {"text": text}, error)


def loop_over(
    texts: list[str], engine: SimulatedEngine, *, merge: bool = False, **options: object
) -> tuple[Loop, Remembering]:
    """A loop over texts; a text "?" is refused when it is rendered."""
    shelf = Remembering()

    def start(row: Row) -> Admitted:
        if row.fields["text"] == "?":
            raise RowRejected("no_text", "it is a question")
        ids = engine.encode(row.fields["text"])
        params = {"max_tokens": 12, "temperature": 0}
        return Admitted(SampleDecoder(row.key, ids, params, lambda text: (text, {})), ids, params)

    settings = {"window": 2 * engine.max_num_seqs, "checkpoint_s": 0.0, "stopping": lambda: None} | options
    made = Loop(
        rows=rows(texts),
        start=start,
        engine=engine,
        shelf=shelf,
        twins=Twins() if merge else None,
        on_checkpoint=lambda counters: None,
        **settings,  # type: ignore[arg-type]
    )
    return made, shelf


TEXTS = st.lists(st.sampled_from(["!", "?", "a", "bb", "ccc", "d" * 50, "e" * 500]) | st.text(max_size=9), max_size=80)


@given(TEXTS, st.integers(1, 9), st.booleans(), st.sets(st.integers(0, 79), max_size=5))
def test_every_row_ends_once(texts: list[str], max_num_seqs: int, merge: bool, refused: set[int]) -> None:
    """Whatever cannot be read, rendered or admitted, every row ends once and is saved, the others as if alone."""
    rejects = {RequestId(RowKey(*divmod(number, 10)), 0) for number in refused}
    engine = SimulatedEngine(max_num_seqs, max_model_len=100, rejects=rejects)
    loop, shelf = loop_over(texts, engine, merge=merge)
    assert loop.run() is True
    assert sorted(shelf.saved) == [row.key for row in rows(texts)]
    alone = SimulatedEngine(1)
    for row in rows(texts):
        completion = shelf.saved[row.key]
        text = row.fields.get("text", "!")
        if text in ("!", "?") or len(text) > 400:
            assert completion.status == "error"
            assert completion.error
        elif completion.status != "error":
            alone.add(Request(RequestId(row.key, 0), alone.encode(text), {"max_tokens": 12, "temperature": 0}))
            while not (outputs := alone.step()):
                pass
            assert completion.text == outputs[0].candidates[0].text
        else:
            assert rejects
    counters = loop.counters
    assert counters.num_rows == len(texts)
    assert counters.num_output_tokens == engine.num_output_tokens
    assert counters.num_errors == sum(completion.status == "error" for completion in shelf.saved.values())


@given(st.integers(1, 300), st.integers(1, 16))
def test_the_engine_never_drains(num_rows: int, max_num_seqs: int) -> None:
    """Fed through the window, over many shards, the engine takes exactly the steps it takes with all rows at once."""
    texts = [f"{number} " * (number % 7 + 1) for number in range(num_rows)]
    fed = SimulatedEngine(max_num_seqs)
    loop_over(texts, fed)[0].run()
    at_once = SimulatedEngine(max_num_seqs)
    for row in rows(texts):
        at_once.add(
            Request(RequestId(row.key, 0), at_once.encode(row.fields["text"]), {"max_tokens": 12, "temperature": 0})
        )
    while at_once.num_unfinished:
        at_once.step()
    assert (fed.num_steps, fed.clock_s) == (at_once.num_steps, pytest.approx(at_once.clock_s))


def test_identical_rows_are_generated_once() -> None:
    """A million-row job of one text asks the engine once, and what waits for it is bounded."""
    engine = SimulatedEngine(4)
    loop, shelf = loop_over(["same"] * 5000, engine, merge=True)
    assert loop.run() is True
    assert loop.counters.num_deduplicated == 4999
    assert len({completion.text for completion in shelf.saved.values()}) == 1
    assert engine.num_output_tokens == next(iter(shelf.saved.values())).num_output_tokens


def test_rows_that_need_no_engine_do_not_starve_it() -> None:
    """Between two steps only a bounded number of rows is begun, so that requests in flight are not kept waiting."""
    begun: list[int] = []
    engine = SimulatedEngine(2)
    loop, _ = loop_over(["long " * 9, *["!"] * 1000], engine)
    step = engine.step

    def spy() -> list[object]:
        begun.append(loop.counters.num_rows)
        return step()  # type: ignore[return-value]

    engine.step = spy  # type: ignore[method-assign, assignment]
    loop.run()
    assert max(after - before for before, after in itertools.pairwise(begun)) <= 4 * 2 * 2


def test_a_stop_lets_rows_in_flight_finish() -> None:
    """Once asked to stop, nothing more is fed; with seconds left what is in flight finishes, and all of it is saved."""
    engine = SimulatedEngine(4)
    loop, shelf = loop_over(["a b c"] * 100, engine, stopping=lambda: 5.0 if engine.num_steps >= 3 else None)
    assert loop.run() is False
    assert engine.num_unfinished == 0
    assert 0 < len(shelf.saved) < 100
    assert not shelf.unsaved


def test_a_second_stop_leaves_at_once() -> None:
    """With no seconds left the loop ends between two steps, and what has finished is saved."""
    engine = SimulatedEngine(4)
    loop, shelf = loop_over(["a b c"] * 100, engine, stopping=lambda: 0.0 if engine.num_steps >= 9 else None)
    assert loop.run() is False
    assert engine.num_unfinished > 0
    assert engine.num_steps == 9
    assert len(shelf.saved) == loop.counters.num_rows


def test_a_dead_engine_loses_only_what_was_in_flight() -> None:
    """When the engine dies the loop raises, and every row that had finished can still be saved."""
    engine = SimulatedEngine(4, die_at_step=20)
    loop, shelf = loop_over([f"row {number}" for number in range(500)], engine, checkpoint_s=1e9)
    with pytest.raises(EngineDied):
        loop.run()
    assert not shelf.saved
    loop.checkpoint()
    assert len(shelf.saved) == loop.counters.num_rows > 0


def test_checkpoints_tell_the_counters() -> None:
    """Every checkpoint reports; the last one has all rows and nothing in flight."""
    told: list[tuple[int, int]] = []

    def note(counters: Counters) -> None:
        told.append((counters.num_rows, counters.num_in_flight))

    loop, _ = loop_over(["a", "b", "!"] * 20, SimulatedEngine(4))
    loop.on_checkpoint = note
    loop.run()
    assert told[-1] == (60, 0)
    assert len(told) > 3
    assert any(in_flight for _, in_flight in told)
