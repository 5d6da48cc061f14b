"""What may be told: secrets are masked by form, key and environment; control characters are written out."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedx_batch.telling import masked, names_secret, shown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("at https://user:pa:ss@host/x", "at https://***@host/x"),
        ("(s3://KEY:sec/ret+x@bucket/a)", "(s3://***@bucket/a)"),
        ("https://token@host and ftp://:x@y", "https://***@host and ftp://***@y"),
        ("https://h/x?a=1&sig=abc&b=2", "https://h/x?a=1&sig=***&b=2"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "***"),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY.abcdef", "Bearer ***"),
        ("key AKIAIOSFODNN7EXAMPLE.", "key ***."),
        ("it is environment-secret!", "it is ***!"),
    ],
)
def test_secrets_are_masked(text: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of URLs, tokens of known forms and values of secret variables become ***; what is around stays."""
    monkeypatch.setenv("MY_API_KEY", "environment-secret")
    assert masked(text) == told


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b",
        "hf://datasets/org/name@main/a.jsonl",
        "ByteDance-Seed/Seed-X-Instruct-7B",
        "mail@host",
        "task-vectors-1",
        "see https://a.b/c?page=2",
        "068cb5fc" * 8,
        "sk-learn-is-a-library-name",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """Addresses with ports, revisions, model names and digests are told as they are."""
    assert masked(text) == text


@pytest.mark.parametrize("key", ["hf_token", "HF-Token", "api_key", "aws_secret_access_key", "password", "token"])
def test_keys_of_secrets(key: str) -> None:
    """Keys at which secrets stand are known, and those of special tokens and budgets are not among them."""
    assert names_secret(key)
    assert not any(map(names_secret, ("eos_token", "max_tokens", "stop_token_ids", "key", "tokenizer", "bos_token_id")))


@given(st.text())
def test_nothing_moves_the_cursor(text: str) -> None:
    """No control character but newline and tab is shown, and a JSON text means the same when it is shown."""
    told = shown(text)
    assert all(letter in "\n\t" or letter >= " " for letter in told)
    assert not set(told) & set("\x7f\x9b\u202e\u2066\u200f\r")
    written = json.dumps(text, ensure_ascii=False)
    assert json.loads(shown(written)) == json.loads(masked(written))


def test_long_texts_are_masked_soon() -> None:
    """Texts made to keep a pattern busy take no more than a second."""
    began = time.process_time()
    for text in (
        "a://" * 9_000,
        "a" * 300_000,
        "://" + ":" * 20_000,
        "x://a:" * 20_000,
        "?sig=" * 9_000,
        "eyJ" * 20_000,
    ):
        masked(text)
    assert time.process_time() - began < 6
