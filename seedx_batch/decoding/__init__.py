"""How one row is decoded: a decoder is a small state machine that asks for engine requests until it is a completion.

Must never know vLLM, files, or that other rows exist.
"""

from dataclasses import dataclass
from typing import Protocol

from seedx_batch.records import Completion, EngineOutput, Params, Request


class Decoder(Protocol):
    """One row's decoding."""

    def start(self) -> list[Request]:
        """The requests to begin with."""

    def advance(self, output: EngineOutput) -> list[Request]:
        """Further requests that an answer calls for; none once `completion` is there."""

    @property
    def completion(self) -> Completion | None:
        """What the row ended as, once it has."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A row that was rendered, tokenised and given its budget: its decoder, and what will be asked of the engine."""

    decoder: Decoder
    prompt_token_ids: list[int]
    params: Params
