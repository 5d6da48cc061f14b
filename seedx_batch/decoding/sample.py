"""Sampling and greedy decoding: one request in, one completion out.

Must never know vLLM, files, or that other rows exist.
"""

import hashlib
from dataclasses import replace
from typing import Any

from seedx_batch.decoding import NOTHING, Finish, Wanted
from seedx_batch.records import Completion, EngineOutput, Params, Request, RequestId, RowKey, Status
from seedx_batch.spec import SampleDecoding

_UNFINISHED = ("length", "repetition")
_BROKEN = ("abort", "error", None)


def base_params(spec: SampleDecoding, stop: tuple[str, ...]) -> dict[str, Any]:
    """The sampling parameters that all rows share, under vLLM's names.

    Args:
        stop: the preset's stop strings, beside the job's own.
    """
    params = spec.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude={"method", "dedup", "seed", "max_tokens", "stop"}
    )
    params["stop"] = list(dict.fromkeys([*stop, *spec.stop]))
    return params


def row_seed(job_seed: int, row_id: str) -> int:
    """A row's own seed in 0..2**48-1, the same in every run of the job."""
    digest = hashlib.blake2b(f"{job_seed}\0{row_id}".encode("utf-8", "surrogatepass"), digest_size=6)
    return int.from_bytes(digest.digest(), "big")


class SampleDecoder:
    """Asks once; the first candidate is the row's text."""

    def __init__(self, key: RowKey, prompt_token_ids: list[int], params: Params, finish: Finish) -> None:
        self._request = Request(RequestId(key, 0), prompt_token_ids, params)
        self._finish = finish
        self.completion: Completion | None = None

    def start(self) -> list[Request]:
        """The one request."""
        return [self._request]

    def advance(self, output: EngineOutput) -> Wanted:
        """Makes the answer the row's completion."""
        self.completion = complete(self._request.id.row, output, self._finish)
        return NOTHING

    @property
    def unfinished(self) -> list[RequestId]:
        """The one request, until it is answered."""
        return [self._request.id] if self.completion is None else []

    @property
    def num_wasted_tokens(self) -> int:
        """None: what was generated is the row's text."""
        return 0


def complete(key: RowKey, output: EngineOutput, finish: Finish) -> Completion:
    """What an engine's answer makes of a row."""
    candidates = output.candidates
    first = candidates[0]
    status: Status = "truncated" if first.finish_reason in _UNFINISHED else "ok"
    text: str | None = None
    extra: dict[str, str | None] = {}
    error = None
    if first.finish_reason in _BROKEN:
        status, error = "error", f"engine_{first.finish_reason or 'error'}: the engine gave the request up"
    else:
        text, extra = finish(first.text)
    several = len(candidates) > 1 and error is None
    return Completion(
        key,
        status,
        text=text,
        finish_reason=first.finish_reason,
        error=error,
        num_prompt_tokens=output.num_prompt_tokens,
        num_cached_tokens=output.num_cached_tokens,
        num_output_tokens=sum([candidate.num_output_tokens for candidate in candidates]),
        candidates=tuple(replace(each, text=finish(each.text)[0]) for each in candidates) if several else (),
        extra=extra,
    )
