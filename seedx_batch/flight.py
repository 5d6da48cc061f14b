"""The rows in flight, in a file that a dead process leaves behind: who was in the engine, and whether it still steps.

Written through a shared mapping, so that it costs no call and no death of the process loses it (a power cut may); must
never know engines or what becomes of the rows.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from seedx_batch.durable import writing
from seedx_batch.records import RowKey

_HEADER = struct.Struct("<QQ")  # steps begun, steps ended
_SLOT = struct.Struct("<qq")  # shard + 1, position; a shard of 0 is no row
_GROWTH = 256


class Flight:
    """One worker's record; a new one begins empty.

    Raises:
        StorageError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slots: dict[RowKey, int] = {}
        self._free: list[int] = []
        self._num_begun = self._num_ended = 0
        with writing(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._map = self._mapped(0)

    def enter(self, key: RowKey) -> None:
        """Notes that a row is in the engine from now on."""
        if not self._free:
            self._map = self._mapped(len(self._slots))
        slot = self._slots[key] = self._free.pop()
        _SLOT.pack_into(self._map, slot, key.shard + 1, key.position)

    def leave(self, key: RowKey) -> None:
        """Notes that a row is in the engine no longer."""
        slot = self._slots.pop(key)
        _SLOT.pack_into(self._map, slot, 0, 0)
        self._free.append(slot)

    def begin_step(self) -> None:
        """Notes that the engine works from now on."""
        self._num_begun += 1
        _HEADER.pack_into(self._map, 0, self._num_begun, self._num_ended)

    def end_step(self) -> None:
        """Notes that the engine has answered."""
        self._num_ended += 1
        _HEADER.pack_into(self._map, 0, self._num_begun, self._num_ended)

    def close(self) -> None:
        """Closes the file; what it holds stays.

        Raises:
            StorageError: the system says that it could not.
        """
        self._map.close()
        with writing(self._path):
            os.close(self._fd)

    def _mapped(self, num_slots: int) -> mmap.mmap:
        """The file with more free slots than it has."""
        first, size = _HEADER.size + num_slots * _SLOT.size, _HEADER.size + (num_slots + _GROWTH) * _SLOT.size
        with writing(self._path):
            os.posix_fallocate(self._fd, 0, size)  # a full disk is told here, instead of by a signal later
            mapped = mmap.mmap(self._fd, size)
        self._free += range(size - _SLOT.size, first - 1, -_SLOT.size)
        return mapped


@dataclass(frozen=True, slots=True)
class Sight:
    """What a record holds.

    Args:
        rows: those in flight.
        num_steps: steps that have begun.
        steps: whether the last of them has not ended.
    """

    rows: frozenset[RowKey] = frozenset()
    num_steps: int = 0
    steps: bool = False


def read(path: Path) -> Sight:
    """What a record holds, also while it is written; nothing where there is none."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return Sight()
    if len(text) < _HEADER.size:
        return Sight()
    num_begun, num_ended = _HEADER.unpack_from(text)
    slots = _SLOT.iter_unpack(text[_HEADER.size : len(text) - (len(text) - _HEADER.size) % _SLOT.size])
    rows = frozenset(RowKey(shard - 1, position) for shard, position in slots if shard)
    return Sight(rows, num_begun, num_begun > num_ended)
