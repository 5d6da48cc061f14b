"""What may be told: no secret gets into a file or a message, and no control character onto a terminal.

Must never know who tells it; secrets are known by their form, by the key that they stand at, and by the environment.
"""

import os
import re

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)(?:[^\s@/:]{1,999}|[^\s@/:]{0,999}:(?!\d+/)[^\s@]{1,999})@")
_QUERY = re.compile(
    r"([?&](?:x-amz-(?:signature|credential|security-token)|signature|sig|token|access_token|api_?key|key)=)[^&\s#'\"]+",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-(?=[\w-]*\d)[\w-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"
)
_SECRET_KEY = re.compile(
    r"(?:^|_)(?:password|passwd|secret|secret_key|credentials?|authorization|api_?key|access_key(?:_id)?"
    r"|(?:hf|hub|auth|access|api|bearer|security|session|refresh)_?token)$|^token$"
)
_SECRET_VARIABLE = re.compile(_SECRET_KEY.pattern + r"|_(?:token|key)$")
_MIN_VALUE = 8  # characters; a shorter value of the environment would be found in anything

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]"
)
"""What moves a terminal's cursor, colours or reorders its text, or cannot be encoded; not newline and tab."""


def names_secret(key: str) -> bool:
    """Whether a key is one that secrets stand at: `hf_token`, `api_key`, but not `eos_token`."""
    return _SECRET_KEY.search(key.lower().replace("-", "_")) is not None


def masked(text: str) -> str:
    """The text with `***` in place of credentials in URLs, of tokens, and of secret values of the environment."""
    if "://" in text or "?" in text:
        text = _QUERY.sub(r"\1***", _URL.sub(r"\1***@", text))
    text = _TOKEN.sub("***", text)
    for value in _secret_values():
        text = text.replace(value, "***")
    return text


def shown(text: str) -> str:
    """The text as a terminal may have it: masked, and with `\\u001b` written out, which in JSON means the same."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", masked(text))


def _secret_values() -> list[str]:
    """The environment's, the longest first, as one may be part of another."""
    values = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name.lower())}
    return sorted((value for value in values if len(value) >= _MIN_VALUE), key=len, reverse=True)
