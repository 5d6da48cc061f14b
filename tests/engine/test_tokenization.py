"""From prompt to tokens, with real tokenizers of tiny models."""

import json
from pathlib import Path
from typing import Any

import pytest

from seedx_batch.engine.tokenization import Tokenization, check_fits
from seedx_batch.errors import RowRejected, SpecError
from seedx_batch.records import Message
from tests.tiny_models import tiny_chat, tiny_seed_x

pytestmark = pytest.mark.engine  # transformers takes seconds to import

HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def load(folder: Path) -> Any:
    """The tokenizer, as vLLM loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def seed_x(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer that adds BOS and has no chat template."""
    return load(tiny_seed_x(tmp_path_factory.mktemp("seed-x")))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer that adds nothing and has a chat template."""
    return load(tiny_chat(tmp_path_factory.mktemp("chat")))


def without_bos(folder: Path) -> Any:
    """A tokenizer whose files were converted without the step that adds BOS."""
    tiny_seed_x(folder)
    tree = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**tree, "post_processor": None}), encoding="utf-8")
    return load(folder)


def test_text_gets_what_the_tokenizer_adds(seed_x: Any) -> None:
    """A text's tokens are the tokenizer's own, BOS first, and give the text again."""
    tokenization = Tokenization(seed_x, None, False, 64)
    ids = tokenization.encode("hello the 今天 龘")
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert seed_x.decode(ids, skip_special_tokens=True).strip() == "hello the 今天 龘"


def test_messages_get_what_the_template_writes(chat: Any) -> None:
    """A chat prompt is the rendered template with the assistant's turn begun, and nothing is added to it."""
    ids = Tokenization(chat, None, False, 128).encode(HELLO)
    begin, end = chat.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [token for token in ids if token in (begin, end)] == [begin, end, begin]
    assert chat.decode(ids).replace(" ", "") == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_own_template_comes_before_the_models(chat: Any, seed_x: Any) -> None:
    """A job's chat template replaces the model's, or stands in where there is none."""
    template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    for tokenizer in (chat, seed_x):
        tokenization = Tokenization(tokenizer, template, False, 64)
        ids = tokenization.encode(HELLO)
        assert ids[0] == 1
        assert tokenizer.decode(ids[1:]).strip() == "hello"
        tokenization.check(HELLO, ids)


def test_no_template_is_the_jobs_fault(seed_x: Any) -> None:
    """Messages for a model without a chat template are refused with the remedy."""
    with pytest.raises(SpecError, match=r"no chat template, give prompt\.chat_template, or use preset raw"):
        Tokenization(seed_x, None, False, 64).encode(HELLO)


def test_broken_template_is_the_jobs_fault(seed_x: Any) -> None:
    """A chat template that is no jinja is said to be that, with its line."""
    with pytest.raises(SpecError, match=r"prompt\.chat_template: .*line 2"):
        Tokenization(seed_x, "{{ bos_token }}\n{% if %}", False, 64).encode(HELLO)


def test_messages_that_the_template_refuses_are_the_rows_fault(chat: Any) -> None:
    """A template's own complaint rejects the row and is quoted."""
    with pytest.raises(RowRejected, match="no such role: judge") as caught:
        Tokenization(chat, None, False, 64).encode([{"role": "judge", "content": "hello"}])
    assert caught.value.kind == "chat_template"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ messages[0].content.nothing() }}",
        "{{ messages[99].content }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ range(1000000000) | list }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_whatever_a_template_raises_is_about_the_row(template: str, chat: Any) -> None:
    """A chat template that divides by zero, recurses or wants Python's objects or files rejects the row, no more."""
    with pytest.raises(RowRejected, match="the chat template refuses the messages: ") as caught:
        Tokenization(chat, template, False, 64).encode(HELLO)
    assert caught.value.kind == "chat_template"


def test_too_long_is_told_in_tokens(seed_x: Any) -> None:
    """A prompt fits if it leaves room for one token; the message names both numbers."""
    tokenization = Tokenization(seed_x, None, False, 64)
    assert len(tokenization.encode("9" * 61)) == 63
    with pytest.raises(RowRejected, match="64 tokens; at most 63 fit") as caught:
        tokenization.encode("9" * 62)
    assert caught.value.kind == "prompt_too_long"


def test_huge_text_is_never_tokenised(seed_x: Any) -> None:
    """Ten megabytes are rejected by their length alone."""

    class Untouched:
        bos_token_id = None
        chat_template = None

        def get_vocab(self) -> dict[str, int]:
            return {"ab": 0, "abcdefgh": 1}

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            if len(text) > 512:
                raise AssertionError("tokenised")
            return [0] * 9

    tokenization = Tokenization(Untouched(), None, False, 64)
    assert len(tokenization.encode("x" * 512)) == 9
    for length in (513, 10_000_000):
        with pytest.raises(RowRejected, match=f"{length:,} characters; at most 63 tokens fit"):
            tokenization.encode("x" * length)


def test_text_that_is_none_is_the_rows_fault(seed_x: Any) -> None:
    """A lone surrogate, which no tokenizer takes, rejects the row."""
    with pytest.raises(RowRejected) as caught:
        Tokenization(seed_x, None, False, 64).encode("a\ud800b")
    assert caught.value.kind == "prompt_invalid"


def test_empty_text_of_a_bare_tokenizer_has_no_tokens(chat: Any) -> None:
    """Measuring an empty text is no fault; only asking the engine about it is."""
    assert Tokenization(chat, None, False, 64).encode("") == []
    with pytest.raises(RowRejected, match="prompt_empty"):
        check_fits(0, 64)


def test_doubled_bos_is_always_a_fault(seed_x: Any) -> None:
    """A template text that writes what the tokenizer adds is refused, for a text and for a chat."""
    tokenization = Tokenization(seed_x, None, False, 64)
    text = "<s>hello"
    ids = tokenization.encode(text)
    assert ids[:2] == [1, 1]
    with pytest.raises(SpecError, match="begin with <s> twice, take it out of the prompt's text"):
        tokenization.check(text, ids)
    with pytest.raises(SpecError, match="take it out of the chat template"):
        tokenization.check(HELLO, ids)


def test_missing_bos_is_a_fault_where_the_tokenizer_adds_it(seed_x: Any) -> None:
    """A chat template without BOS on a model that is used to one is refused with the remedy."""
    tokenization = Tokenization(seed_x, "{{ messages[0]['content'] }}", False, 64)
    with pytest.raises(SpecError, match=r"begin the chat template with \{\{ bos_token \}\}"):
        tokenization.check(HELLO, tokenization.encode(HELLO))


def test_missing_bos_is_a_fault_where_the_model_needs_it(tmp_path: Path) -> None:
    """A tokenizer that lost BOS in a conversion passes only for models that do not need it."""
    tokenizer = without_bos(tmp_path)
    lost = Tokenization(tokenizer, None, False, 64)
    lost.check("hello", lost.encode("hello"))
    needed = Tokenization(tokenizer, None, True, 64)
    with pytest.raises(SpecError, match="do not begin with <s>, which this model needs"):
        needed.check("hello", needed.encode("hello"))
    needed.check("<s>hello", needed.encode("<s>hello"))


def test_no_bos_is_right_where_none_is_wanted(chat: Any) -> None:
    """A raw text on a model whose tokenizer adds nothing passes, and so does its own chat prompt."""
    tokenization = Tokenization(chat, None, False, 64)
    tokenization.check("hello", tokenization.encode("hello"))
    tokenization.check(HELLO, tokenization.encode(HELLO))
