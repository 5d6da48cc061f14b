"""Rows on their way to the engine: read, rendered and tokenised before it needs them; a job's last ones longest first.

Rows that may have killed an engine come when all others have ended, a group at a time. Must never know the engine or
files; what it knows of outputs is how long those of this launch have been.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from seedx_batch.decoding import Admitted
from seedx_batch.errors import RowRejected
from seedx_batch.records import Completion, Row, RowKey
from seedx_batch.suspects import Suspects

Start = Callable[[Row], Admitted]
"""Renders, tokenises and admits a row; RowRejected makes it an error row."""

_PER_SEQUENCE = 8
"""Rows ahead for each sequence of the engine: the tail is then as short as with all rows in view, to 1 %."""
_MOST_ROWS = 4096
"""Rows ahead at most: some tens of megabytes of tokens."""


def num_rows_ahead(max_num_seqs: int) -> int:
    """How many rows to keep ahead of an engine."""
    return min(_PER_SEQUENCE * max_num_seqs, _MOST_ROWS)


@dataclass(frozen=True, slots=True)
class Ready:
    """A row that may begin."""

    key: RowKey
    admitted: Admitted


class Ahead:
    """Hands rows out in input order until the input is used up, and what is ahead then by expected length.

    Only a job's last rows leave sequences of the engine free, so only their order matters; before them any other order
    would only keep more shards open.

    Args:
        rows: what is left to do, in order.
        num_rows: rows kept ahead.
        suspects: rows that are to run alone, and those that are not to run again.
    """

    def __init__(self, rows: Iterator[Row], start: Start, num_rows: int, suspects: Suspects | None = None) -> None:
        self._rows = rows
        self._start = start
        self._num_rows = num_rows
        suspects = suspects or Suspects()
        self._condemned = suspects.condemned
        self._groups = deque(suspects.groups)
        self._withheld: dict[RowKey, Ready | Completion | None] = {key: None for group in self._groups for key in group}
        self._ahead: deque[Ready | Completion] = deque()
        self._used_up = False
        self._lengths = Lengths()
        self._num_learnt = -1

    def __bool__(self) -> bool:
        """Whether there may be rows still."""
        return bool(self._ahead) or not self._used_up or bool(self._groups)

    def read(self, most: int) -> None:
        """Reads at most so many rows, as long as fewer are ahead than should be."""
        for _ in range(most):
            if len(self._ahead) >= self._num_rows or not self._read():
                break
        if self._used_up and self._num_learnt != self._lengths.num:
            self._num_learnt = self._lengths.num
            self._ahead = deque(sorted(self._ahead, key=self._cost, reverse=True))

    def next(self) -> Ready | Completion | None:
        """The row to begin now, or what it has ended as where it cannot be admitted; None when all were handed out."""
        if not self._ahead and not self._read():
            return None
        return self._ahead.popleft()

    def release(self) -> None:
        """Brings on the next group of suspects where all other rows were handed out; for when none is in flight."""
        while self._groups and self._used_up and not self._ahead:
            rows = [self._withheld.pop(key) for key in self._groups.popleft()]
            self._ahead.extend(row for row in rows if row is not None)  # others ended in an earlier launch

    def learn(self, completion: Completion) -> None:
        """Takes notice of how long an output has become."""
        if completion.status != "error" and not completion.deduplicated:
            num_texts = len(completion.candidates) or 1
            self._lengths.add(completion.num_prompt_tokens, completion.num_output_tokens / num_texts)

    def _read(self) -> bool:
        row = None if self._used_up else next(self._rows, None)
        if row is None:
            self._used_up = True
            return False
        begun = self._begun(row)
        if row.key in self._withheld:
            self._withheld[row.key] = begun
        else:
            self._ahead.append(begun)
        return True

    def _begun(self, row: Row) -> Ready | Completion:
        try:
            if row.error is not None:
                raise RowRejected(*row.error.split(": ", 1))
            if row.key in self._condemned:
                raise RowRejected("engine_killed", self._condemned[row.key])
            return Ready(row.key, self._start(row))
        except RowRejected as rejection:
            return Completion(row.key, "error", error=str(rejection))

    def _cost(self, ahead: Ready | Completion) -> float:
        if isinstance(ahead, Completion):
            return 0.0
        params = ahead.admitted.params
        most = float(params.get("max_tokens", "inf"))
        if params.get("ignore_eos"):
            return most
        return min(most, self._lengths.expected(len(ahead.admitted.prompt_token_ids)))


class Lengths:
    """Output tokens by prompt tokens: the least-squares line through what was seen, never falling."""

    def __init__(self) -> None:
        self.num = 0
        self._sum_x = self._sum_xx = 0
        self._sum_y = self._sum_xy = 0.0

    def add(self, num_prompt_tokens: int, num_output_tokens: float) -> None:
        """Takes one row into account."""
        self.num += 1
        self._sum_x += num_prompt_tokens
        self._sum_y += num_output_tokens
        self._sum_xx += num_prompt_tokens * num_prompt_tokens
        self._sum_xy += num_prompt_tokens * num_output_tokens

    def expected(self, num_prompt_tokens: int) -> float:
        """Output tokens of a row; before anything was seen, or where prompts do not differ, as many as its prompt's."""
        spread = self.num * self._sum_xx - self._sum_x * self._sum_x
        if not spread:
            return float(num_prompt_tokens)
        slope = max(0.0, (self.num * self._sum_xy - self._sum_x * self._sum_y) / spread)
        return (self._sum_y + slope * (self.num * num_prompt_tokens - self._sum_x)) / self.num
