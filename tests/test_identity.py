"""Fingerprint, differences, signature."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from seedx_batch.identity import differences, fingerprint, signature

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=3),
    max_leaves=8,
)
FACTS = st.dictionaries(st.text(min_size=1, max_size=4), JSON, max_size=4)


@given(FACTS)
def test_order_does_not_matter(facts: dict[str, Any]) -> None:
    """The same facts in another order have the same fingerprint and no differences."""
    turned = dict(reversed(facts.items()))
    assert fingerprint(turned) == fingerprint(facts)
    assert differences(facts, turned) == []


@given(FACTS, FACTS)
def test_a_difference_has_a_line_and_another_fingerprint(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Facts that differ have a line that says so, exactly when their fingerprints differ."""
    assert (fingerprint(old) != fingerprint(new)) == (differences(old, new) != [])


def test_a_line_says_what_changed() -> None:
    """A changed value is told with its path, before and after; so is one that came or went."""
    old = {"decoding": {"max_tokens": {"max": 512}, "stop": []}, "a": 1}
    new = {"decoding": {"max_tokens": {"max": 256}, "stop": []}, "b": None}
    assert differences(old, new) == ["a: 1 -> (absent)", "b: (absent) -> null", "decoding.max_tokens.max: 512 -> 256"]


def test_signature_reads_like_sacrebleu() -> None:
    """The signature names job, model, prompt, decoding, budget, fingerprint and versions."""
    results = {
        "model": {"name": "org/Seed-X"},
        "prompt": {"preset": "seed-x"},
        "decoding": {"method": "sample", "temperature": 0, "max_tokens": {"max": 512, "ratio": 2.5, "plus": 64}},
    }
    line = signature("zh_en", results, {"revision": "1"}, "068cb5fcaa", {"vllm": "0.32.0", "seedx-batch": "0.1.0"})
    found = dict(part.split(":", 1) for part in line.split("|"))
    assert found["model"].startswith("Seed-X@")
    assert {**found, "model": ""} == {
        "job": "zh_en",
        "model": "",
        "prompt": "seed-x",
        "dec": "greedy",
        "max": "512r2.5+64",
        "fp": "068cb5fc",
        "vllm": "0.32.0",
        "v": "0.1.0",
    }
