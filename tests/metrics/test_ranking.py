"""Do ranks among perturbations equal slow ones, and fail where they are known to?"""

import numpy as np
import pytest
from scipy.spatial.distance import cosine, euclidean
from scipy.stats import rankdata

from ptrag_sc.metrics import _ranking, centroid_accuracy, effect_slope, pds_cosine


def draw(seed, n=9, g=20):
    rng = np.random.default_rng(seed)
    real, reference = rng.normal(size=(n, g)), rng.normal(size=g)
    return real, real + 2 * rng.normal(size=(n, g)), reference


def slow(real, predicted, distance):
    n = len(real)
    return [1 - (rankdata([distance(r, p) for r in real])[i] - 1) / (n - 1) for i, p in enumerate(predicted)]


@pytest.mark.parametrize("seed", range(4))
def test_equals_ranks_of_all_distances(seed, monkeypatch):
    monkeypatch.setattr(_ranking, "ROWS", 4)  # several pieces
    real, predicted, reference = draw(seed)
    perturbed = np.arange(20) < 3
    shifts = [(means - reference)[:, ~perturbed] for means in (real, predicted)]
    np.testing.assert_allclose(pds_cosine(real, predicted, reference, perturbed), slow(*shifts, cosine))
    np.testing.assert_allclose(centroid_accuracy(real, predicted), slow(real, predicted, euclidean))


def test_knowing_nothing_scores_one_half():
    real, _, reference = draw(0, n=200)
    for means in (reference, reference + 1e-8, real.mean(0)):
        predicted = np.broadcast_to(means, real.shape)
        assert pds_cosine(real, predicted, reference).mean() == pytest.approx(0.5, abs=1e-12)
        assert centroid_accuracy(real, predicted).mean() == pytest.approx(0.5, abs=1e-12)
    np.testing.assert_array_equal(pds_cosine(real, np.broadcast_to(reference, real.shape), reference), 0.5)


def test_ties_count_half():
    real = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])  # the first two have one direction
    np.testing.assert_allclose(pds_cosine(real, real, np.zeros(2)), [0.75, 0.75, 1])
    twins = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(centroid_accuracy(twins, twins), [0.75, 0.75, 1])
    np.testing.assert_allclose(centroid_accuracy(np.ones((3, 2)), real), 0.5)  # no perturbation differs


def test_a_single_perturbation_has_no_rank():
    one = np.ones((1, 3))
    assert np.isnan([pds_cosine(one, one, np.zeros(3)), centroid_accuracy(one, one)]).all()


def test_the_perturbed_genes_cannot_be_exploited():
    """A prediction that only lowers the gene it was told knows nothing about the response."""
    rng = np.random.default_rng(1)
    real, told = 0.3 * rng.normal(size=(30, 80)), np.zeros((30, 80))
    real[np.arange(30), np.arange(30)] -= 5
    told[np.arange(30), np.arange(30)] -= 5
    perturbed = np.arange(80) < 30
    assert pds_cosine(real, told, np.zeros(80)).mean() > 0.99
    np.testing.assert_array_equal(pds_cosine(real, told, np.zeros(80), perturbed), 0.5)
    np.testing.assert_array_equal(pds_cosine(real, told, np.zeros(80), np.ones(80, bool)), 0.5)  # nothing left


def test_pds_is_blind_to_scale_which_the_slope_and_centroids_see():
    real, _, reference = draw(2, n=40)
    for factor in (0.05, 10):
        predicted = reference + factor * (real - reference)
        np.testing.assert_allclose(pds_cosine(real, predicted, reference), 1)
        assert effect_slope(real[0], predicted[0], reference) == pytest.approx(factor)
    shrunken = reference + 0.05 * (real - reference)
    assert centroid_accuracy(real, shrunken).mean() < 0.7


def test_distances_do_not_lose_digits_far_from_the_origin():
    real, predicted, reference = draw(3)
    np.testing.assert_allclose(centroid_accuracy(real + 1e5, predicted + 1e5), centroid_accuracy(real, predicted))
    np.testing.assert_allclose(
        pds_cosine(real + 1e5, predicted + 1e5, reference + 1e5), pds_cosine(real, predicted, reference)
    )
