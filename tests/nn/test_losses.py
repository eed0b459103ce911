"""Is the energy distance the unbiased, masked, differentiable quantity that it claims to be?"""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from ptrag_sc.nn import LOSSES, Changes, energy_distance, mean_distance
from ptrag_sc.nn import _losses as losses


def slow_energy_distance(x, y):
    def off_diagonal_mean(z):
        d = cdist(z, z)
        return d[~np.eye(len(z), dtype=bool)].mean()

    return 2 * cdist(x, y).mean() - off_diagonal_mean(x) - off_diagonal_mean(y)


def sets(seed, n=(5, 3), m=(4, 6), size=7, genes=11):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, len(n), size, genes))
    masks = [torch.as_tensor(np.arange(size) < np.array(k)[:, None]) for k in (n, m)]
    return torch.as_tensor(x + 0.5), torch.as_tensor(y), *masks


def test_equals_slow_version_on_the_real_cells_only():
    x, y, x_mask, y_mask = sets(0)
    expected = [slow_energy_distance(x[b][x_mask[b]].numpy(), y[b][y_mask[b]].numpy()) for b in range(2)]
    np.testing.assert_allclose(energy_distance(x, y, x_mask, y_mask), expected, rtol=1e-10)


def test_chunks_of_rows_change_nothing(monkeypatch):
    arguments = sets(6, n=(7, 5), m=(6, 7))
    whole = energy_distance(*arguments)
    monkeypatch.setattr(losses, "ROWS", 3)
    torch.testing.assert_close(energy_distance(*arguments), whole)


@pytest.mark.parametrize("rows", [2048, 3])
@pytest.mark.parametrize("has_hidden", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_changes_have_the_loss_and_the_gradient_of_their_cells(monkeypatch, name, has_hidden, rows):
    monkeypatch.setattr(losses, "ROWS", rows)
    start, y, *masks = sets(9, n=(7, 5), m=(6, 7))
    rng = np.random.default_rng(1)
    loadings, directions, shift = (torch.as_tensor(rng.normal(size=size)) for size in ((2, 7, 4), (4, 11), (2, 11)))
    hidden = torch.as_tensor(rng.random((2, 11)) < 0.2 * has_hidden)
    y = y.masked_fill(hidden[:, None], 0)
    loadings.requires_grad_()
    slow = (start + shift[:, None] + loadings @ directions).masked_fill(hidden[:, None], 0)
    before, expected = start.clone(), LOSSES[name].of_cells(slow, y, *masks)
    gradient = torch.autograd.grad(expected.sum(), loadings)[0]
    changes = Changes(start, shift, loadings, directions)
    found = LOSSES[name].of_changes(changes, y, *masks, hidden if has_hidden else None)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), loadings)[0], gradient)
    assert torch.equal(start, before)
    near = LOSSES[name].of_changes(Changes(*(x.float() for x in changes)), y.float(), *masks, hidden)
    torch.testing.assert_close(near, expected.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [2048, 3])
def test_blends_have_the_losses_of_their_cells(monkeypatch, rows):
    monkeypatch.setattr(losses, "ROWS", rows)
    first, y, *masks = sets(3, n=(7, 5), m=(6, 7))
    second = first.flip(2) + 0.3
    shares = (0.0, 0.3, 1.0)
    slow = [energy_distance((1 - s) * first + s * second, y, *masks) for s in shares]
    torch.testing.assert_close(losses.blended_energy_distances(first, second, shares, y, *masks), torch.stack(slow))
    near = losses.blended_energy_distances(first.float(), second.float(), shares, y.float(), *masks)
    torch.testing.assert_close(near, torch.stack(slow).float(), atol=1e-5, rtol=1e-4)


def test_padding_is_never_read_and_gets_no_gradient():
    x, y, x_mask, y_mask = sets(1)
    noisy = x.clone()
    noisy[~x_mask] = 1e3
    noisy.requires_grad_()
    value = energy_distance(noisy, y, x_mask, y_mask)
    torch.testing.assert_close(value, energy_distance(x, y, x_mask, y_mask))
    value.sum().backward()
    assert torch.isfinite(noisy.grad).all()
    assert (noisy.grad[~x_mask] == 0).all()
    assert (noisy.grad[x_mask] != 0).any()


def test_gradient_equals_finite_differences():
    x, y, x_mask, y_mask = sets(2, genes=3)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: energy_distance(z, y, x_mask, y_mask), x, eps=1e-6, atol=1e-6)


def test_expectation_is_zero_for_two_samples_of_one_population_at_any_size():
    rng = np.random.default_rng(3)
    for n, m in ((3, 8), (8, 8)):
        x, y = rng.normal(size=(4000, n, 4)), rng.normal(size=(4000, m, 4))
        full = [torch.ones(4000, k, dtype=torch.bool) for k in (n, m)]
        values = energy_distance(torch.as_tensor(x), torch.as_tensor(y), *full)
        standard_error = values.std() / 4000**0.5
        assert abs(values.mean()) < 4 * standard_error


def test_float32_is_precise_far_from_the_origin():
    x, y, x_mask, y_mask = sets(4, n=(32,), m=(32,), size=32)
    exact = energy_distance(x, y, x_mask, y_mask)
    moved = energy_distance((x + 100).float(), (y + 100).float(), x_mask, y_mask)
    np.testing.assert_allclose(moved.numpy(), exact.numpy(), rtol=1e-3)


def test_coincident_cells_give_a_finite_gradient():
    x = torch.zeros(1, 3, 2, requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    energy_distance(x, torch.ones(1, 3, 2), mask, mask).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_no_good_distance(value):
    x, y, mask = torch.randn(2, 5, 3), torch.randn(2, 6, 3), torch.ones(2, 6, dtype=torch.bool)
    x[0, 2, 1] = value
    found = energy_distance(x, y, mask[:, :5], mask)
    assert not found[0].isfinite()
    assert found[1].isfinite()


def test_float32_whatever_autocast_says():
    x, y, x_mask, y_mask = sets(8)
    x, y = x.float() + 5, y.float() + 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = energy_distance(x, y, x_mask, y_mask)
    assert torch.equal(half, energy_distance(x, y, x_mask, y_mask))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_lower_for_the_right_population(name):
    _x, y, x_mask, y_mask = sets(5, n=(6, 6), m=(6, 6))
    near, far = (LOSSES[name].of_cells(y + shift, y, x_mask, y_mask).mean() for shift in (0.1, 3.0))
    assert near < far


def test_the_distance_of_a_mean_is_in_units_of_the_unbiased_spread_of_the_real_cells():
    x, y, _, mask = sets(7, m=(3, 2))
    mean = x[:, 0]
    y[~mask] = 99.0  # padding
    for b, value in enumerate(mean_distance(mean, y, mask)):
        cells = y[b][mask[b]].numpy()
        apart = np.square(mean[b].numpy() - cells.mean(0)).sum()
        np.testing.assert_allclose(value, apart / np.sqrt(2 * cells.var(0, ddof=1).sum()), rtol=1e-5)


def test_the_distance_of_a_mean_from_one_cell_or_equal_cells_is_finite():
    y, mask = torch.ones(2, 3, 4), torch.tensor([[True, False, False], [True, True, True]])
    values = mean_distance(torch.full((2, 4), 1.5), y, mask)
    assert values.isfinite().all()
    assert (values > 0).all()
