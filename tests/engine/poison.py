"""A logits processor that kills its process as soon as one prompt is in the batch: a row that no engine survives."""

import os
import signal
from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor


class Poison(LogitsProcessor):
    """Knows the prompt by a token that no other has; POISON_TOKEN says which."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._token_id = int(os.environ["POISON_TOKEN"])

    def is_argmax_invariant(self) -> bool:
        """Nothing changes, as long as there is a process."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Looks at the prompts that come into the batch."""
        for _, _, prompt_token_ids, _ in batch_update.added if batch_update else ():
            if self._token_id in (prompt_token_ids or ()):
                os.kill(os.getpid(), signal.SIGKILL)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Changes nothing."""
        return logits
