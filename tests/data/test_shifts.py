"""Are mean shifts batch-matched means, so that a batch does not pass for an effect?"""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from ptrag_sc.data import (
    CellReader,
    ConditionIndex,
    control_means,
    matched_control,
    mean_shifts,
    mean_shifts_and_spread,
)
from ptrag_sc.data._shifts import group_means


def make(*, seed=0, n=600, genes=7, matrix=np.asarray):
    """Return labels per cell, the index and a reader of random expression."""
    rng = np.random.default_rng(seed)
    labels = pd.DataFrame(
        {
            "perturbation": rng.choice(["ctl", "A", "B", "A+B"], n, p=[0.4, 0.3, 0.2, 0.1]),
            "cell_type": rng.choice(["x", "y"], n),
            "batch": rng.choice(["b1", "b2", "b3"], n),
        }
    )
    return labels, index_of(labels), CellReader(matrix(rng.gamma(1.0, size=(n, genes)).astype(np.float32)))


def index_of(labels):
    return ConditionIndex.from_labels(*(labels[c] for c in ("perturbation", "cell_type", "batch")), control="ctl")


def slow_shift(labels, x, perturbation, cell_type):
    """Mean over cells of cell minus the controls of its own batch."""
    parts = []
    for i in np.flatnonzero((labels["perturbation"] == perturbation) & (labels["cell_type"] == cell_type)):
        control = (labels["perturbation"] == "ctl") & (labels["cell_type"] == cell_type)
        matched = control & (labels["batch"] == labels["batch"].iloc[i])
        parts.append(x[i] - x[matched if matched.any() else control].mean(0))
    return np.mean(parts, axis=0)


@pytest.mark.parametrize("matrix", [np.asarray, sp.csr_matrix])
def test_shifts_equal_slow_shifts(matrix):
    labels, index, reader = make(matrix=matrix)
    x = reader.rows(np.arange(len(labels))).astype(float)
    conditions = index.conditions.sample(frac=1, random_state=0)
    found = mean_shifts(reader, index, conditions)
    for shift, n, row in zip(found.shift, found.n_cells, index.named(conditions).itertuples(), strict=True):
        np.testing.assert_allclose(shift, slow_shift(labels, x, row.perturbation, row.cell_type), atol=1e-6)
        assert n == row.n_cells
    given = mean_shifts(reader, index, conditions, control_means(reader, index))
    np.testing.assert_array_equal(given.shift, found.shift)


def test_a_batch_confounded_with_a_perturbation_does_not_leak():
    labels, _, _ = make()
    labels.loc[labels["perturbation"] == "A", "batch"] = "b3"
    index = index_of(labels)
    effect, batch_effect = np.array([1.0, -2.0, 0.0]), np.array([5.0, 5.0, -5.0])
    x = 3 + (labels["perturbation"] == "A").to_numpy()[:, None] * effect
    x = x + (labels["batch"] == "b3").to_numpy()[:, None] * batch_effect
    found = mean_shifts(CellReader(x), index, index.conditions).shift
    for row, shift in zip(index.named(index.conditions).itertuples(), found, strict=True):
        np.testing.assert_allclose(shift, effect if row.perturbation == "A" else 0, atol=1e-6)
    naive = x[(labels["perturbation"] == "A").to_numpy()].mean(0) - x[index.is_control].mean(0)
    assert np.abs(naive - effect).min() > 1


def test_batches_of_one_name_in_two_cell_types_are_two_batches():
    labels, index, _ = make()
    x = ((labels["cell_type"] == "y") & (labels["batch"] == "b1")).to_numpy(dtype=float)[:, None]
    np.testing.assert_allclose(mean_shifts(CellReader(x), index, index.conditions).shift, 0, atol=1e-7)


def test_a_batch_without_controls_is_matched_by_its_cell_type():
    labels, _, reader = make()
    kept = ~((labels["perturbation"] == "ctl") & (labels["batch"] == "b2")).to_numpy()
    labels, x = labels[kept].reset_index(drop=True), reader.matrix[kept]
    index, reader = index_of(labels), CellReader(x)
    controls = control_means(reader, index)
    for code, t, batch in sorted(set(zip(index.batch, labels["cell_type"], labels["batch"], strict=True))):
        pool = index.is_control & (labels["cell_type"] == t).to_numpy()
        if batch != "b2":
            pool &= (labels["batch"] == batch).to_numpy()
        np.testing.assert_allclose(controls.batch[code], x[pool].mean(0), atol=1e-6)
    found = mean_shifts(reader, index, index.conditions).shift
    for row, shift in zip(index.named(index.conditions).itertuples(), found, strict=True):
        np.testing.assert_allclose(shift, slow_shift(labels, x, row.perturbation, row.cell_type), atol=1e-6)


def test_a_cell_type_without_controls_has_no_shift():
    labels, _, reader = make()
    labels.loc[(labels["perturbation"] == "ctl") & (labels["cell_type"] == "y"), "perturbation"] = "B"
    index = index_of(labels)
    controls = control_means(reader, index)
    np.testing.assert_allclose(controls.cell_type[0], reader.matrix[index.is_control].mean(0), atol=1e-6)
    assert np.isnan(controls.cell_type[1]).all()
    with pytest.raises(ValueError, match=r"Cell types 'y' in the data have no control cells. Add"):
        mean_shifts(reader, index, index.conditions)
    others = index.conditions[index.conditions["cell_type"] == 0]
    assert np.isfinite(mean_shifts(reader, index, others).shift).all()


def test_matched_control_weighs_batches_by_their_share():
    _, index, reader = make()
    controls = control_means(reader, index)
    np.testing.assert_allclose(
        matched_control(controls, np.array([2, 0, 2, 2])), 0.25 * controls.batch[0] + 0.75 * controls.batch[2]
    )


def test_group_means_across_pieces():
    rng = np.random.default_rng(0)
    x, rows = rng.normal(size=(9000, 2)).astype(np.float32), rng.permutation(9000)[:8700]
    group = rng.choice([0, 1, 4], len(rows), p=[0.7, 0.2, 0.1])
    means, n = group_means(CellReader(x), rows, group, 5)
    for g in (0, 1, 4):
        np.testing.assert_allclose(means[g], x[rows[group == g]].mean(0, dtype=float), atol=1e-6)
    assert (means[[2, 3]] == 0).all()
    assert n.tolist() == np.bincount(group, minlength=5).tolist()


def test_no_conditions():
    _, index, reader = make()
    found = mean_shifts(reader, index, index.conditions.iloc[:0])
    assert found.shift.shape == (0, 7)
    assert found.n_cells.shape == (0,)


def test_the_spread_is_the_standard_error_of_a_mean_shift():
    """Over many genes of one kind the shifts vary as the spread says; there are three kinds."""
    labels, index, _ = make(n=240)
    x = np.random.default_rng(0).normal(size=(len(labels), 600, 3)) * np.array([1.0, 2.0, 0.5])
    found, spread = mean_shifts_and_spread(CellReader(x.reshape(len(labels), -1)), index, index.conditions)
    variances = spread.variance.reshape(2, 600, 3)
    np.testing.assert_allclose(variances.mean(1), np.tile([1.0, 4.0, 0.25], (2, 1)), rtol=0.05)
    expected = spread.scale[:, None] * np.array([1.0, 4.0, 0.25])
    np.testing.assert_allclose(found.shift.reshape(-1, 600, 3).var(1), expected, rtol=0.25)


def test_the_spread_comes_with_the_same_shifts_and_a_row_for_every_cell_type():
    _, index, reader = make()
    first = index.conditions[index.conditions["cell_type"] == 0]
    found, spread = mean_shifts_and_spread(reader, index, first)
    np.testing.assert_array_equal(found.shift, mean_shifts(reader, index, first).shift)
    assert spread.variance.shape == (2, 7)
    assert not spread.variance[1].any()
    cells = [reader.rows(index.rows(p, 0)).astype(float) for p in first["perturbation"]]
    within = sum(np.square(x - x.mean(0)).sum(0) for x in cells) / sum(len(x) - 1 for x in cells)
    np.testing.assert_allclose(spread.variance[0], within, rtol=1e-5)


@pytest.mark.parametrize("how", ["batch", "all"])
def test_deviations_vary_as_their_contrast_says(how):
    """Conditions that share controls share the error of these: it cancels in the deviation from their mean shift."""
    rng = np.random.default_rng(0)
    n, n_batches = 20, 2
    labels = np.repeat([f"P{i}" for i in range(8)] + ["control"], [n] * 8 + [6])
    batch = rng.integers(0, n_batches, len(labels)).astype(str)
    batch[labels == "control"] = ["0", "0", "0", "0", "1", "1"]
    index = ConditionIndex.from_labels(labels, np.full(len(labels), "T"), batch, control="control")
    matching = np.array([1.0, 1.0]) if how == "batch" else np.array([0.0, 0.0])
    reader = CellReader(rng.normal(size=(len(labels), 1500)))  # genes are draws
    controls = control_means(reader, index, matching)
    shifts, spread = mean_shifts_and_spread(reader, index, index.conditions, controls)
    deviations = shifts.shift - shifts.shift.mean(0)  # (C, G)
    # The perturbed cells' own part of the mean of eight is counted in the deviation too: (1 - 1 / 8) of 1 / n.
    own = 1 / n
    expected = spread.contrast - own + own * (1 - 1 / 8)
    np.testing.assert_allclose(deviations.var(1), expected, rtol=0.15)
    assert (spread.contrast < spread.scale).all()
    if how == "all":  # all conditions have the same control
        np.testing.assert_allclose(spread.contrast, own)
