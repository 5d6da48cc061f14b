"""A text that is painted over itself on a terminal, again and again.

Must never know what it says.
"""

import unicodedata
from collections.abc import Iterator

_UP, _CLEAR_BELOW, _CLEAR_RIGHT = "\x1b[{}A\r", "\x1b[J", "\x1b[K"


def repaint(text: str, num_before: int, columns: int, rows: int) -> tuple[str, int]:
    """What to write so that the text stands where the last one stood.

    Lines are cut to the terminal's width and the text to its height, as what scrolls away cannot be painted over.

    Args:
        text: without control characters but for newlines.
        num_before: lines of the last text; 0 at first.
        columns, rows: of the terminal.

    Returns:
        That, and how many lines the text has.
    """
    lines = text.split("\n")[: max(1, rows - 1)]
    begin = _UP.format(num_before) if num_before else ""
    painted = "".join("".join(_fitting(line, columns - 1)) + _CLEAR_RIGHT + "\n" for line in lines)
    return begin + painted + _CLEAR_BELOW, len(lines)


def _fitting(line: str, columns: int) -> Iterator[str]:
    """The line's characters that fit; East Asian ones take two columns, combining ones none."""
    for character in line:
        wide = unicodedata.east_asian_width(character) in "WF"
        columns -= 0 if unicodedata.combining(character) else 1 + wide
        if columns < 0:
            return
        yield character
