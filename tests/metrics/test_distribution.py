"""Is the energy distance the unbiased one, in the factor of the table?"""

import numpy as np
import pytest
from scipy.stats import norm

from ptrag_sc.metrics import energy_distance


def slow(real, predicted):
    def mean_distance(x, y, same):
        pairs = [np.linalg.norm(a - b) for i, a in enumerate(x) for j, b in enumerate(y) if not (same and i == j)]
        return np.mean(pairs)

    inner = mean_distance(real, real, True) + mean_distance(predicted, predicted, True)
    return 2 * mean_distance(real, predicted, False) - inner


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 1), (5, 9, 3), (30, 12, 40)])
def test_equals_loops_over_pairs(n, m, d):
    rng = np.random.default_rng(n)
    real, predicted = rng.normal(size=(n, d)), rng.normal(loc=0.4, size=(m, d))
    assert energy_distance(real, predicted) == pytest.approx(slow(real, predicted), abs=1e-6)
    assert energy_distance(predicted, real) == pytest.approx(slow(real, predicted), abs=1e-6)


def test_equals_the_closed_form_of_two_normal_distributions():
    shift, sd = 1.5, np.sqrt(2)  # of the difference of a draw of each
    cross = sd * np.sqrt(2 / np.pi) * np.exp(-(shift**2) / (2 * sd**2)) + shift * (1 - 2 * norm.cdf(-shift / sd))
    expected = 2 * cross - 2 * (2 / np.sqrt(np.pi))
    quantiles = norm.ppf((np.arange(1000) + 0.5) / 1000)[:, None]
    assert energy_distance(quantiles, quantiles + shift) == pytest.approx(expected, rel=0.005)


def test_is_zero_on_average_for_two_samples_of_one_population():
    rng = np.random.default_rng(0)
    values = [energy_distance(rng.normal(size=(8, 5)), rng.normal(size=(12, 5))) for _ in range(400)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert error < 0.02  # a V-statistic would be off by .6


def test_identical_cells_have_the_known_negative_offset():
    cells = np.random.default_rng(0).normal(size=(64, 50))
    distances = [np.linalg.norm(a - b) for i, a in enumerate(cells) for b in cells[:i]]
    assert energy_distance(cells, cells) == pytest.approx(-2 * np.mean(distances) / 64, abs=1e-5)
    assert energy_distance(cells, cells) == pytest.approx(-0.31, abs=0.01)


def test_order_of_cells_rotation_and_origin_change_nothing():
    rng = np.random.default_rng(3)
    real, predicted = rng.normal(size=(20, 6)), rng.normal(loc=0.5, size=(25, 6))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    expected = energy_distance(real, predicted)
    assert energy_distance(rng.permutation(real), rng.permutation(predicted)) == pytest.approx(expected)
    assert energy_distance(real @ rotation + 100, predicted @ rotation + 100) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("n", "m", "name"), [(1, 5, "real"), (5, 1, "predicted"), (0, 5, "real")])
def test_fewer_than_two_cells_are_refused(n, m, name):
    with pytest.raises(ValueError, match=f"The cells in {name} hold {min(n, m)} cells"):
        energy_distance(np.zeros((n, 2)), np.zeros((m, 2)))
