"""The hunt for rows that kill engines: it finds them all, condemns nobody else, and takes few deaths."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedx_batch import suspects
from seedx_batch.errors import StorageError
from seedx_batch.records import RowKey
from seedx_batch.suspects import Suspects

A, B, C, D = (RowKey(0, position) for position in range(4))


def hunt(num_rows: int, window: int, poison: set[int]) -> tuple[Suspects, set[RowKey], int]:
    """Runs rows through engines that die of some of them: what was found, the rows that ended well, the deaths."""
    known, done, num_deaths = Suspects(), set[RowKey](), 0
    while True:
        left = [RowKey(0, n) for n in range(num_rows) if RowKey(0, n) not in done | known.condemned.keys()]
        alone = {row for group in known.groups for row in group}
        groups = [[row for row in left if row not in alone], *([r for r in g if r in left] for g in known.groups)]
        died = False
        for group in groups:
            while group and not died:
                in_flight, group = group[:window], group[window:]
                died = any(row.position in poison for row in in_flight)
                if not died:
                    done |= set(in_flight)
            if died:
                break
        if not died:
            return known, done, num_deaths
        known = Suspects.from_json(known.after(in_flight, "it died").to_json(), "a test")
        num_deaths += 1


@given(st.integers(1, 60), st.integers(1, 16), st.sets(st.integers(0, 59), max_size=4))
def test_the_guilty_are_found_and_nobody_else(num_rows: int, window: int, poison: set[int]) -> None:
    """Wherever they are, exactly the rows that kill are condemned, all others end well, in a bound of deaths."""
    known, done, num_deaths = hunt(num_rows, window, poison)
    guilty = {RowKey(0, n) for n in poison if n < num_rows}
    assert set(known.condemned) == guilty
    assert done == {RowKey(0, n) for n in range(num_rows)} - guilty
    assert num_deaths <= len(guilty) * (3 + math.ceil(math.log2(window)))


def test_one_death_says_nothing() -> None:
    """After one death everything runs together again; after a second, those that were there both times run alone."""
    once = Suspects().after([A, B, C], "SIGKILL")
    assert not once.groups
    twice = once.after([B, C, D], "SIGKILL")
    assert twice.groups == ((B, C),)
    assert not twice.condemned


def test_a_row_that_is_alone_is_guilty() -> None:
    """Halves that survive are cleared, halves that do not are halved; the last row says how often and how."""
    known = Suspects().after([A, B, C, D], "SIGKILL").after([A, B, C, D], "SIGKILL")
    known = known.after([A, B, C, D], "SIGSEGV")
    assert known.groups == ((A, B), (C, D))
    known = known.after([C, D], "SIGSEGV")
    assert known.groups == ((C,), (D,), (A, B))
    known = known.after([D], "SIGBUS")
    assert known.groups == ((C,), (A, B))
    assert known.condemned == {D: "5 engines died with this row in them, the last of them with it alone: SIGBUS"}


def test_a_death_without_rows_accuses_nobody() -> None:
    """An engine that dies while it loads says nothing about rows."""
    known = Suspects().after([A], "x").after([A, B], "x")
    assert known.after([], "x") == known


def test_what_is_kept_can_be_damaged(tmp_path: Path) -> None:
    """Nothing is known where nothing was kept; a damaged file is told, with its name and what to do."""
    path = tmp_path / "suspects.json"
    assert suspects.load(path) == Suspects()
    path.write_text('{"groups": 3}')
    with pytest.raises(StorageError, match=r"suspects\.json: is damaged .* remove it"):
        suspects.load(path)
