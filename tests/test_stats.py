"""Proves that statistics are exact, that they merge in any grouping, and that they come back from JSON."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedx_batch.records import Completion, RowKey
from seedx_batch.stats import Histogram, TokenStats

numbers = st.lists(st.integers(0, 8192), max_size=60)
completions = st.lists(
    st.builds(
        Completion,
        key=st.just(RowKey(0, 0)),
        status=st.sampled_from(["ok", "truncated", "error"]),
        finish_reason=st.sampled_from([None, "stop", "length"]),
        error=st.sampled_from([None, "too_long: 9000 tokens", "too_long: 8193 tokens", "null: no text", "odd"]),
        num_prompt_tokens=st.integers(0, 50),
        num_cached_tokens=st.integers(0, 50),
        num_output_tokens=st.integers(0, 50),
        deduplicated=st.booleans(),
    ),
    max_size=40,
)


@given(numbers, st.integers(0, 100))
def test_histogram_equals_a_recount(values: list[int], q: int) -> None:
    """Every figure of a histogram is what the sorted list of its numbers gives."""
    histogram = Histogram.of(values)
    ranked = sorted(values)
    assert (histogram.num, histogram.total) == (len(values), sum(values))
    if not values:
        assert [histogram.min, histogram.max, histogram.mean, histogram.percentile(q)] == [None] * 4
        return
    assert (histogram.min, histogram.max) == (ranked[0], ranked[-1])
    assert histogram.mean == sum(values) / len(values)
    assert histogram.percentile(q) == ranked[max(1, math.ceil(q * len(values) / 100)) - 1]


@given(numbers, numbers, numbers)
def test_histograms_merge(a: list[int], b: list[int], c: list[int]) -> None:
    """`+` counts what both have, whatever the grouping, and the empty histogram changes nothing."""
    left, middle, right = Histogram.of(a), Histogram.of(b), Histogram.of(c)
    assert Histogram.of(a + b) == left + middle
    assert (left + middle) + right == left + (middle + right)
    assert left + Histogram() == left == Histogram() + left


@given(numbers)
def test_histogram_comes_back_from_json(values: list[int]) -> None:
    """JSON text holds the whole histogram."""
    histogram = Histogram.of(values)
    assert Histogram.from_json(json.loads(json.dumps(histogram.to_json()))) == histogram


@pytest.mark.parametrize("q", [-1, 101])
def test_percentile_refuses_what_is_no_percentage(q: int) -> None:
    """A percentile outside 0 to 100 is an error, not the nearest number."""
    with pytest.raises(ValueError, match="between 0 and 100"):
        Histogram.of([1]).percentile(q)


@given(completions, completions, completions)
def test_statistics_merge(a: list[Completion], b: list[Completion], c: list[Completion]) -> None:
    """Statistics of shards add up to those of all their rows, whatever the grouping."""
    left, middle, right = TokenStats.of(a), TokenStats.of(b), TokenStats.of(c)
    assert TokenStats.of(a + b) == left + middle
    assert (left + middle) + right == left + (middle + right)
    assert left + TokenStats() == left == TokenStats() + left


@given(completions)
def test_statistics_come_back_from_json(rows: list[Completion]) -> None:
    """JSON text holds the whole statistics."""
    stats = TokenStats.of(rows)
    assert TokenStats.from_json(json.loads(json.dumps(stats.to_json()))) == stats


@given(completions)
def test_statistics_equal_a_recount(rows: list[Completion]) -> None:
    """The flat columns are what counting the rows one by one gives."""
    flat = TokenStats.of(rows).flat()
    good = [row for row in rows if row.status != "error"]
    assert flat["num_rows"] == len(rows)
    for status in ("ok", "truncated", "error"):
        assert flat[f"num_{status}"] == sum(row.status == status for row in rows)
    assert flat["num_deduplicated"] == sum(row.deduplicated for row in rows)
    assert flat["num_output_tokens_saved"] == sum(row.num_output_tokens for row in good if row.deduplicated)
    for kind in ("prompt", "cached", "output"):
        assert flat[f"{kind}_tokens_sum"] == sum(getattr(row, f"num_{kind}_tokens") for row in good)
        assert flat[f"{kind}_tokens_max"] == max((getattr(row, f"num_{kind}_tokens") for row in good), default=None)
    reasons = json.loads(str(flat["finish_reasons"]))
    assert sum(reasons.values()) == sum(row.finish_reason is not None for row in rows)
    assert sum(json.loads(str(flat["errors"])).values()) == flat["num_error"]


def test_errors_are_counted_by_their_kind() -> None:
    """The word before the colon is the kind; an error row's tokens are in no histogram."""
    stats = TokenStats.of(
        [
            Completion(RowKey(0, 0), "error", error="too_long: 9000 tokens", num_prompt_tokens=9000),
            Completion(RowKey(0, 1), "error", error="too_long: 8200: really", num_prompt_tokens=8200),
            Completion(RowKey(0, 2), "error", error="null: no text"),
            Completion(RowKey(0, 3), "ok", "text", "stop", num_prompt_tokens=7, num_output_tokens=3),
        ]
    )
    assert stats.errors == {"too_long": 2, "null": 1}
    assert stats.prompt_tokens == Histogram({7: 1})
    assert stats.num_rows == 4


def test_flat_columns_are_always_the_same() -> None:
    """No rows and some rows give the same columns in the same order, so that stats.parquet has one schema."""
    some = TokenStats.of([Completion(RowKey(0, 0), "ok", "text", "stop", num_prompt_tokens=7)])
    figures = ("sum", "min", "max", "mean", "p50", "p95", "p99")
    expected = ["num_rows", "num_ok", "num_truncated", "num_error", "num_deduplicated", "num_output_tokens_saved"]
    expected += [f"{kind}_tokens_{figure}" for kind in ("prompt", "cached", "output") for figure in figures]
    expected += ["finish_reasons", "errors"]
    assert list(some.flat()) == list(TokenStats().flat()) == expected
