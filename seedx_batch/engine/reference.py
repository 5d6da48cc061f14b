"""The reference: a model as transformers computes it on the CPU, token by token, without any batching.

Must never know vLLM, a job, or what its logits are compared with.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from seedx_batch.engine.tokenization import Tokenization
from seedx_batch.errors import EngineConfigError, EngineError
from seedx_batch.records import Prompt

try:
    import numpy as np
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config
except ImportError as error:
    raise EngineConfigError(f"transformers cannot be imported here: {error}") from error

Logits = np.ndarray[Any, np.dtype[np.float32]]
_MAX_LEN = 1 << 20


class Reference:
    """One model in one dtype.

    Args:
        args: the model's part of vLLM's EngineArgs: `model`, `tokenizer`, `revision`, `dtype`, ...
        chat_template: a jinja text that replaces the model's own.

    Raises:
        EngineError: transformers cannot load it.
    """

    def __init__(self, args: Mapping[str, Any], chat_template: str | None = None) -> None:
        name, given = args["model"], {"trust_remote_code": bool(args.get("trust_remote_code"))}
        tokenizer_name = args.get("tokenizer") or name
        tokenizer_given = {**given, "revision": args.get("tokenizer_revision") or args.get("revision")}
        dtype = args.get("dtype", "auto")
        try:
            self._model = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                attn_implementation="eager",  # the plainest
                revision=args.get("revision"),
                **given,
            ).eval()
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_name, **tokenizer_given)
            needs_bos = bool(get_tokenizer_config(tokenizer_name, **tokenizer_given).get("add_bos_token"))
        except (OSError, ValueError, ImportError, AttributeError) as error:
            raise EngineError(f"transformers cannot load '{name}': {' '.join(str(error).split())[:400]}") from error
        config = self._model.config
        needs_bos = needs_bos or str(config.model_type).startswith("gemma")  # as engine/vllm.py has it
        self._tokenization = Tokenization(
            tokenizer, chat_template, needs_bos, getattr(config, "max_position_embeddings", None) or _MAX_LEN
        )
        listed = self._model.generation_config.eos_token_id
        ends = [tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])]
        self._ends = frozenset(token_id for token_id in ends if token_id is not None)
        self.dtype = str(self._model.dtype).removeprefix("torch.")
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens.

        Raises:
            RowRejected: it cannot fit, or cannot be made into tokens.
            SpecError: the tokens do not begin as the model needs them.
        """
        token_ids = self._tokenization.encode(prompt)
        self._tokenization.check(prompt, token_ids)
        return token_ids

    def decode(self, token_ids: Sequence[int], prompt_token_ids: Sequence[int]) -> str:
        """The text that tokens add to a prompt's."""
        return self._tokenization.decode(token_ids, prompt_token_ids)

    def greedy(self, prompt_token_ids: list[int], max_tokens: int) -> tuple[list[int], Logits]:
        """The likeliest continuation, with the token that ends it, and the logits of each of its places."""
        output: list[int] = []
        rows: list[Logits] = []
        fed, past = prompt_token_ids, None
        with torch.inference_mode():
            while len(output) < max_tokens and not (output and output[-1] in self._ends):
                told = self._model(torch.tensor([fed]), past_key_values=past, use_cache=True, logits_to_keep=1)
                past = told.past_key_values
                row = told.logits[0, -1].float()
                rows.append(row.numpy())
                output.append(int(row.argmax()))
                fed = output[-1:]
        return output, np.stack(rows)

    def forced(self, prompt_token_ids: list[int], token_ids: list[int]) -> Logits:
        """The logits of each place of a given continuation, all in one pass."""
        fed = torch.tensor([[*prompt_token_ids, *token_ids[:-1]]])
        with torch.inference_mode():
            told = self._model(fed, use_cache=False, logits_to_keep=len(token_ids))
        scored: Logits = told.logits[0, -len(token_ids) :].float().numpy()
        return scored
