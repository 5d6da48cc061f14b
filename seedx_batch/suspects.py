"""Which rows may have killed the engine: those that were in it each time, then halves of them alone, then one.

A reckoning on what was in flight when, kept as a small file; must never know processes or engines.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from seedx_batch.errors import StorageError
from seedx_batch.records import RowKey

_ALONE_FROM = 2
"""Deaths after which a row no longer runs with others: one alone says nothing, machines die of other things too."""


@dataclass(frozen=True, slots=True)
class Suspects:
    """What the deaths of a worker's engines tell so far.

    Args:
        num_deaths: of a row, how many engines have died with it in them.
        groups: suspects; each group runs when all other rows are done, and alone.
        condemned: rows that killed an engine in which nothing else was, and how.
    """

    num_deaths: Mapping[RowKey, int] = field(default_factory=dict)
    groups: tuple[tuple[RowKey, ...], ...] = ()
    condemned: Mapping[RowKey, str] = field(default_factory=dict)

    def after(self, in_flight: Iterable[RowKey], how: str) -> "Suspects":
        """What is known when another engine has died.

        Args:
            in_flight: the rows that were in it.
            how: it died, in words.
        """
        rows = sorted(in_flight)
        num_deaths = {**self.num_deaths, **{row: self.num_deaths.get(row, 0) + 1 for row in rows}}
        known = {row for group in self.groups for row in group}
        if rows and known.issuperset(rows):
            # They were alone, so it was one of them; those of their group that had ended before are cleared.
            groups = [group for group in self.groups if not set(group) & set(rows)]
            if len(rows) == 1:
                told = (
                    f"{num_deaths[rows[0]]} engines died with this row in them, the last of them with it alone: {how}"
                )
                return Suspects(num_deaths, tuple(groups), {**self.condemned, rows[0]: told})
            half = len(rows) // 2
            return replace(self, num_deaths=num_deaths, groups=(tuple(rows[:half]), tuple(rows[half:]), *groups))
        fresh = tuple(row for row in rows if num_deaths[row] >= _ALONE_FROM and row not in known)
        return replace(self, num_deaths=num_deaths, groups=(*self.groups, fresh) if fresh else self.groups)

    def to_json(self) -> str:
        """The reckoning as a small text."""
        tree = {
            "num_deaths": [[*row, count] for row, count in self.num_deaths.items()],
            "groups": [[list(row) for row in group] for group in self.groups],
            "condemned": [[*row, how] for row, how in self.condemned.items()],
        }
        return json.dumps(tree)

    @classmethod
    def from_json(cls, text: str, name: str) -> "Suspects":
        """Gives `to_json`'s text back.

        Raises:
            StorageError: it is none; `name` says of what file.
        """
        try:
            tree = json.loads(text)
            return cls(
                {RowKey(shard, position): count for shard, position, count in tree["num_deaths"]},
                tuple(tuple(RowKey(*row) for row in group) for group in tree["groups"]),
                {RowKey(shard, position): how for shard, position, how in tree["condemned"]},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{name}: is damaged ({error}); remove it and run the same command again") from error


def load(path: Path) -> Suspects:
    """What earlier deaths tell; nothing where there were none.

    Raises:
        StorageError: the file is damaged.
    """
    return Suspects.from_json(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else Suspects()
