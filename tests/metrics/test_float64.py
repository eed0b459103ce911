"""Do losses and metrics in float32 agree with slow float64 versions where digits are easily lost?"""

import numpy as np
import ot
import pytest
import torch
from scipy.spatial.distance import cdist

from ptrag_sc.metrics import energy_distance, mmd2, mse, pearson_delta, variance_ratio, wasserstein_1, wasserstein_2
from ptrag_sc.nn import LOSSES, mean_distance
from ptrag_sc.nn import energy_distance as energy_loss


def cells(kind, n=40, m=25, g=30):
    """Cells (n, G) and (m, G) float32, whose float32 values are the truth for both versions."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, g)), rng.normal(size=(m, g)) * 1.2 + 0.4
    if kind == "large norms":  # of 1e4, the differences between cells are 1e-4 of it
        x, y = x + 1e4 / np.sqrt(g), y + 1e4 / np.sqrt(g)
    elif kind == "large scale":
        x, y = x * 1e4, y * 1e4
    elif kind == "constant genes":
        x[:, 5:], y[:, 5:] = 3.0, 3.0
    elif kind == "identical cells":
        x, y = np.repeat(x[:1], n, 0), np.repeat(y[:1], m, 0)
    elif kind == "some identical":
        x[1:20], y[: m // 2] = x[0], x[0]
    elif kind == "equal means":
        y = y - y.mean(0) + x.mean(0)
    return x.astype(np.float32), y.astype(np.float32)


KINDS = ("plain", "large norms", "large scale", "constant genes", "identical cells", "some identical", "equal means")
every_kind = pytest.mark.parametrize("kind", KINDS)


def inner(x):
    return cdist(x, x).sum() / (len(x) * (len(x) - 1))


def slow_energy(x, y):
    return 2 * cdist(x, y).mean() - inner(x) - inner(y)


def agree(found, expected, x, y):
    """To 1e-4, or to 1e-5 of the distances between cells, of which an energy distance is a difference."""
    scale = cdist(x, y).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


@every_kind
@pytest.mark.parametrize(("n", "m"), [(40, 25), (2, 33), (25, 2)])
def test_energy_distance(kind, n, m):
    x, y = cells(kind, n, m)
    exact = slow_energy(x.astype(np.float64), y.astype(np.float64))
    agree(energy_distance(x, y), exact, x, y)


@every_kind
@pytest.mark.parametrize("name", LOSSES)
def test_losses(kind, name):
    """Each loss of float32 cells, with padding, is that of the same cells in float64, and so is its gradient."""
    x, y = cells(kind)
    masks = torch.arange(50) < torch.tensor([[40], [25]])
    padded = np.zeros((2, 1, 50, x.shape[1]))
    padded[0, 0, :40], padded[1, 0, :25] = x, y
    values, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        first, second = (torch.as_tensor(part, dtype=dtype) for part in padded)
        first.requires_grad_()
        value = LOSSES[name].of_cells(first, second, masks[:1], masks[1:])
        value.sum().backward()
        values.append(float(value.detach().sum()))
        gradients.append(first.grad.double().numpy())
    assert np.isfinite(values).all()
    # Distances come from products of norms, so that cells that are equal are apart by the root of the rounding error.
    np.testing.assert_allclose(*values, rtol=1e-4, atol=3e-4 * cdist(x, y).mean())
    largest = np.abs(gradients[1]).max()
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-3, atol=max(1e-3 * largest, 1e-6))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (1, 1)])
def test_losses_of_one_cell_are_finite(name, n, m):
    x, y = (torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    x.requires_grad_()
    value = LOSSES[name].of_cells(x, y, torch.arange(6)[None] < n, torch.arange(6)[None] < m)
    value.sum().backward()
    assert value.isfinite().all()
    assert x.grad.isfinite().all()


def test_the_loss_of_one_cell_has_no_inner_distance():
    x, y = cells("plain", 1, 25)
    exact = 2 * cdist(x, y).mean() - inner(y)
    full = [torch.ones(1, n, dtype=torch.bool) for n in (1, 25)]
    np.testing.assert_allclose(energy_loss(torch.tensor(x)[None], torch.tensor(y)[None], *full), exact, rtol=1e-4)


@every_kind
def test_the_distance_of_a_mean(kind):
    x, y = cells(kind)
    mean, mask = torch.tensor(x[:1]), torch.ones(1, len(y), dtype=torch.bool)
    single = mean_distance(mean, torch.tensor(y)[None], mask)
    double = mean_distance(mean.double(), torch.tensor(y).double()[None], mask)
    assert single.isfinite().all()
    np.testing.assert_allclose(single, double, rtol=1e-3)


@every_kind
def test_mmd2(kind):
    x, y = cells(kind)
    np.testing.assert_allclose(mmd2(x, y), mmd2(x.astype(np.float64), y.astype(np.float64)), rtol=1e-4, atol=1e-5)


@every_kind
def test_variance_ratio(kind):
    x, y = (part.astype(np.float64) for part in cells(kind))
    expected = [part.var(0, ddof=1).sum() for part in (x, y)]
    if expected[0] > 1e-12:
        found = variance_ratio(x.astype(np.float32), y.astype(np.float32))
        np.testing.assert_allclose(found, expected[1] / expected[0], rtol=1e-4, atol=1e-9)


@every_kind
def test_transport(kind):
    x, y = cells(kind)
    for metric, power in ((wasserstein_1, 1), (wasserstein_2, 2)):
        cost = cdist(x.astype(np.float64), y.astype(np.float64)) ** power
        exact = ot.emd2([], [], cost) ** (1 / power)
        np.testing.assert_allclose(metric(x, y), exact, rtol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_means(offset):
    rng = np.random.default_rng(1)
    control = (rng.normal(size=200) + offset).astype(np.float32)
    real, predicted = ((control + rng.normal(size=200)).astype(np.float32) for _ in range(2))
    exact = [part.astype(np.float64) for part in (real, predicted, control)]
    shifts = exact[0] - exact[2], exact[1] - exact[2]
    np.testing.assert_allclose(pearson_delta(real, predicted, control), np.corrcoef(*shifts)[0, 1], rtol=1e-4)
    np.testing.assert_allclose(mse(real, predicted), np.square(exact[0] - exact[1]).mean(), rtol=1e-4)
