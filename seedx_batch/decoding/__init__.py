"""How one row is decoded: a decoder is a small state machine that asks for engine requests until it is a completion.

Must never know vLLM, files, or that other rows exist.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from seedx_batch.records import Completion, EngineOutput, Params, Request, RequestId

Finish = Callable[[str], tuple[str, dict[str, str | None]]]
"""Cuts a generated text into the result and the preset's further columns."""


class Wanted(NamedTuple):
    """What a decoder wants of the engine now: requests to add, then requests to give up."""

    requests: list[Request]
    aborts: list[RequestId]


NOTHING = Wanted([], [])


class Decoder(Protocol):
    """One row's decoding."""

    def start(self) -> list[Request]:
        """The requests to begin with."""

    def advance(self, output: EngineOutput) -> Wanted:
        """What an answer calls for; no further requests once `completion` is there."""

    @property
    def completion(self) -> Completion | None:
        """What the row ended as, once it has."""

    @property
    def unfinished(self) -> list[RequestId]:
        """The row's requests that are in the engine."""

    @property
    def num_wasted_tokens(self) -> int:
        """Tokens that the engine generated for the row and that no hypothesis came to."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A row that was rendered, tokenised and given its budget: its decoder, and what will be asked of the engine.

    Args:
        num_sequences: that run at the same time, at most.
        num_kv_tokens: of the engine's room that must be free for them; 0 where the engine may see to it itself.
    """

    decoder: Decoder
    prompt_token_ids: list[int]
    params: Params
    num_sequences: int = 1
    num_kv_tokens: int = 0
