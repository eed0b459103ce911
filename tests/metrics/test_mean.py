"""Are metrics of the mean what they are called, and defined where nothing happened?"""

import numpy as np
import pytest
from scipy.stats import pearsonr

from ptrag_sc.metrics import effect_slope, pearson_delta


def draw(seed, n=40):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n), rng.normal(size=n), rng.normal(size=n)


@pytest.mark.parametrize("seed", range(5))
def test_pearson_delta_is_the_correlation_of_shifts(seed):
    real, predicted, reference = draw(seed)
    expected = pearsonr(predicted - reference, real - reference).statistic
    assert pearson_delta(real, predicted, reference) == pytest.approx(expected, abs=1e-12)


def test_pearson_delta_ignores_offset_and_scale_but_not_sign():
    real, _, reference = draw(0)
    assert pearson_delta(real, reference + 3 * (real - reference) + 7, reference) == pytest.approx(1)
    assert pearson_delta(real, reference - (real - reference), reference) == pytest.approx(-1)
    assert pearson_delta(real, real, reference) <= 1


@pytest.mark.parametrize("swapped", [False, True])
def test_what_did_not_move_correlates_zero(swapped):
    real, predicted, reference = draw(1)
    for still in (reference, reference + 5.0, reference + 9e-7 * (real - real.mean()) / np.linalg.norm(real)):
        # The rounding of a constant shift must not correlate, however large the other shift is.
        moved = reference + 1e6 * predicted
        assert pearson_delta(*((still, moved) if swapped else (moved, still)), reference) == 0.0


def test_a_small_shift_above_the_threshold_correlates():
    real, _, _ = draw(2)
    direction = (real - real.mean()) / np.linalg.norm(real - real.mean())
    nothing = np.zeros_like(real)
    assert pearson_delta(real, 1.1e-6 * direction, nothing) == pytest.approx(1)
    assert pearson_delta(real, 0.9e-6 * direction, nothing) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_effect_slope_is_least_squares_through_the_origin(seed):
    real, predicted, reference = draw(seed)
    expected = np.linalg.lstsq((real - reference)[:, None], predicted - reference, rcond=None)[0][0]
    assert effect_slope(real, predicted, reference) == pytest.approx(expected)
    assert effect_slope(real, reference + 0.3 * (real - reference), reference) == pytest.approx(0.3)


def test_effect_slope_of_no_effect_is_zero():
    real, predicted, reference = draw(0)
    assert effect_slope(reference, predicted, reference) == 0.0
    assert effect_slope(real, reference, reference) == 0.0
