"""YAML as plain data: what is refused, how soon, and in which words."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedx_batch import plain_yaml
from seedx_batch.errors import SpecError

LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
DEEP = "[" * 100_000  # half a second: ruamel looks a thousand signs ahead, whatever follows


def refusal(text: str) -> str:
    """Why a text is refused."""
    with pytest.raises(SpecError) as refused:
        plain_yaml.read(text, "job.yaml")
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LAUGHS, "job.yaml: line 2: an alias (*) cannot be used here"),
        ("a: &a {<<: *a}", "an alias"),
        (DEEP, "nested more than 50 levels"),
        ("a: " + "{b: " * 60, "nested more than 50 levels"),
        ("".join(" " * depth + "a:\n" for depth in range(200)), "nested more than 50 levels"),
        ("a" * (1 << 21), "is longer than 1,048,576 characters"),
        ("a: 1\na: secret", 'job.yaml: is no valid YAML: line 2, column 1: found duplicate key "a"'),
        ("a: 1" + "0" * 5000, "job.yaml: is no valid YAML: ValueError"),
        ("a: 0x" + "f" * 5000, "job.yaml: a: is a number of more than 64 bits"),
        ("a: 9223372036854775808", "job.yaml: a: is a number of more than 64 bits"),
        ("a: [1, .inf]", "job.yaml: a[1]: is no finite number"),
        ("a: .nan", "job.yaml: a: is no finite number"),
        ("a: !!python/object/apply:os.system [touch /tmp/x]", "could not determine a constructor for the tag"),
        ("a: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("a: !mine 1", "could not determine a constructor for the tag"),
        ("a: 2024-01-01", "job.yaml: a: is a date, not a text, number, list or mapping, put it in quotes"),
        ("a: 2024-13-41", "job.yaml: is no valid YAML: ValueError"),
        ("a: !!binary aGVsbG8=", "job.yaml: a: is a bytes"),
        ("a: !!set {b}", "is a set, not a text"),
        ('a: "\\ud800"', "job.yaml: a: holds half a surrogate pair"),
        ("? [a]\n: b", "must be a text: put it in quotes"),
        ("a: {-1: b}", "job.yaml: a.-1: must be a text: put it in quotes"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "job.yaml: is no valid YAML: "),
        ("\x00", "job.yaml: is no valid YAML: "),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_refused_at_once(text: str, told: str) -> None:
    """Aliases, depth, length, double keys, huge numbers, Python's tags and dates are refused in words, and at once."""
    began = time.process_time()
    assert told in refusal(text)
    assert time.process_time() - began < (1 if text != DEEP else 3)


def test_faults_tell_no_value() -> None:
    """A fault of the form of a text does not tell what is written there, which may be a secret."""
    for text in (
        "password: canary\npassword: canary2",
        "password: canary: x",
        "password: 'canary",
        "a: {password: canary",
    ):
        assert "canary" not in refusal(text)


TEXTS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=9)


@settings(max_examples=50)
@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXTS, st.lists, max_leaves=9))
def test_plain_data_are_read(data: object) -> None:
    """What JSON can say, which is YAML too, is read as it is."""
    assert plain_yaml.read(json.dumps({"a": data}), "a") == {"a": data}
