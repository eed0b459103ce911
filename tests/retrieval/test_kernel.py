"""What does a kernel ridge predict for rows that it has not seen?"""

import numpy as np
import pytest

from ptrag_sc.retrieval import KernelRidge, centred, similarity_kernel


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
