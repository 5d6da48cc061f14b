"""The nouns that travel through the program: shards, rows, requests, what an engine answers, completions.

Plain frozen values; they must never know files, vLLM or Arrow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

Status = Literal["ok", "truncated", "error"]
Params = Mapping[str, Any]
"""Sampling parameters under vLLM's names (`max_tokens`, `stop`, `seed`, ...); never changed once made."""


class Message(TypedDict):
    """One turn of a chat, in the form that chat templates take."""

    role: str
    content: str


Prompt = str | list[Message]


class RowKey(NamedTuple):
    """Names a row within a run: the index of its shard and its position in it, both from 0."""

    shard: int
    position: int


class RequestId(NamedTuple):
    """Names an engine request: the row that asked for it, and which of the row's requests it is, from 0."""

    row: RowKey
    sequence: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A contiguous slice of one input file.

    Args:
        index: place in the plan, from 0.
        path: the input file, as the plan names it.
        start_row: the slice's first record in the file, from 0.
        num_rows: how many records.
        start_byte: where that record begins in the (decompressed) file; 0 for parquet, which needs none.
        num_bytes: of the slice's text up to its last record's end, without line ends; a file's first slice begins at
            the file's beginning, header and all. 0 for parquet.
        digest: SHA-256 of that text, its first 16 hex digits; empty where there is none.
    """

    index: int
    path: str
    start_row: int
    num_rows: int
    start_byte: int = 0
    num_bytes: int = 0
    digest: str = ""

    @property
    def first_byte(self) -> int:
        """Where the text that `digest` is of begins."""
        return self.start_byte if self.start_row else 0


@dataclass(frozen=True, slots=True)
class Row:
    """One input record; `error` says why it could not be read, and `fields` is then empty."""

    key: RowKey
    id: str
    fields: Mapping[str, Any]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One thing asked of the engine.

    Args:
        streams: answered token by token, with the likeliest tokens of every place, rather than once.
        fork_of: a streaming request with the same tokens but for the last one, which is still unfinished or was given
            up since the last step: the engine may begin with what it has computed for that one.
    """

    id: RequestId
    prompt_token_ids: list[int]
    params: Params
    streams: bool = False
    fork_of: RequestId | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One generated text; `score` is its log-probability where that was asked for, of a beam divided by its length."""

    text: str
    finish_reason: str | None
    num_output_tokens: int
    score: float | None = None


class Place(NamedTuple):
    """One place of a streaming request's output: the token there, and the likeliest ones with log-probabilities."""

    token_id: int
    likeliest: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What the engine answers to one request.

    Args:
        candidates: in the engine's order; empty as long as a streaming request goes on.
        num_cached_tokens: of the prompt, those that were not computed again.
        places: of a streaming request, those since its last answer.
    """

    request_id: RequestId
    candidates: tuple[Candidate, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What one row ends as.

    Args:
        text: the result; None for an error.
        error: "kind: reason" for an error, else None.
        num_cached_tokens: prompt tokens that the prefix cache spared.
        num_output_tokens: tokens of all candidates together.
        candidates: all of them where the job asks for more than one, else empty.
        extra: the preset's further columns (an explanation, say) by name.
        deduplicated: copied from an identical request rather than generated.
    """

    key: RowKey
    status: Status
    text: str | None = None
    finish_reason: str | None = None
    error: str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    candidates: tuple[Candidate, ...] = ()
    extra: Mapping[str, str | None] = field(default_factory=dict)
    deduplicated: bool = False
