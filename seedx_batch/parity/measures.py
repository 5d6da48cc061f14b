"""What two engines' tokens and logits differ by, prompt by prompt and in all: numpy and nothing else.

Logits are compared mean-centred, which takes away the constant that log-probabilities differ from them by.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seedx_batch.parity.recording import Floats, Recorded

_PLACES_AT_ONCE = 16
Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class FreeRunning:
    """How far two greedy continuations of a prompt are the same.

    Args:
        num_tokens: of the longer one.
        num_matching: places with the same token in both.
        first_divergence: the first place where they are not, from 0; None where there is none.
        gap: by how much the reference rates its own token there above the other one, in nats; None where that one is
            not among the tokens that it kept.
        num_comparable: places up to a divergence that is a near-tie (after it the two continue different texts), all
            of them otherwise.
    """

    num_tokens: int
    num_matching: int
    first_divergence: int | None
    gap: float | None
    is_near_tie: bool
    num_comparable: int
    text_equal: bool

    @property
    def num_prefix(self) -> int:
        """Tokens before the first divergence."""
        return self.num_tokens if self.first_divergence is None else self.first_divergence


@dataclass(frozen=True, slots=True)
class Forced:
    """Differences at the places of the same tokens; one number for each place.

    Args:
        relative_error: mean absolute error over the mean magnitude of the reference's centred logits.
        gaps: as FreeRunning's, of the places where the likeliest token is not the same.
    """

    kl: Numbers
    cosine: Numbers
    max_error: Numbers
    mean_error: Numbers
    squared_error: Numbers
    relative_error: Numbers
    gaps: list[float] = field(default_factory=list)

    @property
    def num_places(self) -> int:
        """Places that were compared."""
        return len(self.kl)


def free_running(reference: Recorded, candidate: Recorded, near_tie: float) -> FreeRunning:
    """What two greedy continuations have in common."""
    one, other = reference.output_token_ids, candidate.output_token_ids
    num_tokens = max(len(one), len(other))
    same = [left == right for left, right in zip(one, other, strict=False)]
    divergence = next((place for place, is_same in enumerate(same) if not is_same), len(same))
    first_divergence = divergence if divergence < num_tokens else None
    gap = None
    if divergence < len(same):
        likeliest = reference.likeliest
        found = np.flatnonzero(likeliest.token_ids[divergence] == other[divergence])
        if len(found):
            logprobs = likeliest.logprobs[divergence]
            gap = float(logprobs[0] - logprobs[found[0]])
    is_near_tie = gap is not None and gap < near_tie
    return FreeRunning(
        num_tokens=num_tokens,
        num_matching=sum(same),
        first_divergence=first_divergence,
        gap=gap,
        is_near_tie=is_near_tie,
        num_comparable=divergence if is_near_tie else num_tokens,
        text_equal=reference.output_text == candidate.output_text,
    )


def forced(reference: Recorded, candidate: Recorded) -> Forced:
    """The differences at the places where both have seen the same tokens: up to where what was scored differs.

    Where one of them kept only its likeliest tokens, all is computed over those that both have of the reference's
    likeliest ones, and the divergence over these and one more outcome, all others.
    """
    one, other = reference.scored_token_ids, candidate.scored_token_ids
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    num_places = min(shared + 1, len(one), len(other))  # the place of the first other token has the same before it
    parts = [
        _whole(reference.logits[places], candidate.logits[places])
        if reference.logits is not None and candidate.logits is not None
        else _likeliest(reference, candidate, places)
        for places in _pieces(num_places)
    ]
    return join(parts)


def join(parts: Sequence[Forced]) -> Forced:
    """All places together."""
    names = ("kl", "cosine", "max_error", "mean_error", "squared_error", "relative_error")
    joined = {name: np.concatenate([np.zeros(0), *(getattr(part, name) for part in parts)]) for name in names}
    return Forced(**joined, gaps=[gap for part in parts for gap in part.gaps])


def _pieces(num_places: int) -> Iterator[slice]:
    for start in range(0, num_places, _PLACES_AT_ONCE):
        yield slice(start, min(start + _PLACES_AT_ONCE, num_places))


def _whole(reference: Floats, candidate: Floats) -> Forced:
    masked = np.isneginf(reference) & np.isneginf(candidate)  # tokens that the model itself rules out
    one, other = _log_softmax(reference), _log_softmax(candidate)
    with np.errstate(invalid="ignore"):
        divergence = np.where(masked, 0.0, np.exp(one) * (one - other)).sum(axis=1)
    return _forced(one, other, ~masked, divergence)


def _likeliest(reference: Recorded, candidate: Recorded, places: slice) -> Forced:
    return join([_at(reference, candidate, place) for place in range(places.start, places.stop)])


def _at(reference: Recorded, candidate: Recorded, place: int) -> Forced:
    mine = _table(reference, place)
    theirs = _table(candidate, place)
    shared = [token_id for token_id in mine if token_id in theirs]
    one = np.array([[mine[token_id] for token_id in shared]])
    other = np.array([[theirs[token_id] for token_id in shared]])
    rest = [max(1.0 - float(np.exp(side).sum()), 1e-12) for side in (one, other)]
    divergence = (np.exp(one) * (one - other)).sum(axis=1) + rest[0] * np.log(rest[0] / rest[1])
    found = _forced(one, other, np.ones_like(one, bool), np.maximum(divergence, 0.0))
    first, second = next(iter(mine)), next(iter(theirs))
    return Forced(
        found.kl,
        found.cosine,
        found.max_error,
        found.mean_error,
        found.squared_error,
        found.relative_error,
        [] if first == second else [mine[first] - mine.get(second, -np.inf)],
    )


def _table(recorded: Recorded, place: int) -> dict[int, float]:
    """Log-probabilities of what was kept of a place, the likeliest token first."""
    kept = recorded.kept
    if kept is None:
        if recorded.logits is None:
            return {}
        logprobs = _log_softmax(recorded.logits[place : place + 1])[0]
        first = int(logprobs.argmax())
        return {first: float(logprobs[first]), **dict(enumerate(logprobs.tolist()))}
    return dict(zip(kept.token_ids[place].tolist(), kept.logprobs[place].tolist(), strict=True))


def _log_softmax(logits: Floats) -> Numbers:
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        wide -= wide.max(axis=1, keepdims=True)
        wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def _forced(one: Numbers, other: Numbers, counted: np.ndarray[Any, Any], divergence: Numbers) -> Forced:
    """Differences of log-probabilities; what is not a number stays so, and no threshold holds for it."""
    if not counted.size:
        nothing = np.full(len(one), np.nan)
        return Forced(nothing, nothing, nothing, nothing, nothing, nothing)
    with np.errstate(invalid="ignore", divide="ignore"):
        size = counted.sum(axis=1, keepdims=True)
        left, right = (np.where(counted, side, 0.0) for side in (one, other))
        left, right = (np.where(counted, side - side.sum(axis=1, keepdims=True) / size, 0.0) for side in (left, right))
        errors = np.abs(left - right)
        mean_error = errors.sum(axis=1) / size[:, 0]
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        tops, others = one.argmax(axis=1), other.argmax(axis=1)
        rows = np.arange(len(one))
        gaps = (one[rows, tops] - one[rows, others])[tops != others]
        return Forced(
            kl=divergence,
            cosine=(left * right).sum(axis=1) / norms,
            max_error=errors.max(axis=1),
            mean_error=mean_error,
            squared_error=(errors**2).sum(axis=1) / size[:, 0],
            relative_error=mean_error / (np.abs(left).sum(axis=1) / size[:, 0]),
            gaps=gaps.tolist(),
        )
