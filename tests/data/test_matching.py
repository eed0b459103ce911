"""Does automatic matching of control cells lower the error of an effect, and what does it cost?"""

import numpy as np
import pandas as pd
import pytest

from ptrag_sc.data import (
    CellReader,
    ConditionIndex,
    control_means,
    matching_weights,
    mean_shifts,
    mean_shifts_and_spread,
)
from ptrag_sc.data._matching import variance_components

N_GENES = 200


def screen(seed, *, n_batches, n_control, tau, confounded=False, n_perturbed=60):
    """Return index and reader of two perturbations without any effect, in batches whose shifts have deviation tau.

    Confounded: A is in the first half of the batches only, B in the others.
    """
    rng = np.random.default_rng(seed)
    half = n_batches // 2
    of_a = rng.integers(0, half if confounded else n_batches, n_perturbed)
    of_b = rng.integers(half if confounded else 0, n_batches, n_perturbed)
    batch = np.concatenate([np.repeat(np.arange(n_batches), n_control), of_a, of_b])
    label = np.repeat(["ctl", "A", "B"], [n_batches * n_control, n_perturbed, n_perturbed])
    shifts = tau * rng.normal(size=(n_batches, N_GENES))
    x = shifts[batch] + rng.normal(size=(len(batch), N_GENES))
    index = ConditionIndex.from_labels(
        pd.Series(label), pd.Series(["t"] * len(label)), pd.Series(batch.astype(str)), control="ctl"
    )
    return index, CellReader(x.astype(np.float32))


def error(index, reader, matching):
    """Root mean squared error of the shifts, whose truth is 0, and the standard error that was promised."""
    controls = control_means(reader, index, matching)
    shifts, spread = mean_shifts_and_spread(reader, index, index.conditions, controls)
    return np.sqrt(np.square(shifts.shift).mean()), np.sqrt((spread.variance.mean() * spread.scale).mean())


def errors(**options):
    """Mean errors over seeds with all, none and the automatic share of matched controls."""
    found = []
    for seed in range(10):
        index, reader = screen(seed, **options)
        batch = matching_weights(reader, index)
        auto = matching_weights(reader, index, "auto")
        found.append([error(index, reader, m)[0] for m in (batch, 0 * batch, auto)])
    return dict(zip(("batch", "cell type", "auto"), np.mean(found, axis=0), strict=True))


def test_where_batches_are_confounded_with_perturbations_controls_stay_matched():
    found = errors(n_batches=8, n_control=20, tau=0.5, confounded=True)
    assert found["auto"] < 1.03 * found["batch"]
    assert found["auto"] < 0.8 * found["cell type"]
    assert found == pytest.approx({"batch": 0.176, "cell type": 0.240, "auto": 0.172}, abs=0.002)  # as in the docs


def test_where_batches_do_not_differ_few_controls_are_pooled():
    found = errors(n_batches=20, n_control=2, tau=0.0, confounded=True, n_perturbed=400)
    assert found["auto"] < 0.8 * found["batch"]
    assert found["auto"] < 1.01 * found["cell type"]


def test_between_the_two_the_mixture_beats_both():
    found = errors(n_batches=12, n_control=3, tau=0.5, confounded=True)
    assert found["auto"] < 0.97 * min(found["batch"], found["cell type"])
    assert found == pytest.approx({"batch": 0.278, "cell type": 0.265, "auto": 0.244}, abs=0.002)  # as in the docs


def test_harm_one_share_serves_all_genes():
    """Where batches differ in a few genes only, the average gene gains and these few lose."""
    squares = []
    for seed in range(10):
        index, reader = screen(seed, n_batches=12, n_control=3, tau=np.arange(N_GENES) < 5, confounded=True)
        controls = [control_means(reader, index, matching_weights(reader, index, how)) for how in ("batch", "auto")]
        shifts = [mean_shifts(reader, index, index.conditions, c).shift for c in controls]
        squares.append([(np.square(s).mean(), np.square(s[:, :5]).mean()) for s in shifts])
    batch, auto = np.mean(squares, axis=0)
    assert auto[0] < batch[0]
    assert auto[1] > 1.5 * batch[1]


@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_weights_equal_the_closed_form(tau):
    index, reader = screen(0, n_batches=200, n_control=5, tau=tau)
    weights = matching_weights(reader, index, "auto")
    np.testing.assert_allclose(weights, tau**2 / (tau**2 + 1 / 5), atol=0.02)
    assert (matching_weights(reader, index) == 1).all()


def test_weights_are_those_of_each_cell_type_and_zero_without_controls():
    index, reader = screen(0, n_batches=10, n_control=4, tau=0.5)
    names = index.cell_types[index.cell_type].astype(str)
    cell_type = np.where(index.batch % 2, names, "u")
    label = np.where(index.is_control & (index.batch != 3), "ctl", "A")
    both = ConditionIndex.from_labels(
        pd.Series(label), pd.Series(cell_type), pd.Series(index.batch.astype(str)), control="ctl"
    )
    for how in ("batch", "auto"):
        weights = matching_weights(reader, both, how)
        without = np.setdiff1d(both.batch, both.batch[both.is_control])
        assert len(without) == 1
        assert weights[without[0]] == 0
    for name in ("t", "u"):
        rows = np.flatnonzero(cell_type == name)
        own = ConditionIndex.from_labels(
            pd.Series(label[rows]), pd.Series(cell_type[rows]), pd.Series(both.batch[rows].astype(str)), control="ctl"
        )
        alone = matching_weights(CellReader(reader.rows(rows)), own, "auto")
        np.testing.assert_allclose(weights[both.batch[rows]], alone[own.batch], rtol=1e-5)


def test_promised_standard_errors_are_those_of_controls_without_batch_shifts():
    for matching in (0.0, 0.4, 1.0):
        index, reader = screen(1, n_batches=10, n_control=3, tau=0.0)
        found, promised = error(index, reader, np.full(10, matching))
        assert found == pytest.approx(promised, rel=0.15)


def test_variances_are_those_that_were_drawn():
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 60, 300)
    means = rng.normal(size=(300, 3)) * 0.5
    cells = [m + rng.normal(size=(n, 3)) for m, n in zip(means, sizes, strict=True)]
    tau, sigma = variance_components(
        np.stack([c.mean(0) for c in cells]), sizes.astype(float), sum(np.square(c).sum(0) for c in cells)
    )
    assert tau == pytest.approx(3 * 0.25, rel=0.1)
    assert sigma == pytest.approx(3.0, rel=0.05)
    none = [rng.normal(size=(n, 3)) for n in sizes]
    tau, _ = variance_components(
        np.stack([c.mean(0) for c in none]), sizes.astype(float), sum(np.square(c).sum(0) for c in none)
    )
    assert tau < 0.02
