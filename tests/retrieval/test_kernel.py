"""What does a kernel ridge predict for rows that it has not seen?"""

import numpy as np
import pytest

from ptrag_sc.retrieval import KernelRidge, centred, similarity_kernel
from ptrag_sc.retrieval._kernel import PENALTIES, _least


@pytest.mark.parametrize("n", [5, 30])
def test_left_out_rows_are_those_of_refits(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 4)), rng.normal(size=(n, 3)) + 5
    kernel = similarity_kernel(x, x, 1.0)
    fit = KernelRidge.fit(kernel, y)
    penalty = fit.penalty * np.linalg.eigvalsh(centred(kernel, kernel)).clip(min=0).mean()
    left_out = fit.left_out()
    for i in range(n):
        others = np.arange(n) != i
        part = kernel[np.ix_(others, others)]
        mean = y[others].mean(0)
        dual = np.linalg.solve(centred(part, part) + penalty * np.eye(n - 1), y[others] - mean)
        expected = mean + centred(kernel[i : i + 1, others], part) @ dual
        np.testing.assert_allclose(left_out[i], expected[0], atol=1e-8)


def all_errors(kernel: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the squared error of what is left out for every penalty, from the hat matrix itself."""
    of_deviations = centred(kernel, kernel)
    scale = np.trace(of_deviations) / len(kernel)
    errors = []
    for penalty in PENALTIES:
        hat = of_deviations @ np.linalg.inv(of_deviations + penalty * scale * np.eye(len(y))) + 1 / len(y)
        errors.append(np.square((y - hat @ y) / (1 - hat.diagonal())[:, None]).sum())
    return np.array(errors)


@pytest.mark.parametrize("noise", [0.01, 0.3, 1.0, 3.0, 30.0])
def test_the_penalty_is_the_best_of_all(noise: float) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 3))
    kernel = similarity_kernel(x, x, 0.5)
    y = kernel @ rng.normal(size=(40, 5)) + noise * rng.normal(size=(40, 5))
    fit, errors = KernelRidge.fit(kernel, y), all_errors(kernel, y)
    assert fit.penalty == PENALTIES[errors.argmin()]
    assert {KernelRidge.fit(kernel, y, first=penalty).penalty for penalty in PENALTIES} == {fit.penalty}
    np.testing.assert_allclose(fit.error.sum(), errors.min(), rtol=1e-8)


def test_the_search_stops_at_both_ends() -> None:
    for errors in ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [5, 2, 3, 4, 5], [5, 4, 3, 2, 3], [4, 3, 1, 2, 3]):
        for start in range(5):
            assert _least(lambda i, errors=errors: errors[i], 5, start) == np.argmin(errors)


def test_vectors_that_are_all_alike_answer_with_the_mean() -> None:
    y = np.random.default_rng(0).normal(size=(50, 4))
    kernel = similarity_kernel(np.ones((50, 7)), np.ones((50, 7)), 0.2)
    fit = KernelRidge.fit(kernel, y)
    np.testing.assert_allclose(fit.predict(kernel), np.broadcast_to(y.mean(0), y.shape), atol=1e-6)
