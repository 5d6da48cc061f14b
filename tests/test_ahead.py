"""Rows ahead: their order, what is learnt for it, and how many there are."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedx_batch.ahead import Ahead, Lengths, Ready, num_rows_ahead
from seedx_batch.decoding import Admitted
from seedx_batch.decoding.sample import SampleDecoder
from seedx_batch.errors import RowRejected
from seedx_batch.records import Completion, Row, RowKey


def start(row: Row) -> Admitted:
    """Admits a row of so many prompt tokens; a row of none is refused, and others may have a budget of their own."""
    length, budget = row.fields["length"], row.fields.get("budget")
    if not length:
        raise RowRejected("prompt_empty", "the prompt has no tokens")
    params = {"max_tokens": budget or 500, "ignore_eos": budget is not None}
    ids = [5] * length
    return Admitted(SampleDecoder(row.key, ids, params, lambda text: (text, {})), ids, params)


def rows(lengths: list[int], budgets: list[int] | None = None) -> Iterator[Row]:
    """Rows with prompts of these lengths."""
    for position, length in enumerate(lengths):
        fields = {"length": length} | ({"budget": budgets[position]} if budgets else {})
        yield Row(RowKey(0, position), str(position), fields)


def positions(ahead: Ahead) -> list[int]:
    """The rows in the order in which they are handed out, one a step."""
    order = []
    while ahead:
        row = ahead.next()
        if row is not None:
            order.append(row.key.position)
        ahead.read(4)
    return order


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 20), st.integers(1, 5))
def test_every_row_is_handed_out_once(lengths: list[int], num_ahead: int, per_step: int) -> None:
    """However many rows are ahead, each is handed out once, those that are refused as what they have ended as."""
    ahead = Ahead(rows(lengths), start, num_ahead)
    seen: list[Ready | Completion] = []
    while ahead:
        row = ahead.next()
        seen += [row] if row is not None else []
        ahead.read(per_step)
    assert sorted(row.key.position for row in seen) == list(range(len(lengths)))
    refused = {row.key.position for row in seen if isinstance(row, Completion)}
    assert refused == {position for position, length in enumerate(lengths) if not length}
    assert ahead.next() is None


def test_file_order_until_the_input_is_used_up() -> None:
    """Rows come in input order as long as there is more to read; the last ones, longest prompt first."""
    lengths = [3, 9, 1, 7, 5, 8, 2, 6, 4, 10]
    order = positions(Ahead(rows(lengths), start, 6))
    assert order[:5] == [0, 1, 2, 3, 4]
    assert [lengths[position] for position in order[5:]] == [10, 8, 6, 4, 2]


def test_forced_lengths_are_known() -> None:
    """Where `ignore_eos` forces an output's length, the budget decides rather than the prompt."""
    order = positions(Ahead(rows([9, 8, 7, 6, 5, 4], [1, 1, 3, 9, 4, 7]), start, 99))
    assert order == [0, 1, 3, 5, 4, 2]


def test_budgets_bound_what_is_expected() -> None:
    """A long prompt with a small budget is not expected to be long."""

    def admit(row: Row) -> Admitted:
        admitted = start(row)
        return Admitted(admitted.decoder, admitted.prompt_token_ids, {"max_tokens": 2 if row.key.position == 3 else 99})

    assert positions(Ahead(rows([1, 1, 5, 50, 7, 6]), admit, 99)) == [0, 1, 4, 5, 2, 3]


def test_lengths_seen_change_the_order() -> None:
    """When outputs do not grow with their prompts, the order of the input stays; a falling line is none."""
    ahead = Ahead(rows([1, 1, 5, 50, 7, 6]), start, 99)
    for number in range(20):
        ahead.learn(Completion(RowKey(1, number), "ok", num_prompt_tokens=number, num_output_tokens=40 - number))
    ahead.learn(Completion(RowKey(1, 30), "error", num_prompt_tokens=1000, num_output_tokens=1000))
    assert positions(ahead) == [0, 1, 2, 3, 4, 5]


def test_expected_lengths_follow_a_line() -> None:
    """What was seen on a line is expected on it; before anything was seen an output is as long as its prompt."""
    lengths = Lengths()
    assert lengths.expected(70) == 70
    for num_tokens in (10, 20, 40):
        lengths.add(num_tokens, 3 + 1.5 * num_tokens)
    assert lengths.expected(100) == pytest.approx(153)


def test_reading_is_bounded() -> None:
    """At most so many rows are read as were asked for, and no more are ahead than should be."""
    read: list[int] = []

    def watched() -> Iterator[Row]:
        for row in rows([1] * 100):
            read.append(row.key.position)
            yield row

    ahead = Ahead(watched(), start, 10)
    assert not read
    ahead.read(4)
    assert len(read) == 4
    for _ in range(9):
        ahead.read(4)
    assert len(read) == 10
    assert (num_rows_ahead(16), num_rows_ahead(10_000)) == (128, 4096)
