"""Are tests, fold changes and weights of genes those of independent implementations?"""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import false_discovery_control, mannwhitneyu, ttest_ind

from ptrag_sc.metrics import (
    DifferentialExpression,
    de_direction,
    de_jaccard,
    de_overlap,
    differential_expression,
    lfc_nmae,
    t_weights,
)

N_GENES = 40


def counts(seed, n, effect):
    """log1p of normalised counts with ties, the first ten genes changed."""
    rng = np.random.default_rng(seed)
    rate = np.random.default_rng(0).gamma(2, size=N_GENES) * np.exp(effect * np.repeat([1, -1, 0], [5, 5, 30]))
    return np.log1p(rng.poisson(rate, size=(n, N_GENES)) * 1.3)


@pytest.fixture
def control():
    return counts(1, 80, 0)


def draw(seed, n=200):
    """Two made-up tests."""
    rng = np.random.default_rng(seed)
    return [DifferentialExpression(rng.random(n) ** 4, rng.normal(size=n)) for _ in range(2)]


def test_tests_equal_those_of_scipy(control):
    cells = counts(2, 30, 1.2)
    found = differential_expression(cells, control)
    pairs = zip(cells.T, control.T, strict=True)
    tests = [mannwhitneyu(a, b, use_continuity=False, method="asymptotic").pvalue for a, b in pairs]
    np.testing.assert_allclose(found.p_adjusted, false_discovery_control(tests), rtol=1e-5)
    fold = np.log2((np.expm1(cells).mean(0) + 1e-9) / (np.expm1(control).mean(0) + 1e-9))
    np.testing.assert_allclose(found.log2_fold_change, fold, rtol=1e-6)
    assert 5 <= found.significant.sum() <= 12
    for kind in (sp.csr_matrix, sp.csr_array, np.asfortranarray):
        same = differential_expression(kind(cells), kind(control))
        np.testing.assert_allclose(same.p_adjusted, found.p_adjusted)
        np.testing.assert_allclose(same.log2_fold_change, found.log2_fold_change)


def test_order_of_genes_and_cells_changes_nothing(control):
    rng, cells = np.random.default_rng(3), counts(2, 30, 1.2)
    order, found = rng.permutation(N_GENES), differential_expression(cells, control)
    moved = differential_expression(rng.permutation(cells)[:, order], rng.permutation(control)[:, order])
    np.testing.assert_allclose(moved.p_adjusted, found.p_adjusted[order])
    np.testing.assert_allclose(moved.log2_fold_change, found.log2_fold_change[order])


def test_constant_genes_and_negative_predictions_are_no_failure(control):
    control[:, 0] = 0
    cells = counts(2, 30, 1.2)
    cells[:, 0], cells[:, 1] = 0, -0.5
    found = differential_expression(cells, control)
    assert found.p_adjusted[0] == 1
    assert found.log2_fold_change[0] == 0
    assert np.isnan(found.log2_fold_change[1])
    assert np.isfinite(found.p_adjusted).all()


@pytest.mark.parametrize(("n", "m", "place"), [(1, 9, "the condition"), (9, 1, "the controls")])
def test_a_test_needs_two_cells(n, m, place):
    with pytest.raises(ValueError, match=f"Cells in {place} number 1, a test needs two"):
        differential_expression(np.zeros((n, 3)), np.zeros((m, 3)))


@pytest.mark.parametrize("seed", range(4))
def test_agreement_equals_sets_and_loops(seed):
    real, predicted = draw(seed)
    sets = [{i for i, p in enumerate(test.p_adjusted) if p < 0.05} for test in (real, predicted)]
    ranked = sorted(sets[1], key=lambda i: -abs(predicted.log2_fold_change[i]))
    assert de_overlap(real, predicted) == pytest.approx(len(sets[0] & set(ranked[: len(sets[0])])) / len(sets[0]))
    assert de_jaccard(real, predicted) == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    signs = [real.log2_fold_change[i] * predicted.log2_fold_change[i] > 0 for i in sets[0]]
    assert de_direction(real, predicted) == pytest.approx(np.mean(signs))
    error = sum(abs(real.log2_fold_change[i] - predicted.log2_fold_change[i]) for i in sets[0])
    assert lfc_nmae(real, predicted) == pytest.approx(error / sum(abs(real.log2_fold_change[i]) for i in sets[0]))


def test_a_gene_is_significant_below_the_level_and_not_at_it():
    test = DifferentialExpression(np.array([0.0499, 0.05, 0.0501]), np.ones(3))
    assert test.significant.tolist() == [True, False, False]


@pytest.mark.parametrize("n", [0, 1, 2, 9, 10])
def test_few_significant_genes(n):
    """None on either side: NaN; below ten a ratio of fold changes is not given."""
    p_adjusted = np.where(np.arange(20) < n, 0.01, 0.9)
    real = DifferentialExpression(p_adjusted, np.linspace(1, 2, 20))
    silent = DifferentialExpression(np.ones(20), np.zeros(20))
    assert np.isnan(lfc_nmae(real, silent)) if n < 10 else lfc_nmae(real, silent) == 1
    assert de_jaccard(silent, real) == 0 or n == 0
    for metric in (de_jaccard, de_overlap, de_direction):
        assert np.isnan(metric(real, real)) if n == 0 else metric(real, real) == 1
        assert np.isnan(metric(real, silent)) if n == 0 else metric(real, silent) == 0


def test_what_is_not_finite_is_no_change():
    real = DifferentialExpression(np.full(10, 0.01), np.r_[np.nan, np.ones(9)])
    broken = DifferentialExpression(np.full(10, 0.01), np.r_[1.0, np.full(9, -np.inf)])
    assert np.isnan(lfc_nmae(real, broken))  # nine real fold changes are left
    whole = DifferentialExpression(np.full(12, 0.01), np.ones(12))
    assert lfc_nmae(whole, whole._replace(log2_fold_change=np.full(12, np.nan))) == 1
    assert de_direction(whole, whole._replace(log2_fold_change=np.full(12, np.inf))) == 0


def test_few_cells_find_no_genes(control):
    """The failure all four share: significance is a matter of how many cells there are."""
    many, few = counts(2, 60, 1.2), counts(3, 4, 1.2)
    tests = [differential_expression(cells, control) for cells in (many, few)]
    assert tests[0].significant.sum() > 2 * tests[1].significant.sum()
    assert de_jaccard(*tests) < 0.5  # one population


@pytest.mark.parametrize("sizes", [(12, 30, 7), (5, 5)])
def test_weights_come_from_welchs_t_against_the_rest(sizes):
    rng = np.random.default_rng(len(sizes))
    cells = [rng.gamma(2, size=(n, 15)) + rng.normal(size=15) for n in sizes]
    sums, squares = (np.stack([f(x).sum(0) for x in cells]) for f in (np.asarray, np.square))
    found = t_weights(sums, squares, np.array(sizes))
    for i, weights in enumerate(found):
        rest = np.concatenate([x for j, x in enumerate(cells) if j != i])
        t = np.abs(ttest_ind(cells[i], rest, equal_var=False).statistic)
        expected = ((t - t.min()) / (t.max() - t.min())) ** 2
        np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-6)


def test_weights_where_there_is_nothing_to_weigh():
    rng = np.random.default_rng(0)
    same = np.ones((2, 6))
    np.testing.assert_allclose(t_weights(4 * same, 4 * same, np.array([4, 4])), 1 / 6)  # identical cells
    moved = np.array([[4.0, 4, 8], [4, 4, 4]])  # no variance, one gene differs
    np.testing.assert_allclose(t_weights(moved, moved**2 / 4, np.array([4, 4])), [[0, 0, 1]] * 2)
    sums = rng.normal(size=(3, 6))
    found = t_weights(sums, sums**2 + 5, np.array([1, 4, 4]))
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1:].sum(1), 1)
    assert np.isnan(t_weights(sums[:1], sums[:1] ** 2 + 5, np.array([4]))).all()  # no others
