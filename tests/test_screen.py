"""What is painted over itself on a terminal."""

from seedx_batch.screen import repaint


def test_a_text_is_painted_over_the_last_one() -> None:
    """The second text begins where the first one began, and what the first had more is cleared."""
    first, num_lines = repaint("a\nb", 0, 80, 24)
    assert (first, num_lines) == ("a\x1b[K\nb\x1b[K\n\x1b[J", 2)
    assert repaint("c", num_lines, 80, 24) == ("\x1b[2A\rc\x1b[K\n\x1b[J", 1)


def test_what_does_not_fit_is_cut() -> None:
    """Lines end before the terminal's edge, of which a Chinese character takes two columns; so do texts below it."""
    painted, num_lines = repaint("翻译翻译\nabcdefgh\nmore", 0, 8, 3)
    assert painted.split("\x1b[K\n")[:2] == ["翻译翻", "abcdefg"]
    assert num_lines == 2
