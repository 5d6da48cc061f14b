"""The max_tokens rule applied to rows."""

import pytest

from seedx_batch.decoding.budget import Budget
from seedx_batch.errors import RowRejected
from seedx_batch.records import Row, RowKey
from seedx_batch.spec import MaxTokens


def row(**fields: object) -> Row:
    """A row with these columns."""
    return Row(RowKey(0, 0), "r", fields)


def budget(rule: MaxTokens, frame: str | None = "frame") -> Budget:
    """A budget whose encoder gives one token a character."""
    return Budget(rule, lambda _: frame, lambda prompt: list(range(len(prompt))))


def test_a_number_is_the_same_for_all() -> None:
    """A plain number is every row's budget."""
    assert budget(MaxTokens(max=7)).max_tokens(row(), 1000) == 7


@pytest.mark.parametrize(("num_prompt_tokens", "wanted"), [(5, 4), (15, 29), (400, 100), (3, 4)])
def test_the_ratio_is_of_the_source(num_prompt_tokens: int, wanted: int) -> None:
    """ratio counts the prompt less its frame, plus is added, max bounds it, and it is never negative."""
    rule = MaxTokens(max=100, ratio=2.5, plus=4)
    assert budget(rule).max_tokens(row(), num_prompt_tokens) == wanted


def test_without_a_text_the_whole_prompt_counts() -> None:
    """Where the preset has no text column, the source is the whole prompt."""
    assert budget(MaxTokens(max=100, ratio=2), None).max_tokens(row(), 10) == 20


@pytest.mark.parametrize(("value", "wanted"), [(5, 5), ("6", 6), (None, 9), (99, 9), (3.0, 3)])
def test_a_column_gives_the_row_its_own(value: object, wanted: int) -> None:
    """The column's value is the budget, at most max; null means max."""
    assert budget(MaxTokens(max=9, column="b")).max_tokens(row(b=value), 1) == wanted


@pytest.mark.parametrize("value", [0, -1, "many", True, [1]])
def test_a_column_that_is_no_budget(value: object) -> None:
    """A value that is no number from 1 rejects the row, by name."""
    with pytest.raises(RowRejected, match="bad_max_tokens: column 'b'"):
        budget(MaxTokens(max=9, column="b")).max_tokens(row(b=value), 1)
