"""The loop, with the simulated engine and a shelf that only remembers."""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import seedx_batch.loop
from seedx_batch.ahead import Ahead, num_rows_ahead
from seedx_batch.decoding import Admitted
from seedx_batch.decoding.beam import BeamDecoder, Ends, Search
from seedx_batch.decoding.sample import SampleDecoder
from seedx_batch.engine.simulated import SimulatedEngine
from seedx_batch.errors import EngineDied, RowRejected
from seedx_batch.loop import Counters, Loop
from seedx_batch.records import Completion, EngineOutput, Request, RequestId, Row, RowKey
from seedx_batch.spec import BeamDecoding
from seedx_batch.suspects import Suspects
from seedx_batch.twins import Twins


class Remembering:
    """Stands where the shelf stands, and where rows in flight are noted."""

    def __init__(self) -> None:
        self.num_written = 0
        self.unsaved: dict[RowKey, Completion] = {}
        self.saved: dict[RowKey, Completion] = {}
        self.published: set[RowKey] | None = None
        self.in_flight: set[RowKey] = set()
        self.steps = False

    def put(self, completion: Completion) -> None:
        assert completion.key not in self.unsaved | self.saved, "a row ended twice"
        self.unsaved[completion.key] = completion

    def enter(self, key: RowKey) -> None:
        assert key not in self.in_flight
        self.in_flight.add(key)

    def leave(self, key: RowKey) -> None:
        self.in_flight.remove(key)

    def begin_step(self) -> None:
        self.steps = True

    def end_step(self) -> None:
        self.steps = False

    def write(self) -> None:
        self.num_written = len(self.saved | self.unsaved)

    def save(self, then: Callable[[], None]) -> None:
        self.saved |= self.unsaved
        self.unsaved = {}
        then()

    def publish_full(self) -> None:
        self.published = {*self.saved, *self.unsaved}

    def wait(self) -> None:
        pass


def rows(texts: list[str]) -> Iterator[Row]:
    """Rows of shards of ten; a text "!" cannot be read."""
    for number, text in enumerate(texts):
        error = "invalid_json: no" if text == "!" else None
        yield Row(RowKey(*divmod(number, 10)), str(number), {} if error else {"text": text}, error)


def loop_over(
    texts: list[str],
    engine: SimulatedEngine,
    *,
    merge: bool = False,
    max_tokens: int = 12,
    num_ahead: int | None = None,
    suspects: Suspects | None = None,
    **options: object,
) -> tuple[Loop, Remembering]:
    """A loop over texts; a text "?" is refused when it is rendered."""
    shelf = Remembering()

    def start(row: Row) -> Admitted:
        if row.fields["text"] == "?":
            raise RowRejected("no_text", "it is a question")
        ids = engine.encode(row.fields["text"])
        params = {"max_tokens": max_tokens, "temperature": 0}
        return Admitted(SampleDecoder(row.key, ids, params, lambda text: (text, {})), ids, params)

    settings = {"window": 2 * engine.max_num_seqs, "checkpoint_s": 0.0, "stopping": lambda: None} | options
    made = Loop(
        ahead=Ahead(
            rows(texts), start, num_rows_ahead(engine.max_num_seqs) if num_ahead is None else num_ahead, suspects
        ),
        engine=engine,
        shelf=shelf,
        flight=shelf,
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
    assert shelf.published == set(
        shelf.saved
    )  # also where there was no row: a resumed shard may be full from its journal
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


def all_at_once(texts: list[str], engine: SimulatedEngine) -> SimulatedEngine:
    """The engine after it had all rows in file order from the start, as one call of `LLM.generate` gives them."""
    for row in rows(texts):
        engine.add(
            Request(RequestId(row.key, 0), engine.encode(row.fields["text"]), {"max_tokens": 12, "temperature": 0})
        )
    while engine.num_unfinished:
        engine.step()
    return engine


@given(st.integers(1, 300), st.integers(1, 16))
def test_the_engine_never_drains(num_rows: int, max_num_seqs: int) -> None:
    """Fed in file order through the window, over many shards, it takes exactly the steps it takes with all at once."""
    texts = [f"{number} " * (number % 7 + 1) for number in range(num_rows)]
    fed = SimulatedEngine(max_num_seqs)
    loop_over(texts, fed, num_ahead=0)[0].run()
    at_once = all_at_once(texts, SimulatedEngine(max_num_seqs))
    assert (fed.num_steps, fed.clock_s) == (at_once.num_steps, pytest.approx(at_once.clock_s))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 16))
def test_rows_ahead_leave_no_sequence_free(lengths: list[int], max_num_seqs: int) -> None:
    """Whatever order the rows ahead are begun in, sequences are free only when no row is left to be begun."""
    engine = SimulatedEngine(max_num_seqs)
    loop, shelf = loop_over(["ab " * length for length in lengths], engine)
    loop.run()
    outputs = [completion.num_output_tokens for completion in shelf.saved.values()]
    # Whoever ends last began when no sequence had been free before.
    assert engine.num_steps <= (sum(outputs) - max(outputs)) / max_num_seqs + max(outputs)


@pytest.mark.parametrize("max_num_seqs", [16, 32])
def test_longest_last_rows_first_shorten_the_tail(max_num_seqs: int) -> None:
    """Where outputs grow with their prompts, as translations do, 256 rows take fewer steps than in file order."""
    draw = random.Random(3)
    texts = [f"{number} " + "word " * max(1, round(draw.lognormvariate(3, 0.7))) for number in range(256)]

    def engine() -> SimulatedEngine:
        return SimulatedEngine(max_num_seqs, length=lambda num_tokens, drawn: round(num_tokens * (0.9 + 0.4 * drawn)))

    ordered, at_once = engine(), engine()
    loop_over(texts, ordered, max_tokens=512)[0].run()
    loop_over(texts, at_once, max_tokens=512, num_ahead=0, window=256)[0].run()
    assert ordered.num_output_tokens == at_once.num_output_tokens
    assert ordered.num_steps < 0.97 * at_once.num_steps


def test_seconds_are_told_apart() -> None:
    """At the end the engine's time is whole: at work, idle, and with free sequences in the tail."""
    engine = SimulatedEngine(4)
    loop, _ = loop_over(["a b c"] * 50, engine)
    loop.run()
    counters = loop.counters
    assert counters.num_steps == engine.num_steps
    assert min(counters.busy_s, counters.idle_s, counters.tail_s, counters.host_s) > 0
    # Between the steps of an engine in this process only the host works.
    assert counters.busy_s + counters.idle_s + counters.tail_s > counters.host_s


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


def test_who_is_in_flight_is_known_at_every_moment() -> None:
    """Whoever looks when the process died in a step sees that it was in one, and with which rows; in the end nobody."""
    engine = SimulatedEngine(4, die_at_step=20, rejects=[RequestId(RowKey(0, 3), 0)])
    loop, shelf = loop_over([f"row {number}" for number in range(500)], engine)
    with pytest.raises(EngineDied):
        loop.run()
    assert shelf.steps
    assert len(shelf.in_flight) == engine.num_unfinished == loop.window
    loop, shelf = loop_over(["!", "?", "a"] * 10, SimulatedEngine(4), merge=True)
    loop.run()
    assert (shelf.in_flight, shelf.steps) == (set(), False)


def test_suspects_run_last_and_alone() -> None:
    """Rows that may have killed an engine come when all others have ended, a group at a time; condemned ones never."""
    alone = [[RowKey(0, 3), RowKey(2, 5)], [RowKey(1, 1)]]
    suspects = Suspects(groups=tuple(map(tuple, alone)), condemned={RowKey(0, 0): "it kills"})
    loop, shelf = loop_over([f"row {number}" for number in range(30)], SimulatedEngine(4), suspects=suspects)
    together: list[set[RowKey]] = []
    enter = shelf.enter

    def note(key: RowKey) -> None:
        enter(key)
        together.append(set(shelf.in_flight))

    shelf.enter = note  # type: ignore[method-assign]
    loop.run()
    assert len(shelf.saved) == 30
    assert shelf.saved[RowKey(0, 0)].error == "engine_killed: it kills"
    assert RowKey(0, 0) not in set().union(*together)
    assert [rows for rows in together if rows & {*alone[0], *alone[1]}] == together[-3:]
    for rows, group in zip(together[-3:], [alone[0], alone[0], alone[1]], strict=True):
        assert rows <= set(group)


def test_finished_rows_are_written_before_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill costs no row that finished a moment earlier, however seldom the disk is waited for."""
    monkeypatch.setattr(seedx_batch.loop, "_WRITE_S", 0.0)
    engine = SimulatedEngine(4, die_at_step=20)
    loop, shelf = loop_over([f"row {number}" for number in range(500)], engine, checkpoint_s=1e9)
    with pytest.raises(EngineDied):
        loop.run()
    assert not shelf.saved
    assert shelf.num_written == loop.counters.num_rows > 0


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


def beam_loop(
    num_rows: int, engine: SimulatedEngine, *, num_kv_tokens: int = 0, refuse: int | None = None
) -> tuple[Loop, Remembering]:
    """A loop of beam searches, width 3; `refuse` names a row one of whose forks the engine refuses."""
    spec = BeamDecoding.model_validate({"method": "beam", "beam_width": 3, "num_return": 3})
    ends = Ends(engine.eos_token_ids, [], engine.decode)
    search = Search(spec, ends, engine.max_model_len, engine.decode, lambda text: (text, {}))

    def start(row: Row) -> Admitted:
        ids = engine.encode(row.fields["text"])
        return Admitted(BeamDecoder(row.key, ids, 10, search), ids, {"max_tokens": 10}, 3, num_kv_tokens)

    if refuse is not None:
        engine._rejects = {RequestId(RowKey(*divmod(refuse, 10)), 2)}
    texts = [f"text {number}" for number in range(num_rows)]
    loop, shelf = loop_over(texts, engine, window=engine.max_num_seqs)
    loop.ahead = Ahead(rows(texts), start, num_rows)
    return loop, shelf


@settings(max_examples=20)
@given(st.integers(1, 30), st.integers(1, 4))
def test_beams_fill_the_batch_and_no_more(num_rows: int, num_at_once: int) -> None:
    """As many beam searches run as their hypotheses have sequences, each row as if alone, and nothing is in vain."""
    engine = SimulatedEngine(3 * num_at_once + 2)
    most: list[int] = []
    step = engine.step

    def spy() -> list[EngineOutput]:
        outputs = step()
        most.append(engine._num_running + len(engine._waiting))
        return outputs

    engine.step = spy  # type: ignore[method-assign]
    loop, shelf = beam_loop(num_rows, engine)
    assert loop.run() is True
    assert max(most) <= engine.max_num_seqs
    assert loop.counters.num_wasted_tokens == 0
    alone, shelf_alone = beam_loop(num_rows, SimulatedEngine(3))
    alone.run()
    assert {key: row.candidates for key, row in shelf.saved.items()} == {
        key: row.candidates for key, row in shelf_alone.saved.items()
    }
    assert engine.num_steps <= alone.engine.num_steps


def test_beams_are_admitted_by_the_room_for_keys_and_values() -> None:
    """What all hypotheses in flight may come to need is free; a row that needs more than there is runs alone."""
    engine = SimulatedEngine(30)
    engine.num_kv_tokens = 100
    loop, shelf = beam_loop(9, engine, num_kv_tokens=50)
    in_flight: list[int] = []
    loop.stopping = lambda: in_flight.append(len(loop._decoders))
    assert loop.run() is True
    assert max(in_flight) == 2
    loop, shelf = beam_loop(9, engine, num_kv_tokens=1000)
    in_flight.clear()
    loop.stopping = lambda: in_flight.append(len(loop._decoders))
    assert loop.run() is True
    assert max(in_flight) == 1
    assert len(shelf.saved) == 9


def test_a_refused_fork_is_one_rows_error() -> None:
    """When the engine refuses what a row asks for later on, that row is an error, and nothing of it stays in flight."""
    engine = SimulatedEngine(30)
    loop, shelf = beam_loop(9, engine, refuse=4)
    assert loop.run() is True
    assert engine.num_unfinished == 0
    assert [key.position for key, row in shelf.saved.items() if row.status == "error"] == [4]
    assert len(shelf.saved) == 9


def test_a_stop_leaves_a_row_that_waits_for_room() -> None:
    """A row that was admitted but had no room yet is not done when the loop is stopped: it comes again."""
    engine = SimulatedEngine(30)
    engine.num_kv_tokens = 100
    loop, shelf = beam_loop(9, engine, num_kv_tokens=100)
    loop.stopping = lambda: 5.0 if engine.num_steps >= 3 else None
    assert loop.run() is False
    assert len(shelf.saved) == 1
