"""Are leading directions those of a full decomposition?"""

import numpy as np
import pytest

from ptrag_sc.data import leading_directions


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (1, 5), (40, 40)])
@pytest.mark.parametrize("n", [1, 4, 30])
def test_leading_directions_equal_the_svd(shape, n):
    values = np.random.default_rng(0).normal(size=shape)
    axes, singular = leading_directions(values, n)
    _, s, v = np.linalg.svd(values, full_matrices=False)
    np.testing.assert_allclose(singular, s[:n], rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(axes * v[:n], axis=1)), 1, rtol=1e-9)
    np.testing.assert_allclose(axes @ axes.T, np.eye(len(axes)), atol=1e-9)


def test_directions_without_variation_are_left_out():
    values = np.outer([1.0, 2.0, -1.0], [1.0, 1.0, 0.0, 2.0])
    axes, singular = leading_directions(values, 3)
    assert axes.shape == (1, 4)
    np.testing.assert_allclose(singular, [6.0], rtol=1e-9)
    assert leading_directions(0 * values, 3)[0].shape == (0, 4)


def test_signs_are_fixed_and_no_rows_have_no_directions():
    values = np.random.default_rng(0).normal(size=(6, 9))
    axes, _ = leading_directions(values, 4)
    np.testing.assert_allclose(leading_directions(-values[::-1], 4)[0], axes, atol=1e-9)
    assert (axes[np.arange(4), np.abs(axes).argmax(1)] > 0).all()
    assert leading_directions(np.zeros((0, 3)), 2)[0].shape == (0, 3)
