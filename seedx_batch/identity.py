"""Fingerprint (may this run be resumed?), differences in words, signature (can you reproduce it?).

Works on plain JSON values; must never know where they come from.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(facts: Mapping[str, Any]) -> str:
    """A SHA-256 (hex) over facts, equal for equal JSON values whatever their order."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two sets of facts, one line each: `decoding.max_tokens.max: 512 -> 256`."""
    before, after = _flat(old), _flat(new)
    absent = object()
    lines = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name, absent), after.get(name, absent)
        if was != now:
            lines.append(f"{name}: {_shown(was, absent)} -> {_shown(now, absent)}")
    return lines


def signature(
    job: str, results: Mapping[str, Any], model: Mapping[str, Any], mark: str, versions: Mapping[str, str]
) -> str:
    """One line that says what made a result, after sacrebleu's fashion.

    Args:
        results: the job's sections that decide results.
        model: the model's identity.
        mark: the fingerprint.
        versions: of vllm and of this program.
    """
    decoding = results["decoding"]
    method = f"beam{decoding['beam_width']}" if decoding["method"] == "beam" else _sampling(decoding)
    parts = {
        "job": job,
        "model": f"{str(results['model']['name']).rsplit('/', 1)[-1]}@{fingerprint(model)[:4]}",
        "prompt": results["prompt"]["preset"],
        "dec": method,
        "max": _budget(decoding["max_tokens"]),
        "fp": mark[:8],
        "vllm": versions.get("vllm", "none"),
        "v": versions["seedx-batch"],
    }
    return "|".join(f"{name}:{value}" for name, value in parts.items())


def _sampling(decoding: Mapping[str, Any]) -> str:
    if decoding["temperature"] == 0:
        return "greedy"
    return f"t{decoding['temperature']:g}p{decoding['top_p']:g}k{decoding['top_k']}n{decoding['n']}s{decoding['seed']}"


def _budget(rule: Mapping[str, Any]) -> str:
    if rule.get("ratio"):
        return f"{rule['max']}r{rule['ratio']:g}+{rule['plus']}"
    return f"{rule['max']}" + ("c" if rule.get("column") else "")


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping) and tree:
        prefix = f"{name}." if name else ""
        return {key: value for branch in tree for key, value in _flat(tree[branch], f"{prefix}{branch}").items()}
    return {name: tree}


def _shown(value: object, absent: object) -> str:
    if value is absent:
        return "(absent)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
