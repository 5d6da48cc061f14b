"""Shows a run's progress: a bar on a terminal, a plain line every 30 seconds elsewhere.

Must never know where the figures come from.
"""

import sys
import time
from collections import deque
from types import TracebackType
from typing import Any

from tqdm import tqdm

from seedx_batch.signals import unheard
from seedx_batch.status import Status
from seedx_batch.telling import shown

LINE_S = 30.0
_RATE_WINDOW_S = 60.0
_TOLD_PHASES = ("loading the model", "running")


class Progress:
    """The view of one run; made before anything is known."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None
        self._line_at = 0.0
        self._phase = ""
        self._began: tuple[float, int] | None = None
        self._tokens: deque[tuple[float, int]] = deque()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with unheard():
            if self._bar is not None:
                self._bar.close()

    def say(self, message: str) -> None:
        """Shows one line of text, above the bar."""
        with unheard():
            tqdm.write(f"{self._name}: {shown(message)}", file=sys.stderr)
            sys.stderr.flush()

    def show(self, status: Status) -> None:
        """Shows where the run is."""
        now = time.monotonic()
        if status.phase != self._phase:
            self._phase = status.phase
            self._line_at = now
            if status.phase in _TOLD_PHASES:
                self.say(status.phase)
        if self._began is None:
            self._began = (now, status.num_done)
        self._tokens.append((now, status.num_output_tokens))
        while now - self._tokens[0][0] > _RATE_WINDOW_S:
            self._tokens.popleft()
        if sys.stderr.isatty():
            with unheard():
                self._draw(status)
        elif now - self._line_at >= LINE_S and status.phase == "running":
            self._line_at = now
            self.say(self._line(status, now))

    def _rate(self) -> float:
        (first, tokens), (last, now) = self._tokens[0], self._tokens[-1]
        return max(0, now - tokens) / (last - first) if last > first else 0.0

    def _draw(self, status: Status) -> None:
        if self._bar is None:
            form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(
                total=status.num_rows,
                initial=status.num_done,
                desc=self._name,
                unit="row",
                bar_format=form,
                file=sys.stderr,
            )
        figures = f"{self._rate():,.0f} tok/s, {status.num_in_flight} in flight, {status.num_errors} errors"
        self._bar.set_postfix_str(figures, refresh=False)
        self._bar.update(status.num_done - self._bar.n)
        self._bar.refresh()

    def _line(self, status: Status, now: float) -> str:
        began, done_before = self._began or (now, status.num_done)
        rows_per_s = (status.num_done - done_before) / (now - began) if now > began else 0.0
        left = tqdm.format_interval((status.num_rows - status.num_done) / rows_per_s) if rows_per_s else "?"
        return (
            f"{status.num_done:,}/{status.num_rows:,} rows, {self._rate():,.0f} output tok/s, "
            f"{status.num_in_flight} in flight, {status.num_errors} errors, ETA {left}"
        )
