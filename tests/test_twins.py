"""Merging identical requests."""

from hypothesis import given
from hypothesis import strategies as st

from seedx_batch.records import Completion, RowKey
from seedx_batch.twins import Twins


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=60), st.integers(0, 3), st.data())
def test_every_row_gets_the_completion_of_its_prompt(
    asked: list[tuple[int, int]], num_recent: int, draw: st.DataObject
) -> None:
    """Whatever the order of asking and answering, each row ends once, with the text of its own prompt and budget."""
    twins = Twins(num_recent)
    flying: dict[RowKey, str] = {}
    ended: dict[RowKey, str | None] = {}
    wanted: dict[RowKey, str] = {}

    def settle_one() -> None:
        key = draw.draw(st.sampled_from(sorted(flying)))
        leader = Completion(key, "ok", text=flying.pop(key))
        for completion in (leader, *twins.settle(leader)):
            assert completion.key not in ended
            ended[completion.key] = completion.text

    for position, (prompt, budget) in enumerate(asked):
        key = RowKey(0, position)
        wanted[key] = f"{prompt}/{budget}"
        claim = twins.claim(key, [prompt], {"max_tokens": budget, "seed": position})
        if isinstance(claim, Completion):
            assert claim.deduplicated
            ended[claim.key] = claim.text
        elif claim:
            flying[key] = wanted[key]
        if flying and draw.draw(st.booleans()):
            settle_one()
    while flying:
        settle_one()
    assert ended == wanted
    assert twins.num_waiting == 0


def test_an_error_is_not_remembered() -> None:
    """A failed request fails those that waited for it, and the next one is tried again."""
    twins = Twins()
    assert twins.claim(RowKey(0, 0), [1], {}) is True
    assert twins.claim(RowKey(0, 1), [1], {}) is False
    failed = twins.settle(Completion(RowKey(0, 0), "error", error="engine_abort: x"))
    assert [(completion.key, completion.status) for completion in failed] == [(RowKey(0, 1), "error")]
    assert twins.claim(RowKey(0, 2), [1], {}) is True


def test_memory_is_bounded() -> None:
    """Only so many completions are remembered, the least recently used goes first."""
    twins = Twins(num_recent=2)
    for position in range(3):
        key = RowKey(0, position)
        assert twins.claim(key, [position], {}) is True
        twins.settle(Completion(key, "ok", text=str(position)))
    assert twins.claim(RowKey(1, 0), [0], {}) is True
    assert isinstance(twins.claim(RowKey(1, 2), [2], {}), Completion)


def test_parameters_are_told_apart_by_what_they_say() -> None:
    """Parameters are looked at once for each object, and equal ones are the same request whatever objects they are."""
    twins = Twins()
    several = [{"max_tokens": budget % 3} for budget in range(3000)]  # more objects than are remembered
    claims = [twins.claim(RowKey(0, position), [1], params) for position, params in enumerate(several)]
    assert claims == [True] * 3 + [False] * 2997
    assert [twins.claim(RowKey(1, position), [1], several[position]) for position in range(3)] == [False] * 3
    assert twins.claim(RowKey(2, 0), [1], {"max_tokens": 3}) is True
