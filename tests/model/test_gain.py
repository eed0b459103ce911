"""Are trained weights kept rarely without a gain, and found where there is one?"""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

from ptrag_sc.model._gain import _flips, surpasses


def traces(rng, n_conditions, *, correlation, gain=0.0, n_checks=120, heavy=False):
    """Return gains (E, N) whose noise is an AR(1) process over the checks, of its own in each condition."""
    draw = (lambda: rng.standard_t(3, n_conditions)) if heavy else (lambda: rng.normal(size=n_conditions))
    rows = [draw()]
    for _ in range(n_checks - 1):
        rows.append(correlation * rows[-1] + np.sqrt(1 - correlation**2) * draw())
    return torch.as_tensor(np.array(rows) + gain)


def slow_p_value(gains):
    """Every flip, and the t statistic of every check by scipy."""
    largest = []
    for signs in product([1, -1], repeat=gains.shape[1]):
        largest.append(max(ttest_1samp(np.array(signs) * row, 0).statistic for row in gains.numpy()))
    return np.mean(np.array(largest) >= largest[0] - 1e-9)


def test_equals_the_enumerated_test_of_the_largest_t_statistic():
    rng, found = np.random.default_rng(0), []
    for gain in np.linspace(0, 1.5, 6):
        gains = traces(rng, 6, correlation=0.5, gain=gain, n_checks=3)
        found.append(surpasses(gains))
        assert found[-1] == (slow_p_value(gains) <= 0.05)
    assert {True, False} == set(found)


@pytest.mark.parametrize(
    "n_conditions", [pytest.param(5, marks=pytest.mark.slow), 10, pytest.param(30, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("correlation", "heavy"), [(0.0, False), (0.9, False), (0.99, False), (0.9, True)])
def test_at_most_a_twentieth_of_the_trainings_without_gain_pass(n_conditions, correlation, heavy):
    rng = np.random.default_rng(1)
    passed = [surpasses(traces(rng, n_conditions, correlation=correlation, heavy=heavy)) for _ in range(200)]
    assert np.mean(passed) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_harm_is_never_taken_for_a_gain():
    rng = np.random.default_rng(2)
    assert not any(surpasses(traces(rng, 10, correlation=0.9, gain=-1.0)) for _ in range(50))
    assert not surpasses(torch.zeros(3, 10))


def test_a_gain_of_two_standard_deviations_is_found_with_ten_conditions():
    """What a t-test at .005 per check finds no more often, and lets pass without a gain far too often."""
    rng = np.random.default_rng(3)
    assert np.mean([surpasses(traces(rng, 10, correlation=0.95, gain=2.0)) for _ in range(50)]) >= 0.95
    assert np.mean([surpasses(traces(rng, 30, correlation=0.95, gain=0.8)) for _ in range(50)]) >= 0.9


def test_the_order_of_conditions_and_checks_does_not_matter():
    for n_conditions in (9, 30):
        for gain in np.linspace(0.2, 0.7, 6):
            gains = traces(np.random.default_rng(4), n_conditions, correlation=0.5, gain=gain, n_checks=20)
            conditions, checks = torch.randperm(n_conditions), torch.randperm(20)
            assert surpasses(gains) == surpasses(gains[:, conditions]) == surpasses(gains[checks])


def test_checks_that_are_not_finite_do_not_count():
    gains = torch.ones(3, 10, dtype=torch.float64) + 0.1 * torch.rand(3, 10)
    assert surpasses(gains)
    gains[1, 2] = torch.nan
    assert surpasses(gains)
    assert not surpasses(torch.full((2, 10), torch.nan))
    assert not surpasses(torch.full((2, 10), torch.inf))


@pytest.mark.parametrize(("n_conditions", "can"), [(1, False), (4, False), (5, True)])
def test_few_conditions_cannot_show_a_gain(n_conditions, can):
    assert surpasses(torch.ones(1, n_conditions)) == can


def test_every_flip_is_tried_once_and_the_first_changes_nothing():
    flips = _flips(5)
    assert len(flips) == len({tuple(row) for row in flips.tolist()}) == 32
    assert not flips[0].any() and not _flips(40)[0].any()
