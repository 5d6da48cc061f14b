"""A logits processor for vLLM that writes down the logits of every place, and makes the engine go on with given tokens.

It runs in vLLM's worker, on the decode path that a job takes, and sees logits before any temperature or penalty; it
must never know what they are compared with. A request asks for it with `extra_args={"record_to": file, "forced": ids}`.
"""

import contextlib
from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

NAME = "seedx_batch.engine.recorder:Recorder"
"""What vLLM's argument `logits_processors` is given."""


class Recorder(AdapterLogitsProcessor):  # type: ignore[misc]  # vLLM is not looked into
    """Records requests that ask for it, and leaves the others alone."""

    def is_argmax_invariant(self) -> bool:
        """Forced tokens are others than the likeliest."""
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """What is called for each place of a request, or None."""
        extra = params.extra_args or {}
        path, forced = extra.get("record_to"), extra.get("forced")
        if path is None:
            return None

        def record(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            place = len(output_ids)  # a place that is computed again, in pieces or after a pause, is written again
            _write(path, place, logits)
            if forced is not None:
                logits.fill_(float("-inf"))
                logits[forced[min(place, len(forced) - 1)]] = 0.0
            return logits

        return record


def _write(path: str, place: int, logits: torch.Tensor) -> None:
    row = logits.detach().to("cpu", torch.float32).numpy().tobytes()
    with contextlib.suppress(FileExistsError), open(path, "xb"):
        pass
    with open(path, "r+b") as file:  # every rank of a tensor parallel engine writes the same
        file.seek(place * len(row))
        file.write(row)
