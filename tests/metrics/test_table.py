"""Does every metric do what its row says?"""

import numpy as np
import pytest

from ptrag_sc.metrics import DEFAULT_METRICS, METRICS, differential_expression, t_weights

N_PERTURBATIONS, N_CELLS, N_GENES = 5, 64, 50
PERTURBED = np.arange(N_GENES) < N_PERTURBATIONS
UNDEFINED_WITHOUT_EFFECT = {"variance_ratio", "de_overlap", "de_direction", "lfc_nmae"}
every_metric = pytest.mark.parametrize("name", METRICS)


TESTED = {}  # several metrics are of the same tests


def of_tests(cells, control):
    key = cells.tobytes(), control.tobytes()
    if key not in TESTED:
        TESTED[key] = differential_expression(cells, control)
    return TESTED[key]


def values(name, real, predicted, control, perturbed=PERTURBED):
    """The metric (P,) of cells (P, n, G) of several perturbations, of which the first genes are perturbed."""
    row = METRICS[name]
    if row.level == "cells":
        return np.array([row.function(x, y) for x, y in zip(real, predicted, strict=True)])
    if row.level == "tests":
        tests = [[of_tests(x, control) for x in side] for side in (real, predicted)]
        return np.array([row.function(x, y) for x, y in zip(*tests, strict=True)])
    means, n = [real.mean(1), predicted.mean(1)], np.full(len(real), real.shape[1])
    further = {
        "control": control.mean(0),
        "centre": means[0].mean(0),
        "weights": t_weights(real.sum(1), np.square(real).sum(1), n),
        "perturbed": perturbed,
    }
    further = [further[key] for key in row.reference]
    if row.level == "panel":
        return row.function(*means, *further)
    each = [a if a.ndim == 2 else [a] * len(real) for a in further]
    return np.array([row.function(*arguments) for arguments in zip(*means, *each, strict=True)])


def loss(name, found):
    """How far from the best a value is, lower is better."""
    metric = METRICS[name]
    distance = {"higher": metric.best - found, "lower": found - metric.best, "closer": abs(found - metric.best)}
    return distance[metric.direction]


@pytest.fixture
def control():
    return 6 + np.random.default_rng(7).normal(size=(N_CELLS, N_GENES))


@pytest.fixture
def real():
    rng = np.random.default_rng(0)
    shift = rng.normal(size=N_GENES) + rng.normal(size=(N_PERTURBATIONS, 1, N_GENES))
    return 6 + shift + rng.normal(size=(N_PERTURBATIONS, N_CELLS, N_GENES))


@every_metric
def test_row(name):
    metric = METRICS[name]
    assert metric.level in ("means", "panel", "cells", "tests")
    assert metric.space == "genes" or metric.level == "cells"
    assert set(metric.reference) <= {"control", "centre", "weights", "perturbed"}
    assert metric.direction in ("higher", "lower", "closer")
    assert metric.citation


def test_seven_metrics_of_every_kind_are_default():
    assert DEFAULT_METRICS == (
        "pearson_delta",
        "pearson_delta_pert",
        "pds_cosine",
        "wmse",
        "effect_slope",
        "energy_distance",
        "variance_ratio",
    )


@every_metric
def test_identical_cells_have_the_best_value(name, real, control):
    found = values(name, real, real, control)
    if METRICS[name].u_statistic:
        assert (loss(name, found) < 0).all()
    else:
        np.testing.assert_allclose(found, METRICS[name].best, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, row in METRICS.items() if row.u_statistic])
def test_the_best_value_of_a_u_statistic_is_the_mean_over_second_samples(name):
    rng, function = np.random.default_rng(1), METRICS[name].function
    found = [function(rng.normal(size=(12, 5)), rng.normal(size=(9, 5))) for _ in range(600)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - METRICS[name].best) < 4 * error
    same = rng.normal(size=(12, 5))
    assert function(same, same) < METRICS[name].best - 20 * error


@every_metric
def test_a_second_sample_is_no_better_than_the_truth(name, real, control):
    """The measured ceiling of a metric that is not unbiased."""
    second = real + np.random.default_rng(5).normal(size=real.shape)
    assert (
        loss(name, values(name, real, second, control)).mean() >= loss(name, values(name, real, real, control)).mean()
    )


@every_metric
def test_a_worse_prediction_scores_worse(name, real, control):
    noise = np.random.default_rng(1).normal(size=(N_PERTURBATIONS, 1, N_GENES))
    predicted = [6 + 0.8**k * (real - 6) + 0.7 * k * noise for k in range(4)]
    losses = np.array([loss(name, values(name, real, p, control)).mean() for p in predicted])
    assert (losses[1:] >= losses[0]).all()
    assert losses[-1] > losses[0] + 0.02
    if METRICS[name].level != "tests":  # where noise makes every gene significant, sets overlap again
        assert (np.diff(losses) >= 0).all()


@every_metric
def test_order_of_cells_and_of_genes_changes_nothing(name, real, control):
    rng = np.random.default_rng(2)
    predicted, genes = 3 + 0.5 * real + rng.normal(size=real.shape), rng.permutation(N_GENES)
    expected = values(name, real, predicted, control)
    shuffled = [cells[:, rng.permutation(N_CELLS)] for cells in (real, predicted)]
    np.testing.assert_allclose(values(name, *shuffled, rng.permutation(control)), expected, rtol=1e-6)
    moved = (a[..., genes] for a in (real, predicted, control))
    np.testing.assert_allclose(values(name, *moved, PERTURBED[genes]), expected, rtol=1e-6)


@every_metric
def test_no_effect_and_no_variance_have_a_defined_value(name, real, control):
    """Identical control cells everywhere: finite, or NaN where the docstring says so, but never infinite."""
    still = np.broadcast_to(control.mean(0), real.shape)
    assert np.isfinite(values(name, real, still, control)).all()
    found = values(name, still, real, control)
    assert np.isnan(found).all() if name in UNDEFINED_WITHOUT_EFFECT else np.isfinite(found).all()
    both = values(name, still, still, control)
    assert not np.isinf(both).any()
    if not (name in UNDEFINED_WITHOUT_EFFECT or METRICS[name].level == "panel" or METRICS[name].best == 1):
        np.testing.assert_allclose(both, METRICS[name].best, atol=1e-7)
