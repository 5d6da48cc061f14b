"""The Engine protocol: what the loop may ask of whatever generates text.

Must never know vLLM, a shard or a file; implementations are `vllm.py` and `simulated.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from seedx_batch.records import EngineOutput, Params, Prompt, Request, RequestId


class Engine(Protocol):
    """A continuously batching generator that is fed and emptied by one thread."""

    @property
    def max_model_len(self) -> int:
        """Tokens of a prompt and its output together, at most."""

    @property
    def max_num_seqs(self) -> int:
        """Sequences that are generated at the same time, at most."""

    @property
    def num_kv_tokens(self) -> int:
        """Tokens that there is room for, of all sequences together."""

    @property
    def block_size(self) -> int:
        """Tokens by which that room is given away."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end a text, of the tokenizer and of the model's generation_config.json."""

    @property
    def versions(self) -> Mapping[str, str]:
        """The packages that results depend on, by name."""

    @property
    def num_unfinished(self) -> int:
        """Requests that were added and are neither answered nor aborted."""

    @property
    def num_steps(self) -> int:
        """Steps done so far."""

    @property
    def last_step(self) -> tuple[float, float]:
        """When the last step began and ended, by time.monotonic's clock; an engine in a process of its own says it."""

    @property
    def num_output_tokens(self) -> int:
        """Tokens that were answered so far."""

    @property
    def num_prefilled_tokens(self) -> int:
        """Tokens of the answered requests' prompts that were computed, not found in the cache."""

    def check_params(self, params: Params) -> None:
        """Lets pass what every row of a job may ask for.

        Raises:
            SpecError: a parameter that this engine does not know, or a value that it refuses.
            EngineConfigError: a parameter that this version of it lacks.
        """

    def check_prompt(self, prompt: Prompt, prompt_token_ids: list[int]) -> None:
        """Lets pass a prompt whose tokens begin as the model was trained to see them.

        Raises:
            SpecError: the beginning-of-sequence token is missing or doubled.
        """

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens, with what the tokenizer adds to a text or the chat template to messages.

        Raises:
            RowRejected: the prompt cannot fit, or cannot be made into tokens.
            SpecError: messages, and the model has no chat template.
        """

    def decode(self, token_ids: Sequence[int], prompt_token_ids: Sequence[int] = ()) -> str:
        """The text that tokens add to a prompt's, without special tokens."""

    def add(self, request: Request) -> None:
        """Takes a request in.

        Raises:
            RowRejected: the request is at fault; the engine is as before.
            EngineDied: the engine is gone.
            ValueError: a request of that id is unfinished.
        """

    def step(self) -> list[EngineOutput]:
        """The requests that one step finished, and what it added to streaming ones; none where all are finished.

        Raises:
            EngineDied: the engine is gone, and its unfinished requests with it.
        """

    def abort(self, requests: Iterable[RequestId]) -> None:
        """Forgets requests: they are never answered. Ids that are not unfinished are passed over."""

    def close(self) -> None:
        """Ends the engine and every process of its own; a second time does nothing."""
