"""How many output tokens a row may have: the `max_tokens` rule of the job, applied to one row.

Must never know vLLM or files; it measures the source with whatever encoder it is given.
"""

from collections.abc import Callable

from seedx_batch.errors import RowRejected
from seedx_batch.records import Prompt, Row
from seedx_batch.spec import MaxTokens

_MAX_KNOWN_FRAMES = 1024


class Budget:
    """Gives each row its `max_tokens`.

    The source's length is the prompt's length less that of the same prompt around an empty text, so that the
    source itself need not be tokenised a second time.
    """

    def __init__(
        self, rule: MaxTokens, render_empty: Callable[[Row], Prompt | None], encode: Callable[[Prompt], list[int]]
    ) -> None:
        self._rule = rule
        self._render_empty = render_empty
        self._encode = encode
        self._frames: dict[str, int] = {}

    def max_tokens(self, row: Row, num_prompt_tokens: int) -> int:
        """The row's budget, at least 1.

        Raises:
            RowRejected: the row's own budget is no positive number.
        """
        rule = self._rule
        if rule.column is not None:
            return min(rule.max, self._own(row, rule.column))
        if rule.ratio is None:
            return rule.max
        source = max(0, num_prompt_tokens - self._frame(row))
        return max(1, min(rule.max, int(rule.ratio * source) + rule.plus))

    def _own(self, row: Row, column: str) -> int:
        value = row.fields.get(column)
        if value is None:
            return self._rule.max
        try:
            budget = int(value) if not isinstance(value, bool) else 0
        except (TypeError, ValueError):
            budget = 0
        if budget < 1:
            raise RowRejected("bad_max_tokens", f"column '{column}' holds {str(value)[:40]!r}, not a number from 1")
        return budget

    def _frame(self, row: Row) -> int:
        frame = self._render_empty(row)
        if frame is None:
            return 0
        known = self._frames.get(str(frame))
        if known is None:
            if len(self._frames) >= _MAX_KNOWN_FRAMES:
                self._frames.clear()
            known = self._frames[str(frame)] = len(self._encode(frame))
        return known
