"""Does every metric do what its row says?"""

import numpy as np
import pytest

from ptrag_sc.metrics import METRICS

every_metric = pytest.mark.parametrize("name", METRICS)


def value(name, real, predicted):
    """The metric of two sets of cells (n, G); the controls have mean 0."""
    metric = METRICS[name]
    if metric.level == "cells":
        return metric.function(real, predicted)
    return metric.function(real.mean(0), predicted.mean(0), np.zeros(real.shape[1]))


def loss(name, found):
    """How far from the best a value is, lower is better."""
    metric = METRICS[name]
    distance = {"higher": metric.best - found, "lower": found - metric.best, "closer": abs(found - metric.best)}
    return distance[metric.direction]


@pytest.fixture
def real():
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 50)) + 2 * rng.normal(size=50)


@every_metric
def test_row(name):
    metric = METRICS[name]
    assert metric.level in ("means", "cells")
    assert (metric.reference in ("control", "centre")) == (metric.level == "means")
    assert metric.direction in ("higher", "lower", "closer")
    assert metric.citation


@every_metric
def test_identical_cells_have_the_best_value_or_the_offset_of_a_u_statistic(name, real):
    found = value(name, real, real)
    if name == "energy_distance":
        within = np.linalg.norm(real[:, None] - real[None], axis=-1).sum() / (64 * 63)
        found += 2 * within / 64
    assert found == pytest.approx(METRICS[name].best, abs=1e-5)


@every_metric
def test_a_worse_prediction_scores_worse(name, real):
    noise = np.random.default_rng(1).normal(size=50)
    losses = [loss(name, value(name, real, 0.9**k * real + k * noise)) for k in range(4)]
    assert (np.diff(losses) > 0).all()


@every_metric
def test_order_of_cells_and_of_genes_changes_nothing(name, real):
    rng = np.random.default_rng(2)
    predicted, genes = 0.5 * real + rng.normal(size=real.shape), rng.permutation(50)
    expected = value(name, real, predicted)
    assert value(name, rng.permutation(real), rng.permutation(predicted)) == pytest.approx(expected)
    assert value(name, real[:, genes], predicted[:, genes]) == pytest.approx(expected)


@every_metric
def test_no_effect_has_a_finite_value(name, real):
    still = np.zeros_like(real)
    assert np.isfinite([value(name, still, still), value(name, real, still), value(name, still, real)]).all()
