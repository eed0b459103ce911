"""Are metrics of the mean what they are called, and defined where nothing happened?"""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from ptrag_sc.metrics import effect_slope, mae, mse, pearson_delta, r2w_delta, t_weights, wmse


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


@pytest.mark.parametrize("seed", range(3))
def test_errors_are_those_of_scikit_learn(seed):
    real, predicted, reference = draw(seed)
    weights = np.random.default_rng(seed + 50).dirichlet(np.ones(len(real)))
    assert mse(real, predicted) == pytest.approx(mean_squared_error(real, predicted))
    assert mae(real, predicted) == pytest.approx(mean_absolute_error(real, predicted))
    assert wmse(real, predicted, weights) == pytest.approx(mean_squared_error(real, predicted, sample_weight=weights))
    expected = r2_score(real - reference, predicted - reference, sample_weight=weights)
    assert r2w_delta(real, predicted, reference, weights) == pytest.approx(expected)


def test_r2w_of_a_shift_that_does_not_vary():
    nothing, weights = np.zeros(4), np.full(4, 0.25)
    assert r2w_delta(nothing, nothing, nothing, weights) == 1
    assert r2w_delta(nothing, nothing + 1, nothing, weights) == 0
    assert r2w_delta(nothing + 2, nothing + 1, nothing, weights) == 0  # one shift for all genes


def test_missing_weights_give_nan():
    real, predicted, reference = draw(0)
    weights = np.full(len(real), np.nan)
    assert np.isnan([wmse(real, predicted, weights), r2w_delta(real, predicted, reference, weights)]).all()


@pytest.fixture(scope="module")
def study():
    """Known failures: real means, a replicate and the training mean of 40 perturbations with few specific genes."""
    rng = np.random.default_rng(0)
    n_perturbations, n_cells, n_genes = 40, 20, 300
    specific = np.zeros((n_perturbations, n_genes))
    for row in specific:
        row[rng.choice(n_genes, 6, replace=False)] = 1.2 * rng.choice([-1, 1], 6)
    truth = 3 + 0.6 * rng.normal(size=n_genes) + specific
    real, replicate = (truth[:, None] + rng.normal(size=(2, n_perturbations, n_cells, n_genes))).astype(float)
    weights = t_weights(real.sum(1), np.square(real).sum(1), np.full(n_perturbations, n_cells))
    mean = np.broadcast_to(real.mean((0, 1)), (n_perturbations, n_genes))
    return real.mean(1), replicate.mean(1), mean, np.full(n_genes, 3.0), weights


def average(metric, real, predicted, *further):
    each = [a if a.ndim == 2 else [a] * len(real) for a in further]
    return np.mean([metric(*arguments) for arguments in zip(real, predicted, *each, strict=True)])


def test_the_training_mean_beats_a_replicate_under_the_plain_metrics(study):
    real, replicate, mean, control, _ = study
    assert average(mse, real, mean) < average(mse, real, replicate)
    assert average(mae, real, mean) < average(mae, real, replicate)
    assert average(pearson_delta, real, mean, control) > average(pearson_delta, real, replicate, control)


def test_and_loses_under_those_that_look_at_what_is_specific(study):
    real, replicate, mean, _, weights = study
    assert average(wmse, real, replicate, weights) < average(wmse, real, mean, weights)
    centre = mean[0]
    assert average(pearson_delta, real, mean, centre) == 0
    assert average(pearson_delta, real, replicate, centre) > 0.2
    assert average(r2w_delta, real, replicate, centre, weights) > average(r2w_delta, real, mean, centre, weights)


def test_the_slope_of_a_replicate_is_attenuated_by_the_noise_of_the_real_shift(study):
    real, replicate, _, control, _ = study
    signal = 0.36 + 6 * 1.2**2 / 300
    expected = signal / (signal + 1 / 20)
    assert average(effect_slope, real, replicate, control) == pytest.approx(expected, abs=0.05)
    assert expected < 0.9
