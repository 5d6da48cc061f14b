"""Identical requests: the first is generated, the others get its completion, in flight or shortly after.

Must never know the engine; a request is identical by its prompt's tokens and its parameters without the seed.
"""

import hashlib
import json
from array import array
from collections import OrderedDict
from dataclasses import replace

from seedx_batch.records import Completion, Params, RowKey

NUM_RECENT = 10_000
"""Completions that are remembered after their rows are done; bounds the memory."""

_MAX_TOLD = 1024


class Twins:
    """Rows in flight and recent completions by what was asked.

    Args:
        num_recent: completions that are remembered after their rows are done.
    """

    def __init__(self, num_recent: int = NUM_RECENT) -> None:
        self._num_recent = num_recent
        self._leading: dict[RowKey, bytes] = {}
        self._waiting: dict[bytes, list[RowKey]] = {}
        self._recent: OrderedDict[bytes, Completion] = OrderedDict()
        # By identity, as rows of greedy jobs share theirs; each is kept, so that no other can get its identity.
        self._told: dict[int, tuple[Params, bytes]] = {}
        self.num_waiting = 0

    def claim(self, key: RowKey, prompt_token_ids: list[int], params: Params) -> Completion | bool:
        """A completion for the row if there is one; else whether the row must be generated itself."""
        asked = self._digest(prompt_token_ids, params)
        known = self._recent.get(asked)
        if known is not None:
            self._recent.move_to_end(asked)
            return _copy(known, key)
        if asked in self._waiting:
            self._waiting[asked].append(key)
            self.num_waiting += 1
            return False
        self._waiting[asked] = []
        self._leading[key] = asked
        return True

    def settle(self, completion: Completion) -> list[Completion]:
        """The completions of the rows that waited for this one; an error is theirs too, but is not remembered."""
        asked = self._leading.pop(completion.key, None)
        if asked is None:
            return []
        if completion.status != "error":
            self._recent[asked] = completion
            if len(self._recent) > self._num_recent:
                self._recent.popitem(last=False)
        waiting = self._waiting.pop(asked)
        self.num_waiting -= len(waiting)
        return [_copy(completion, key) for key in waiting]

    def _digest(self, prompt_token_ids: list[int], params: Params) -> bytes:
        told = self._told.get(id(params))
        if told is None:
            if len(self._told) >= _MAX_TOLD:
                self._told.clear()
            text = json.dumps({name: params[name] for name in sorted(params) if name != "seed"})
            told = self._told[id(params)] = (params, text.encode())
        return hashlib.blake2b(array("q", prompt_token_ids).tobytes() + told[1], digest_size=16).digest()


def _copy(completion: Completion, key: RowKey) -> Completion:
    return replace(completion, key=key, deduplicated=True)
