"""Are distances between populations what their definitions say, and blind where they are known to be?"""

import numpy as np
import ot
import pytest
import scipy.sparse as sp
from scipy.optimize import linprog
from scipy.stats import norm, wasserstein_distance
from sklearn.metrics.pairwise import rbf_kernel

from ptrag_sc.metrics import (
    _distribution,
    energy_distance,
    mmd2,
    pds_cosine,
    variance_ratio,
    wasserstein_1,
    wasserstein_2,
)


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


@pytest.mark.parametrize("metric", [energy_distance, mmd2, variance_ratio])
@pytest.mark.parametrize(("n", "m", "name"), [(1, 5, "real"), (5, 1, "predicted"), (0, 5, "real")])
def test_fewer_than_two_cells_are_refused(metric, n, m, name):
    with pytest.raises(ValueError, match=f"The cells in {name} hold {min(n, m)} cells"):
        metric(np.zeros((n, 2)), np.zeros((m, 2)))


def test_transport_of_no_cells_is_refused():
    assert wasserstein_1(np.zeros((1, 2)), np.ones((1, 2))) == pytest.approx(np.sqrt(2))
    with pytest.raises(ValueError, match="The cells in predicted hold 0 cells, 1 or more"):
        wasserstein_1(np.zeros((3, 2)), np.zeros((0, 2)))


def slow_transport(x, y, power):
    """The linear programme itself."""
    cost = np.array([[np.linalg.norm(a - b) ** power for b in y] for a in x])
    rows = np.kron(np.eye(len(x)), np.ones(len(y)))
    columns = np.kron(np.ones(len(x)), np.eye(len(y)))
    mass = np.r_[np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))]
    return linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=mass).fun ** (1 / power)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (4, 9), (11, 5)])
def test_transport_equals_the_linear_programme(n, m):
    rng = np.random.default_rng(n)
    real, predicted = rng.normal(size=(n, 3)), rng.normal(loc=0.7, size=(m, 3))
    assert wasserstein_1(real, predicted) == pytest.approx(slow_transport(real, predicted, 1))
    assert wasserstein_2(real, predicted) == pytest.approx(slow_transport(real, predicted, 2))


def test_assignment_equals_pot():
    rng = np.random.default_rng(0)
    real, predicted = rng.normal(size=(40, 8)), rng.normal(loc=0.3, size=(40, 8))
    assert wasserstein_1(real, predicted) == pytest.approx(ot.emd2([], [], ot.dist(real, predicted, "euclidean")))
    assert wasserstein_2(real, predicted) ** 2 == pytest.approx(ot.emd2([], [], ot.dist(real, predicted)))


def test_transport_in_one_dimension_and_between_normal_distributions():
    rng = np.random.default_rng(1)
    real, predicted = rng.normal(size=(50, 1)), rng.gamma(2, size=(50, 1))
    assert wasserstein_1(real, predicted) == pytest.approx(wasserstein_distance(real[:, 0], predicted[:, 0]))
    quantiles = norm.ppf((np.arange(500) + 0.5) / 500)[:, None]
    # W2^2 of N(0, 1) and N(m, s^2) is m^2 + (s - 1)^2.
    assert wasserstein_2(quantiles, 1.5 * quantiles + 2) == pytest.approx(np.sqrt(4 + 0.25), rel=0.002)


def test_without_pot_the_larger_sample_is_cut(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ot", None)
    rng = np.random.default_rng(2)
    real, predicted = rng.normal(size=(30, 2)), rng.normal(size=(20, 2))
    chosen = _distribution._at_most(real, 20)
    assert wasserstein_1(real, predicted) == pytest.approx(slow_transport(chosen, predicted, 1))


def test_many_cells_are_cut_to_a_choice_that_order_does_not_change(monkeypatch):
    monkeypatch.setattr(_distribution, "MAX_CELLS", 16)
    rng = np.random.default_rng(3)
    real, predicted = rng.normal(size=(90, 4)), rng.normal(size=(70, 4))
    expected = wasserstein_1(real, predicted)
    assert wasserstein_1(rng.permutation(real), rng.permutation(predicted)) == expected
    chosen = _distribution._at_most(real, 16)
    assert len(np.unique(chosen, axis=0)) == 16
    assert {tuple(row) for row in chosen} <= {tuple(row) for row in real}
    assert wasserstein_1(real, real[::-1]) == 0
    found = mmd2(real, predicted)
    assert mmd2(rng.permutation(real), rng.permutation(predicted)) == pytest.approx(found)


def test_transport_has_a_floor_that_falls_with_the_number_of_cells():
    rng = np.random.default_rng(4)
    floors = [wasserstein_2(*rng.normal(size=(2, n, 10))) for n in (16, 64, 256)]
    assert floors[0] > floors[1] > floors[2] > 2  # the truth is 0


@pytest.mark.parametrize(("n", "m", "rows"), [(8, 8, 2048), (30, 17, 7)])
def test_mmd2_equals_sums_of_kernels(n, m, rows, monkeypatch):
    monkeypatch.setattr(_distribution, "ROWS", rows)
    rng = np.random.default_rng(n)
    real, predicted = rng.normal(size=(n, 4)), rng.normal(loc=0.6, size=(m, 4))
    scale = np.median([np.linalg.norm(a - b) for i, a in enumerate(real) for b in real[:i]]) ** 2
    expected = []
    for factor in (0.5, 1, 2):
        kernel = lambda x, y: rbf_kernel(x, y, gamma=1 / (2 * factor * scale))  # noqa: B023, E731
        within = [(kernel(z, z).sum() - len(z)) / (len(z) * (len(z) - 1)) for z in (real, predicted)]
        expected.append(sum(within) - 2 * kernel(real, predicted).mean())
    assert mmd2(real, predicted) == pytest.approx(np.mean(expected))
    assert mmd2(real + 1e4, predicted + 1e4) == pytest.approx(np.mean(expected), abs=1e-6)


def test_mmd2_equals_the_closed_form_of_two_normal_distributions():
    shift, quantiles = 1.5, norm.ppf((np.arange(1500) + 0.5) / 1500)[:, None]
    expected = 0
    for factor in (0.5, 1, 2):
        sigma2 = factor * 2 * norm.ppf(0.75) ** 2  # the difference of two draws is N(0, 2)
        height = np.sqrt(sigma2 / (sigma2 + 2))
        expected += 2 * height * (1 - np.exp(-(shift**2) / (2 * (sigma2 + 2)))) / 3
    assert mmd2(quantiles, quantiles + shift) == pytest.approx(expected, rel=0.01)


def test_the_prediction_has_no_say_in_the_bandwidth():
    """Spreading the prediction out would lower a discrepancy whose bandwidth it sets."""
    rng = np.random.default_rng(5)
    real, predicted = rng.normal(size=(40, 3)), rng.normal(loc=1, size=(40, 3))
    values = [mmd2(real, factor * predicted) for factor in (1, 3, 10, 100)]
    assert min(values[1:]) > values[0] + 0.1


def test_variance_ratio_is_that_of_the_covariance_traces():
    rng = np.random.default_rng(6)
    real, predicted = rng.normal(size=(20, 7)), rng.gamma(2, size=(33, 7))
    expected = np.trace(np.cov(predicted.T)) / np.trace(np.cov(real.T))
    assert variance_ratio(real, predicted) == pytest.approx(expected)
    assert variance_ratio(real, real + 5) == pytest.approx(1)  # blind to the mean
    assert variance_ratio(real, np.tile(real.mean(0), (9, 1))) == pytest.approx(0)


def test_variance_ratio_of_identical_cells():
    same, spread = np.ones((4, 3)), np.random.default_rng(7).normal(size=(4, 3))
    assert variance_ratio(same, 2 * same) == 1
    assert np.isnan(variance_ratio(same, spread))


def test_distances_of_populations_are_blind_to_missing_specificity():
    """Controls moved by the mean shift are as good as a second sample, though they are the same for all."""
    rng = np.random.default_rng(8)
    n_perturbations, n_cells, d = 30, 64, 50
    specific = 0.05 * rng.normal(size=(n_perturbations, 1, d))
    real, second = specific + rng.normal(size=(2, n_perturbations, n_cells, d))
    mean = specific.mean(0) + rng.normal(size=(n_perturbations, n_cells, d))
    for metric in (energy_distance, mmd2):
        first, other = (np.array([metric(x, y) for x, y in zip(real, p, strict=True)]) for p in (mean, second))
        noise = np.std(other)
        assert abs(first.mean() - other.mean()) < 0.5 * noise
    ranks = [pds_cosine(real.mean(1), p.mean(1), np.zeros(d)).mean() for p in (mean, second)]
    assert ranks[0] < 0.55 < 0.65 < ranks[1]


@pytest.mark.parametrize("metric", [energy_distance, wasserstein_1, wasserstein_2, mmd2, variance_ratio])
def test_cells_may_be_sparse(metric):
    """Predicted cells with counts are."""
    rng = np.random.default_rng(0)
    real, predicted = rng.poisson(1.0, (2, 30, 4)).astype(np.float32)
    expected = metric(real, predicted)
    assert metric(sp.csr_matrix(real), sp.csr_matrix(predicted)) == expected
    assert metric(real, sp.csr_array(predicted)) == expected
