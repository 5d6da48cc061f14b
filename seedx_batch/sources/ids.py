"""Which ids occur more than once, in bounded memory: exact for the first million ids, of a sample beyond.

Must never know files or rows.
"""

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_MAX_HASHES = 1 << 20
_MASK = (1 << 64) - 1

Hashes = npt.NDArray[np.uint64]


class IdCounter:
    """Sees ids; keeps a 64-bit hash of each, and of too many those that a power of two divides."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._repeated: Hashes = np.empty(0, np.uint64)
        self._dropped_bits = 0

    def add(self, texts: Sequence[str]) -> None:
        """Takes some more ids; thousands at a time are quick."""
        hashes = np.fromiter(map(hash, texts), np.int64, len(texts)).view(np.uint64)
        self._hashes.frombytes(self._kept(hashes).view(np.uint8).data)
        if len(self._hashes) > _MAX_HASHES:
            self._compact()

    @property
    def sampled_from(self) -> int:
        """Of how many ids one is counted; 1: of all."""
        return self._dropped_bits + 1

    def num_repeated(self) -> int:
        """How many of the counted ids occur more than once."""
        self._distinct()
        return len(self._repeated)

    def is_repeated(self, text: str) -> bool:
        """Whether this id is one of those that `num_repeated` counted."""
        value = np.uint64(hash(text) & _MASK)
        place = int(np.searchsorted(self._repeated, value))
        return place < len(self._repeated) and bool(self._repeated[place] == value)

    def _compact(self) -> None:
        """Keeps each hash once, and fewer if they still are many."""
        hashes, is_first = self._distinct()
        hashes = hashes[is_first]
        while len(hashes) > _MAX_HASHES // 2:
            self._dropped_bits = self._dropped_bits * 2 + 1
            hashes = self._kept(hashes)
            self._repeated = self._kept(self._repeated)
        self._hashes = array("Q")
        self._hashes.frombytes(hashes.view(np.uint8).data)

    def _distinct(self) -> tuple[Hashes, npt.NDArray[np.bool_]]:
        """The hashes, sorted, and which of them differ from the one before; the others are noted as repeated."""
        hashes: Hashes = np.frombuffer(self._hashes, np.uint64)
        hashes.sort()  # in place: a copy would double the memory
        is_first = np.ones(len(hashes), np.bool_)
        np.not_equal(hashes[1:], hashes[:-1], out=is_first[1:])
        self._repeated = np.union1d(self._repeated, hashes[~is_first])
        return hashes, is_first

    def _kept(self, hashes: Hashes) -> Hashes:
        kept: Hashes = hashes[hashes & np.uint64(self._dropped_bits) == 0]
        return kept
