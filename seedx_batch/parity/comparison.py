"""Two records compared: figures for each prompt and in all, and a verdict against thresholds and the noise floor.

Needs no model and no engine; what it gives are JSON values (docs/parity.md says what they mean).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from seedx_batch.errors import InputError
from seedx_batch.parity import measures
from seedx_batch.parity.measures import Forced, FreeRunning
from seedx_batch.parity.recording import Header, Record

FORMAT = 1
NOT_EQUAL = 65
"""Exit code of a verdict that is no."""

NEAR_TIES = {"float32": 0.001}
NEAR_TIE = 0.25
"""Nats between two tokens that rounding may put in either order: two steps of bfloat16 at logits of 16 to 32."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What must hold; the defaults are the model card's.

    Args:
        floor_factor: where the noise floor itself is beyond a threshold, so many times the floor are allowed.
        near_tie: nats; None for what suits the coarser of the two dtypes.
    """

    relative_error: float = 0.01
    cosine: float = 0.999
    token_match: float = 0.98
    floor_factor: float = 1.5
    near_tie: float | None = None

    def near_tie_of(self, headers: Sequence[Header]) -> float:
        """The bound for a comparison of these."""
        if self.near_tie is not None:
            return self.near_tie
        return max(NEAR_TIES.get(header.dtype, NEAR_TIE) for header in headers)


def compare(title: str, reference: Record, candidate: Record, thresholds: Thresholds) -> dict[str, Any]:
    """The figures of one comparison.

    Raises:
        InputError: the records are not of the same prompts, or not of the same vocabulary.
    """
    headers = (reference.header, candidate.header)
    _check_comparable(reference, candidate)
    near_tie = thresholds.near_tie_of(headers)
    prompts, frees, all_forced = [], [], []
    for number in range(len(reference)):
        one, other = reference[number], candidate[number]
        if one.prompt_token_ids != other.prompt_token_ids:
            raise InputError(f"prompt '{one.name}' was made into other tokens by {headers[1].name}: tokenizers differ")
        free, forced = measures.free_running(one, other, near_tie), measures.forced(one, other)
        frees.append(free)
        all_forced.append(forced)
        prompts.append(
            {
                "name": one.name,
                "prompt": one.prompt,
                "texts": [one.output_text, other.output_text],
                **_figures([free], forced, near_tie),
                "first_divergence": free.first_divergence,
                "gap": free.gap,
            }
        )
    kept = [header.num_kept for header in headers if header.num_kept is not None]
    return {
        "title": title,
        "reference": asdict(reference.header),
        "candidate": asdict(candidate.header),
        "distributions": f"the {min(kept)} likeliest tokens"
        if kept
        else f"the whole vocabulary, {headers[0].vocab_size:,} tokens",
        "near_tie": near_tie,
        "totals": _figures(frees, measures.join(all_forced), near_tie),
        "prompts": prompts,
    }


def judge(compared: Mapping[str, Any], floor: Mapping[str, Any] | None, thresholds: Thresholds) -> dict[str, Any]:
    """The verdict: whether every criterion holds.

    A criterion is the card's threshold. Where the noise floor itself is beyond it, no engine in that dtype can be
    expected to hold it, and `floor_factor` times the floor is the limit. A floor in another dtype excuses nothing.

    Args:
        floor: the comparison of the same model in transformers, in the engine's dtype, with the same reference.
    """
    excuses = floor is not None and floor["candidate"]["dtype"] == compared["candidate"]["dtype"]
    criteria = []
    for name, figure, threshold in (
        ("mean relative error", "relative_error", thresholds.relative_error),
        ("1 - cosine", "cosine_distance", 1 - thresholds.cosine),
        ("tokens not matching, near-ties apart", "mismatch_apart", 1 - thresholds.token_match),
    ):
        value, of_floor = compared["totals"][figure], None if floor is None else floor["totals"][figure]
        is_excused = excuses and of_floor is not None and not of_floor <= threshold
        limit = thresholds.floor_factor * of_floor if is_excused and of_floor is not None else threshold
        criteria.append(
            {
                "name": name,
                "figure": figure,
                "value": value,
                "threshold": threshold,
                "floor": of_floor,
                "limit": limit,
                "holds_absolutely": value is not None and value <= threshold,
                "holds": value is not None and value <= limit,
            }
        )
    return {
        "passed": all(criterion["holds"] for criterion in criteria),
        "passed_absolutely": all(criterion["holds_absolutely"] for criterion in criteria),
        "criteria": criteria,
    }


def report(
    reference: Record, engine: Record, noise: Record | None, other: Record | None, thresholds: Thresholds
) -> dict[str, Any]:
    """All that is told: the comparisons, as JSON values, and the verdict on the first.

    Args:
        noise: what transformers makes of it in the engine's dtype, where that is known.
        other: a further reference, which decides nothing.
    """
    names = [record.header.name for record in (reference, engine)]
    comparisons = [compare(f"{names[1]} against {names[0]}", reference, engine, thresholds)]
    if noise is not None:
        title = f"noise floor: {noise.header.name} against {names[0]}"
        comparisons.append(compare(title, reference, noise, thresholds))
    if other is not None:
        comparisons.append(compare(f"{names[1]} against {other.header.name}", other, engine, thresholds))
    return {
        "format": FORMAT,
        "kind": "parity",
        "verdict": judge(comparisons[0], None if noise is None else comparisons[1], thresholds),
        "thresholds": asdict(thresholds),
        "comparisons": comparisons,
    }


def _check_comparable(reference: Record, candidate: Record) -> None:
    one, other = reference.header, candidate.header
    if (one.mark, len(reference)) != (other.mark, len(candidate)):
        raise InputError(f"the records are of other prompts: {one.prompts} {one.mark}, {other.prompts} {other.mark}")
    if one.vocab_size != other.vocab_size:
        raise InputError(f"the records are of other models: vocabularies of {one.vocab_size} and {other.vocab_size}")


def _figures(frees: Sequence[FreeRunning], forced: Forced, near_tie: float) -> dict[str, Any]:
    num_tokens = sum(free.num_tokens for free in frees)
    num_comparable = sum(free.num_comparable for free in frees)
    num_matching = sum(free.num_matching for free in frees)
    # Up to a near-tie all match.
    num_matching_apart = sum(free.num_comparable if free.is_near_tie else free.num_matching for free in frees)
    num_flips = len(forced.gaps)
    distance = _mean(1 - forced.cosine)
    return {
        "num_tokens": num_tokens,
        "num_matching": num_matching,
        "token_match": _ratio(num_matching, num_tokens),
        "num_prefix": sum(free.num_prefix for free in frees),
        "prefix_match": _ratio(sum(free.num_prefix for free in frees), num_tokens),
        "num_divergences": sum(free.first_divergence is not None for free in frees),
        "num_near_ties": sum(free.is_near_tie for free in frees),
        "token_match_apart": _ratio(num_matching_apart, num_comparable),
        "mismatch_apart": 1 - _ratio(num_matching_apart, num_comparable),
        "num_texts": len(frees),
        "num_texts_equal": sum(free.text_equal for free in frees),
        "num_places": forced.num_places,
        "top1_agreement": _ratio(forced.num_places - num_flips, forced.num_places),
        "num_flips": num_flips,
        "num_flips_near_ties": sum(gap < near_tie for gap in forced.gaps),
        "kl": _mean(forced.kl),
        "kl_max": _number(forced.kl.max()) if forced.num_places else None,
        "cosine": None if distance is None else 1 - distance,
        "cosine_distance": distance,
        "max_error": _number(forced.max_error.max()) if forced.num_places else None,
        "mean_error": _mean(forced.mean_error),
        "rmse": None if (mean := _mean(forced.squared_error)) is None else math.sqrt(mean),
        "relative_error": _mean(forced.relative_error),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _mean(values: measures.Numbers) -> float | None:
    return _number(np.mean(values)) if len(values) else None


def _number(value: Any) -> float | None:
    """None for what is not a number, which JSON has not."""
    return float(value) if math.isfinite(value) else None
