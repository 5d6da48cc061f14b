"""A mapping of a yaml file, whose values are fetched by type; what is wrong becomes a fault and a blank value.

Must never know what the mapping means.
"""

import difflib
from collections.abc import Collection
from typing import Any

from seedx_batch.errors import Fault


class Section:
    """One mapping.

    Args:
        tree: what the yaml holds there.
        where: what faults call the place.
        faults: grows by what is found wrong.
        keys: the keys that may be there; None: any.

    Attributes:
        tree: the values of the keys that may be there.
    """

    def __init__(self, tree: object, where: str, faults: list[Fault], keys: Collection[str] | None = None) -> None:
        self.tree: dict[str, Any] = {}
        self.where = where
        self.faults = faults
        if not isinstance(tree, dict):
            faults.append(Fault(where, "must be a mapping"))
            return
        for key, value in tree.items():
            if keys is not None and key not in keys:
                self.fault(key, "no such key", closest(key, keys))
            else:
                self.tree[key] = value

    def fault(self, key: str, what: str, remedy: str = "") -> None:
        """Notes what is wrong at a key."""
        self.faults.append(Fault(f"{self.where}: {key}", what, remedy))

    def get(self, key: str, kind: type, what: str, default: Any) -> Any:
        """The value of a key, which must be of a type; `what` names the type in the fault."""
        value = self.tree.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is str and not value):
            self.fault(key, f"must be {what}")
            return default
        return value

    def text(self, key: str, default: str = "", *, required: bool = False) -> str:
        """The text of a key; never empty in the file."""
        if required and self.tree.get(key) is None:
            self.fault(key, "is missing")
        return str(self.get(key, str, "text", default))

    def choice(self, key: str, choices: tuple[str, ...], default: str | None) -> str:
        """The text of a key, which must be one of a few; without a default it must be there."""
        value = self.text(key, default or "", required=default is None)
        if value and value not in choices:
            self.fault(key, f"must be one of {', '.join(choices)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """The list of texts of a key."""
        values = self.get(key, list, "a list of texts", [])
        if not all(isinstance(value, str) and value for value in values):
            self.fault(key, "must be a list of texts")
            return ()
        return tuple(values)

    def section(self, key: str, keys: Collection[str] | None = None) -> "Section":
        """The mapping of a key; empty where there is none."""
        return Section(self.get(key, dict, "a mapping", {}), f"{self.where}: {key}", self.faults, keys)


def closest(word: str, known: Collection[str]) -> str:
    """What to do about a word that is not known."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(known)
