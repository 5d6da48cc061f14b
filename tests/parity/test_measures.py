"""Figures are what their definitions say, and none depends on the constant that logits are known up to."""

import numpy as np
import pytest

from seedx_batch.parity import measures
from tests.parity.made import NUM_PLACES, logits, recorded


def test_figures_by_their_definitions() -> None:
    """Each figure of a place equals the formula, written out once more."""
    one, other = logits(1), logits(1) + 0.1 * logits(2)
    found = measures.forced(recorded(one), recorded(other, scored=one.argmax(axis=1).tolist()))
    assert found.num_places == NUM_PLACES
    for place in range(NUM_PLACES):
        left, right = one[place].astype(float), other[place].astype(float)
        likely, unlikely = np.exp(left) / np.exp(left).sum(), np.exp(right) / np.exp(right).sum()
        left, right = left - left.mean(), right - right.mean()
        errors = np.abs(left - right)
        assert found.kl[place] == pytest.approx((likely * np.log(likely / unlikely)).sum())
        assert found.cosine[place] == pytest.approx(left @ right / np.sqrt((left @ left) * (right @ right)))
        assert found.max_error[place] == pytest.approx(errors.max())
        assert found.mean_error[place] == pytest.approx(errors.mean())
        assert found.squared_error[place] == pytest.approx((errors**2).mean())
        assert found.relative_error[place] == pytest.approx(errors.mean() / np.abs(left).mean())
    flips = one.argmax(axis=1) != other.argmax(axis=1)
    assert len(found.gaps) == flips.sum()


def test_logprobs_serve_as_well_as_logits() -> None:
    """A constant added to all logits of a place changes no figure."""
    one, other = logits(1), logits(1) + 0.1 * logits(2)
    tokens = one.argmax(axis=1).tolist()
    shifted = other + 7 * np.arange(NUM_PLACES, dtype=np.float32)[:, None]
    found, again = (measures.forced(recorded(one), recorded(side, scored=tokens)) for side in (other, shifted))
    for name in ("kl", "cosine", "max_error", "mean_error", "squared_error", "relative_error", "gaps"):
        assert getattr(found, name) == pytest.approx(getattr(again, name), abs=2e-5)


def test_places_are_compared_while_their_contexts_are_the_same() -> None:
    """Of records that scored their own texts the places up to the first other token count, and that one too."""
    one, other = logits(1), logits(1)
    other[5] = logits(2)[5]
    assert measures.forced(recorded(one), recorded(other)).num_places == 6


def test_likeliest_tokens_alone() -> None:
    """Where few tokens were kept the figures are of those, and the divergence is no more than the whole one."""
    one, other = logits(1), logits(1) + 0.05 * logits(2)
    tokens = one.argmax(axis=1).tolist()
    whole = measures.forced(recorded(one), recorded(other, scored=tokens))
    for kept_of_other in (None, 20):
        few = measures.forced(recorded(one, num_kept=20), recorded(other, scored=tokens, num_kept=kept_of_other))
        assert few.num_places == NUM_PLACES
        assert ((few.kl > 0) & (few.kl <= whole.kl + 1e-6)).all()
        assert (few.max_error < 2 * whole.max_error).all()
    same = measures.forced(recorded(one, num_kept=20), recorded(one))
    assert same.max_error.max() < 1e-5


def test_a_near_tie_is_told_from_a_divergence() -> None:
    """Another token is a near-tie if the reference rates it within the bound; what follows it is not comparable."""
    one = logits(1)
    one[4, :2] = one[4].max() + np.array([1.0, 0.9])
    one[7, :2] = one[7].max() + np.array([1.0, 0.2])
    near, far = one.copy(), one.copy()
    near[4, 1] += 0.2
    near[8:] = logits(3)[8:]
    far[7, 1] += 2
    found = measures.free_running(recorded(one), recorded(near), 0.25)
    assert (found.first_divergence, found.is_near_tie, found.num_comparable) == (4, True, 4)
    assert found.gap == pytest.approx(0.1, abs=1e-4)
    assert not found.text_equal
    found = measures.free_running(recorded(one), recorded(far), 0.25)
    assert (found.first_divergence, found.is_near_tie, found.num_comparable) == (7, False, NUM_PLACES)
    assert (found.num_matching, found.num_prefix) == (NUM_PLACES - 1, 7)


def test_an_output_that_ends_early_diverges() -> None:
    """The tokens of the longer output are all counted."""
    found = measures.free_running(recorded(logits(1)), recorded(logits(1)[:9]), 0.25)
    assert (found.num_tokens, found.num_matching, found.first_divergence, found.is_near_tie) == (12, 9, 9, False)


def test_tokens_that_a_model_rules_out() -> None:
    """Minus infinity in both is no difference; in one of them it is none that a number could tell."""
    one, other = logits(1), logits(1) + 0.01 * logits(2)
    one[:, 7], other[:, 7] = -np.inf, -np.inf
    tokens = one.argmax(axis=1).tolist()
    assert measures.forced(recorded(one), recorded(other, scored=tokens)).max_error.max() < 0.2
    other[3, 8] = -np.inf
    assert not np.isfinite(measures.forced(recorded(one), recorded(other, scored=tokens)).kl[3])
