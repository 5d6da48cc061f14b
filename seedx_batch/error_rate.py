"""How many rows fail, and whether so many do that going on is a waste.

Must never know why a row fails beyond what its completion says.
"""

from collections import Counter

from seedx_batch.errors import TooManyErrors
from seedx_batch.records import Completion

JUDGED_FROM = 200
"""Rows that have ended, before the share of errors among them says something of the job."""

_MAX_EXAMPLE_CHARS = 200
_REMEDY = (
    "what has ended is kept, failed rows too. If the engine or the machine is at fault, mend it and start the same "
    "command again: the count begins anew. If the input, prompt, model or decoding is, give the corrected job another "
    "run_dir. If such errors are to be expected, raise executor.max_error_rate (null: any)"
)


class ErrorRate:
    """Counts the rows that end and those that fail.

    Args:
        most: the share of errors that is borne; None: any.
        num_rows: rows that earlier launches have ended; `num_errors`: those of them that failed.
    """

    def __init__(self, most: float | None = None, num_rows: int = 0, num_errors: int = 0) -> None:
        self._most = most
        self._num_rows = num_rows
        self._num_errors = num_errors
        self._kinds: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def count(self, completion: Completion) -> None:
        """Adds one row."""
        self._num_rows += 1
        if completion.status != "error":
            return
        self._num_errors += 1
        told = completion.error or "unknown"
        kind = told.partition(":")[0].strip()
        self._kinds[kind] += 1
        if kind not in self._examples:
            (shard, position), reason = completion.key, told.removeprefix(kind).lstrip(": ")
            self._examples[kind] = f"row {position} of shard {shard}: {reason[:_MAX_EXAMPLE_CHARS]}"

    def is_too_high(self, num_in_flight: int) -> bool:
        """Whether more rows fail than are borne.

        Args:
            num_in_flight: rows that were begun and have not ended; what is wrong with a row's text shows at once, and
                that a row is good only at its end.
        """
        return (
            self._most is not None
            and self._num_rows >= JUDGED_FROM
            and self._num_errors > self._most * (self._num_rows + num_in_flight)
        )

    def told(self) -> TooManyErrors:
        """The rate, the commonest kinds of errors with an example of each, and what to do."""
        share = 100 * self._num_errors / self._num_rows
        lines = [
            f"{self._num_errors:,} of {self._num_rows:,} rows failed ({share:.1f} %), more than "
            f"executor.max_error_rate {self._most:g} bears",
            *(f"  {count:,} x {kind}, as in {self._examples[kind]}" for kind, count in self._kinds.most_common(3)),
            _REMEDY,
        ]
        return TooManyErrors("\n".join(lines))
