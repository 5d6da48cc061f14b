"""A prompt on its way to tokens: what a tokenizer adds to a text, chat templates, and how a prompt must begin.

Works with any tokenizer that speaks as transformers' do; it must never know vLLM or files.
"""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateSyntaxError

from seedx_batch.errors import Fault, RowRejected, SpecError
from seedx_batch.records import Message, Prompt

_MAX_REASON = 500
_CONTEXT = 6  # tokens of a prompt that are decoded again together with what follows it


class Tokenization:
    """Makes prompts into tokens for one model.

    Args:
        tokenizer: the model's.
        chat_template: a jinja text that replaces the tokenizer's own.
        needs_bos: the model wants the beginning-of-sequence token even where its tokenizer does not add it.
        max_model_len: tokens of a prompt and its output together, at most.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None, needs_bos: bool, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._has_template = bool(chat_template or getattr(tokenizer, "chat_template", None))
        self._max_model_len = max_model_len
        self._bos_id: int | None = tokenizer.bos_token_id
        self._wants_bos = needs_bos or _adds_bos(tokenizer)
        # A text of more characters than this has too many tokens, whatever they are.
        self._max_chars = max_model_len * max(map(len, tokenizer.get_vocab()))

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens.

        Raises:
            RowRejected: it cannot fit, or cannot be made into tokens.
            SpecError: messages, and there is no chat template, or a broken one.
        """
        text = prompt if isinstance(prompt, str) else self._render(prompt)
        if len(text) > self._max_chars:
            raise RowRejected(
                "prompt_too_long", f"{len(text):,} characters; at most {self._max_model_len - 1:,} tokens fit"
            )
        try:
            # A chat template writes the special tokens itself.
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=isinstance(prompt, str))
        except (TypeError, ValueError) as error:
            raise RowRejected("prompt_invalid", f"the tokenizer refuses it: {error}") from error
        if ids:  # the empty text of a tokenizer that adds nothing has a length too: none
            check_fits(len(ids), self._max_model_len)
        return ids

    def decode(self, token_ids: Sequence[int], prompt_token_ids: Sequence[int] = ()) -> str:
        """The text that tokens add to a prompt's, without special tokens; what comes before decides on a space."""
        before = list(prompt_token_ids[-_CONTEXT:])
        start = self._decode(before) if before else ""
        whole = self._decode([*before, *token_ids])
        return whole[len(start) :] if whole.startswith(start) else self._decode(list(token_ids))

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def check(self, prompt: Prompt, prompt_token_ids: list[int]) -> None:
        """Lets pass a prompt that begins with the beginning-of-sequence token once, where the model wants one.

        Raises:
            SpecError: it is missing or doubled.
        """
        bos = self._bos_id
        if bos is None:
            return
        is_chat = not isinstance(prompt, str)
        token = self._tokenizer.convert_ids_to_tokens(bos)
        if prompt_token_ids[:2] == [bos, bos]:
            place = "the chat template" if is_chat else "the prompt's text"
            raise SpecError(Fault("prompt", f"the tokens begin with {token} twice", f"take it out of {place}"))
        if self._wants_bos and prompt_token_ids[:1] != [bos]:
            remedy = (
                "begin the chat template with {{ bos_token }}"
                if is_chat
                else "let the post_processor in the model's tokenizer.json add it, or begin the prompt with it"
            )
            raise SpecError(Fault("prompt", f"the tokens do not begin with {token}, which this model needs", remedy))

    def _render(self, messages: list[Message]) -> str:
        if not self._has_template:
            raise SpecError(
                Fault("prompt.preset", "the model has no chat template", "give prompt.chat_template, or use preset raw")
            )
        try:
            # As text, because what it gives as tokens has another shape in transformers 5 than in 4.
            text: str = self._tokenizer.apply_chat_template(
                messages, chat_template=self._chat_template, add_generation_prompt=True, tokenize=False
            )
        except TemplateSyntaxError as error:
            what = f"the chat template is no valid jinja: {error.message} (line {error.lineno})"
            raise SpecError(Fault("prompt.chat_template", what)) from error
        except Exception as error:  # a template is its author's program: it may raise anything, and it is about one row
            reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
            raise RowRejected("chat_template", f"the chat template refuses the messages: {reason}") from error
        return text


def check_fits(num_tokens: int, max_model_len: int) -> None:
    """Lets pass a prompt that leaves room for one token.

    Raises:
        RowRejected: it is empty or too long.
    """
    if not num_tokens:
        raise RowRejected("prompt_empty", "the prompt has no tokens")
    if num_tokens + 1 > max_model_len:
        raise RowRejected("prompt_too_long", f"{num_tokens:,} tokens; at most {max_model_len - 1:,} fit")


def _adds_bos(tokenizer: Any) -> bool:
    bos = [tokenizer.bos_token_id]
    return bool(tokenizer.encode("a")[:1] == bos and tokenizer.encode("a", add_special_tokens=False)[:1] != bos)
