"""Is accuracy measured on what was held out, and does the formula find what lies beyond?"""

import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import ptrag_sc
from own_targets import slow_masked
from planned_screens import grouped_screen, set_up
from ptrag_sc.baselines import MeanShift
from ptrag_sc.baselines._refitted import Refitted, deviation_correlation
from ptrag_sc.data import CellReader
from ptrag_sc.data._shifts import sampled_means
from ptrag_sc.tl._extrapolation import Growth, Measured, _growth, _slopes

SIZES = {"n_perturbations": [8, 16, 60], "n_cells": [3, 6]}
TESTED, POOL = np.arange(0, 48, 3), np.setdiff1d(np.arange(48), np.arange(0, 48, 3))


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Intervals from ten draws of the bootstrap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptrag_sc.tl._power.N_DRAWS", 10)
        yield


@pytest.fixture(scope="module")
def adata():
    """One line, 48 perturbations of six cells, one of which targets a measured gene. Do not change it."""
    made = grouped_screen()
    made.var_names = ["P5", *made.var_names[1:]]
    return set_up(made)


@pytest.fixture(scope="module")
def of(adata):
    return Refitted.of(adata, None, "K562", space="text", gene_embedding=None, place="the test")


@pytest.fixture(scope="module")
def table(adata):
    return ptrag_sc.tl.power(adata, None, cell_type="K562", **SIZES, n_repeats=4)


def slow_accuracy(of, adata, seen, tested):
    """Kernel ridge with a free mean, solved as a linear system with a multiplier for the mean; then a correlation."""
    shifts = {(str(name), "K562"): shift for name, shift in zip(of.names, of.shifts, strict=True)}
    trained = {key: shift for i, (key, shift) in enumerate(shifts.items()) if i not in set(tested)}
    genes = adata.var_names.tolist()
    masked = slow_masked(trained, genes)
    for i in tested:  # what replaces own targets comes from the others alone
        key = str(of.names[i]), "K562"
        masked[key] = slow_masked(trained | {key: shifts[key]}, genes)[key]
    y = np.stack([masked[str(name), "K562"] for name in of.names])
    vectors = adata.uns["gene_embedding"].loc[of.names].to_numpy()
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    kernel = np.exp((vectors @ vectors.T - 1) / 0.2)
    centre = np.eye(len(seen)) - 1 / len(seen)
    own = centre @ kernel[np.ix_(seen, seen)] @ centre

    def predicted(kept, queries, penalty):
        """Minimise |y - mu - K a|^2 + s a'Ka over mu and a, the sum of a being 0."""
        n = len(kept)
        k = kernel[np.ix_(kept, kept)]
        system = np.block([[k + penalty * np.eye(n), np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
        solution = np.linalg.solve(system, np.vstack([y[kept], np.zeros((1, y.shape[1]))]))
        return kernel[np.ix_(queries, kept)] @ solution[:n] + solution[n]

    errors = {}
    for penalty in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0):
        scaled = penalty * np.trace(own) / len(seen)
        left = [y[[i]] - predicted(np.delete(seen, j), [i], scaled) for j, i in enumerate(seen)]
        errors[scaled] = np.square(left).sum()
    found = predicted(seen, tested, min(errors, key=errors.get))
    others = np.delete(y, tested, axis=0)
    middle = others.mean(0)
    centred = [row - middle - (row - middle).mean() for row in others]
    error = sum(row @ row for row in centred) / (len(others) - 1) / len(others)
    scores = []
    for a, b in zip(y[tested] - middle, found - middle, strict=True):
        a, b = a - a.mean(), b - b.mean()
        scores.append(a @ b / np.sqrt((a @ a - error) * (b @ b + error)))
    return np.array(scores)


def test_accuracy_is_that_of_a_slow_fit(adata, of):
    masked = of.masked(of.shifts, TESTED)
    for n in (6, 20):
        found = of.accuracy(POOL[:n], masked, masked, TESTED)
        np.testing.assert_allclose(found, slow_accuracy(of, adata, POOL[:n], TESTED), atol=2e-6)


def test_what_is_tested_is_not_seen(of):
    masked = of.masked(of.shifts, TESTED)
    hidden = masked.copy()
    hidden[TESTED] = np.nan
    np.testing.assert_array_equal(of.accuracy(POOL, hidden, masked, TESTED), of.accuracy(POOL, masked, masked, TESTED))
    other = of.shifts.copy()
    other[TESTED] = 7.0
    np.testing.assert_array_equal(of.masked(other, TESTED)[POOL], masked[POOL])


def test_correlation_without_error_is_the_metric():
    real, predicted = np.random.default_rng(0).normal(size=(2, 5, 30))
    expected = [ptrag_sc.metrics.pearson_delta(a, b, np.zeros(30)) for a, b in zip(real, predicted, strict=True)]
    np.testing.assert_allclose(deviation_correlation(real, predicted, 0.0), expected)
    assert deviation_correlation(np.zeros((1, 3)), np.ones((1, 3)), 0.0).tolist() == [0.0]


def test_accuracy_is_that_from_the_true_centre():
    rng = np.random.default_rng(0)
    n, n_genes, n_screens = 12, 60, 400
    found, naive, true = [], [], []
    for _ in range(n_screens):
        base = rng.normal(size=n_genes)  # the true centre
        shared = rng.normal(size=n_genes)  # what the measured and the tested perturbations have in common
        others = base + rng.normal(size=(n, n_genes)) + rng.normal(size=(n, 1)) * shared
        real = base + rng.normal(size=(4, n_genes)) + shared
        predicted = others.mean(0) + 0.3 * shared + np.zeros((4, 1))
        centre = others.mean(0)
        spread = others - centre
        spread = spread - spread.mean(1, keepdims=True)
        error = np.square(spread).sum() / (n - 1) / n
        found.append(deviation_correlation(real - centre, predicted - centre, error).mean())
        naive.append(deviation_correlation(real - centre, predicted - centre, 0.0).mean())
        true.append(deviation_correlation(real - base, predicted - base, 0.0).mean())
    assert abs(np.mean(found) - np.mean(true)) < 0.02
    assert np.mean(naive) > np.mean(true) + 0.1


def test_shifts_of_sampled_cells(of):
    np.testing.assert_allclose(of.sampled(100, np.random.default_rng(0)), of.shifts, atol=1e-6)
    error = [np.square(of.sampled(c, np.random.default_rng(0)) - of.shifts).mean() for c in (1, 2, 5)]
    # Drawn without replacement from six cells: s^2 (1 / c - 1 / 6)
    np.testing.assert_allclose(np.array(error) / error[0], np.array([5 / 6, 2 / 6, 1 / 30]) / (5 / 6), rtol=0.15)


def test_means_of_a_sparse_matrix_are_those_of_a_dense_one():
    dense = np.random.default_rng(0).poisson(0.4, (30, 7)).astype(np.float32)
    rows = [np.array([3, 1]), np.array([29]), np.arange(30)]
    for columns in (None, np.array([4, 0])):
        found = sampled_means(CellReader(sp.csr_matrix(dense), columns), rows)
        np.testing.assert_allclose(found, sampled_means(CellReader(dense, columns), rows), atol=1e-6)
        np.testing.assert_allclose(found[0], dense[[3, 1]].mean(0)[slice(None) if columns is None else columns])


def test_formula_is_found_again_beyond_what_was_measured():
    true = Growth(0.35, 30.0, 1.5, 25.0)
    n, c = (axis.ravel() for axis in np.meshgrid([10.0, 20, 40, 80], [9.0, 18, 36]))
    found = Growth.fit(n, c, true.at(n, c))
    far = np.array([160.0, 320]), np.array([36.0, 72])
    np.testing.assert_allclose(found.at(*far), true.at(*far), atol=2e-3)
    assert np.isclose(true.at(np.array(1e9), np.array(1e9)), 0.35)


def test_slopes_are_those_of_the_formula():
    n, c, values = np.array([20.0, 40, 80]), np.array([30.0, 60, 100]), np.array([0.5, np.log(50), 1.3, np.log(15)])
    steps = 1e-6 * np.eye(4)
    slow = [(_growth(values + step, n, c) - _growth(values - step, n, c)) / 2e-6 for step in steps]
    np.testing.assert_allclose(_slopes(values, n, c), np.stack(slow, axis=1), atol=1e-9)


def test_bootstrap_draws_repeats_and_perturbations():
    accuracy = np.full((3, 2, 6), np.nan)
    accuracy[0, :, :2], accuracy[1, :, 2:4], accuracy[2, :, 4:] = 0.1, 0.2, 0.6
    accuracy[:, 1] += 1
    measured = Measured(np.array([10, 20]), np.array([5, 5]), accuracy)
    np.testing.assert_allclose(measured.means(), [0.3, 1.3])
    np.testing.assert_allclose(measured.means(np.array([3.0, 0, 1, 1, 0, 1])), [(0.3 + 0.4 + 0.6) / 6, 1 + 1.3 / 6])
    drawn = measured.bootstrapped(200, np.random.default_rng(0))
    assert 0.05 < drawn[:, 0].std() < 0.25
    np.testing.assert_allclose(drawn[:, 1] - drawn[:, 0], 1)


def test_table(adata, table):
    columns = ["n_perturbations", "n_cells", "pearson_delta_pert", "low", "high", "extrapolated"]
    assert table.columns.tolist() == columns
    assert table[["n_perturbations", "n_cells"]].to_numpy().tolist() == [
        [n, c] for c in SIZES["n_cells"] for n in SIZES["n_perturbations"]
    ]
    assert table["extrapolated"].tolist() == [False, False, True] * 2
    assert ((table["low"] <= table["pearson_delta_pert"]) & (table["pearson_delta_pert"] <= table["high"])).all()
    by_size = table.pivot(index="n_perturbations", columns="n_cells", values="pearson_delta_pert")
    assert (by_size.diff().iloc[1:] > 0).all(axis=None)
    assert (by_size[6] > by_size[3]).all()
    assert table.attrs["predictor"] == "kernel ridge on the gene embedding"
    assert (table.attrs["n_measured"], table.attrs["n_cells_measured"]) == (48, 6)
    again = ptrag_sc.tl.power(adata, MeanShift(adata).fit(), cell_type="K562", **SIZES, n_repeats=4)
    pd.testing.assert_frame_equal(table, again)


def test_nothing_beyond_twice(adata, caplog):
    sizes = {"n_perturbations": [96, 97], "n_cells": [12, 13]}
    table = ptrag_sc.tl.power(adata, None, cell_type="K562", **sizes, n_repeats=2)
    assert table["pearson_delta_pert"].isna().tolist() == [False, True, True, True]
    assert table["extrapolated"].all()
    assert "3 sizes lie beyond twice what was measured (48 perturbations, 6 cells)" in caplog.text


def test_budget(adata):
    table = ptrag_sc.tl.power(adata, None, cell_type="K562", budget=96, n_cells=[2, 4, 6], n_repeats=3)
    assert table["n_perturbations"].tolist() == [48, 24, 16]
    best = table.loc[table["pearson_delta_pert"].idxmax()]
    assert table.attrs["best"] == {"n_perturbations": best["n_perturbations"], "n_cells": best["n_cells"]}
    assert table.attrs["budget"] == 96


def test_few_perturbations(adata, caplog):
    few = set_up(adata[adata.obs["gene"].isin(["ctl", *[f"P{i}" for i in range(12)]])].copy())
    with caplog.at_level(logging.WARNING):
        table = ptrag_sc.tl.power(few, None, cell_type="K562", n_repeats=2)
    assert "Only 12 perturbations were measured" in caplog.text
    assert table["n_perturbations"].max() == 24
    fewer = set_up(few[few.obs["gene"].isin(["ctl", *[f"P{i}" for i in range(9)]])].copy())
    with pytest.raises(ValueError, match="holds 9 measured perturbations of 'K562', too few"):
        ptrag_sc.tl.power(fewer, None, cell_type="K562")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"n_perturbations": 4}, ValueError, "n_perturbations=4 in tl.power is below 5"),
        ({"n_perturbations": [8.5]}, TypeError, "no whole number"),
        ({"n_perturbations": []}, ValueError, "is empty"),
        ({"n_cells": 0}, ValueError, "n_cells=0 in tl.power is below 1"),
        ({"n_perturbations": 8, "budget": 100}, ValueError, "is given with a budget"),
        ({"budget": 12}, ValueError, "leaves 4 perturbations of the budget of 12 cells"),
        ({"n_repeats": 1}, ValueError, "n_repeats=1 in tl.power is below 2"),
        ({"cell_type": "RPE1"}, KeyError, "Cell type 'RPE1' does not occur"),
    ],
)
def test_bad_input_is_refused(adata, change, error, words):
    options = {"cell_type": "K562", "n_cells": 3} | change
    with pytest.raises(error, match=words):
        ptrag_sc.tl.power(adata, None, **options)
