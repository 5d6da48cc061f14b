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
        self.num_waiting = 0

    def claim(self, key: RowKey, prompt_token_ids: list[int], params: Params) -> Completion | bool:
        """A completion for the row if there is one; else whether the row must be generated itself."""
        asked = _digest(prompt_token_ids, params)
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


def _digest(prompt_token_ids: list[int], params: Params) -> bytes:
    asked = hashlib.blake2b(array("q", prompt_token_ids).tobytes(), digest_size=16)
    asked.update(json.dumps({name: params[name] for name in sorted(params) if name != "seed"}).encode())
    return asked.digest()


def _copy(completion: Completion, key: RowKey) -> Completion:
    return replace(completion, key=key, deduplicated=True)
