"""Token statistics of rows: exact counts and histograms that merge with `+`.

They must never know where their numbers come from: no shards, files or engines.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from seedx_batch.records import Completion

PERCENTILES = (50, 95, 99)
"""The percentiles that stats.parquet has a column for."""

Key = TypeVar("Key", int, str)


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often each whole number occurred, kept exactly: token counts have few distinct values.

    Args:
        counts: occurrences by value, each at least 1.
    """

    counts: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Iterable[int]) -> Self:
        """The histogram of some numbers."""
        return cls(dict(Counter(values)))

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram(_sum_counts(self.counts, other.counts))

    @property
    def num(self) -> int:
        """How many numbers were counted."""
        return sum(self.counts.values())

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(value * count for value, count in self.counts.items())

    @property
    def min(self) -> int | None:
        """The least of them; None if there are none."""
        return min(self.counts, default=None)

    @property
    def max(self) -> int | None:
        """The greatest of them; None if there are none."""
        return max(self.counts, default=None)

    @property
    def mean(self) -> float | None:
        """Their average; None if there are none."""
        return self.total / self.num if self.counts else None

    def percentile(self, q: int) -> int | None:
        """The least value that at least `q` percent of the numbers do not exceed (nearest rank); None without numbers.

        Raises:
            ValueError: `q` is not within 0 to 100.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"a percentile lies between 0 and 100, not at {q}")
        rank = -(-q * self.num // 100)
        num_seen = 0
        for value in sorted(self.counts):
            num_seen += self.counts[value]
            if num_seen >= rank:
                return value
        return None

    def to_json(self) -> list[list[int]]:
        """Pairs of value and count in ascending order, for `json.dumps`."""
        return [[value, self.counts[value]] for value in sorted(self.counts)]

    @classmethod
    def from_json(cls, pairs: Iterable[tuple[int, int]]) -> Self:
        """What `to_json` gave."""
        return cls({int(value): int(count) for value, count in pairs})


@dataclass(frozen=True, slots=True)
class TokenStats:
    """What some rows ended as and how many tokens they took; `+` is associative and `TokenStats()` changes nothing.

    The three histograms hold one number for each row that is not an error, deduplicated rows included: they equal a
    recount from the rows. The engine itself generated `output_tokens.total - num_output_tokens_saved` of these tokens.

    Args:
        statuses: rows by status.
        finish_reasons: rows by finish reason, where they have one.
        errors: error rows by kind, the word before the colon.
        num_deduplicated: rows that were copied from an identical request.
        num_output_tokens_saved: output tokens of those rows, which nothing had to generate.
    """

    statuses: Mapping[str, int] = field(default_factory=dict)
    finish_reasons: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    num_deduplicated: int = 0
    num_output_tokens_saved: int = 0
    prompt_tokens: Histogram = field(default_factory=Histogram)
    cached_tokens: Histogram = field(default_factory=Histogram)
    output_tokens: Histogram = field(default_factory=Histogram)

    @classmethod
    def of(cls, completions: Iterable[Completion]) -> Self:
        """The statistics of some rows, read once."""
        statuses, finish_reasons, errors = Counter[str](), Counter[str](), Counter[str]()
        prompt, cached, output = Counter[int](), Counter[int](), Counter[int]()
        num_deduplicated = num_output_tokens_saved = 0
        for completion in completions:
            statuses[completion.status] += 1
            if completion.finish_reason is not None:
                finish_reasons[completion.finish_reason] += 1
            num_deduplicated += completion.deduplicated
            if completion.status == "error":
                errors[(completion.error or "unknown").partition(":")[0].strip()] += 1
                continue
            prompt[completion.num_prompt_tokens] += 1
            cached[completion.num_cached_tokens] += 1
            output[completion.num_output_tokens] += 1
            if completion.deduplicated:
                num_output_tokens_saved += completion.num_output_tokens
        return cls(
            dict(statuses),
            dict(finish_reasons),
            dict(errors),
            num_deduplicated,
            num_output_tokens_saved,
            Histogram(dict(prompt)),
            Histogram(dict(cached)),
            Histogram(dict(output)),
        )

    def __add__(self, other: "TokenStats") -> "TokenStats":
        return TokenStats(
            _sum_counts(self.statuses, other.statuses),
            _sum_counts(self.finish_reasons, other.finish_reasons),
            _sum_counts(self.errors, other.errors),
            self.num_deduplicated + other.num_deduplicated,
            self.num_output_tokens_saved + other.num_output_tokens_saved,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
        )

    @property
    def num_rows(self) -> int:
        """All rows, whatever they ended as."""
        return sum(self.statuses.values())

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, for `json.dumps`."""
        return {
            "statuses": dict(self.statuses),
            "finish_reasons": dict(self.finish_reasons),
            "errors": dict(self.errors),
            "num_deduplicated": self.num_deduplicated,
            "num_output_tokens_saved": self.num_output_tokens_saved,
            "prompt_tokens": self.prompt_tokens.to_json(),
            "cached_tokens": self.cached_tokens.to_json(),
            "output_tokens": self.output_tokens.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """What `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(
            dict(fields["statuses"]),
            dict(fields["finish_reasons"]),
            dict(fields["errors"]),
            int(fields["num_deduplicated"]),
            int(fields["num_output_tokens_saved"]),
            Histogram.from_json(fields["prompt_tokens"]),
            Histogram.from_json(fields["cached_tokens"]),
            Histogram.from_json(fields["output_tokens"]),
        )

    def flat(self) -> dict[str, int | float | str | None]:
        """One row of stats.parquet: always the same columns, null where no row has a number."""
        columns: dict[str, int | float | str | None] = {"num_rows": self.num_rows}
        for status in ("ok", "truncated", "error"):
            columns[f"num_{status}"] = self.statuses.get(status, 0)
        columns["num_deduplicated"] = self.num_deduplicated
        columns["num_output_tokens_saved"] = self.num_output_tokens_saved
        histograms = {"prompt": self.prompt_tokens, "cached": self.cached_tokens, "output": self.output_tokens}
        for name, histogram in histograms.items():
            columns[f"{name}_tokens_sum"] = histogram.total
            columns[f"{name}_tokens_min"] = histogram.min
            columns[f"{name}_tokens_max"] = histogram.max
            columns[f"{name}_tokens_mean"] = histogram.mean
            for q in PERCENTILES:
                columns[f"{name}_tokens_p{q}"] = histogram.percentile(q)
        columns["finish_reasons"] = json.dumps(self.finish_reasons, sort_keys=True)
        columns["errors"] = json.dumps(self.errors, sort_keys=True)
        return columns


def _sum_counts(left: Mapping[Key, int], right: Mapping[Key, int]) -> dict[Key, int]:
    """Both mappings' counts, added by key."""
    counts = dict(left)
    for key, count in right.items():
        counts[key] = counts.get(key, 0) + count
    return counts
