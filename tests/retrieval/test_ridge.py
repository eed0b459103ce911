"""Is what a ridge leaves out predicted as if it had been fitted without it, and is the penalty the one of the rule?"""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from ptrag_sc.retrieval import alike, fit_ridge


def data(n=25, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)) + 3.0
    return x, x @ rng.normal(size=(4, 2)) + noise * rng.normal(size=(n, 2)) - 5.0


def absolute(penalty, x):
    return penalty * float(np.linalg.eigvalsh(x.T @ x).mean())


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("penalty", [0.1, 3.0])
def test_each_row_is_predicted_as_by_a_fit_without_it(centred, penalty):
    """Rows that were centred are centred anew without it, because their mean held it."""
    x, y = data()
    used_x, used_y = (x - x.mean(0), y - y.mean(0)) if centred else (x, y)
    alpha = absolute(penalty, used_x)
    left_out = fit_ridge(
        torch.as_tensor(used_x), torch.as_tensor(used_y), penalties=(penalty,), centred=centred
    ).left_out(torch.as_tensor(used_y))
    for row in range(len(x)):
        others = np.arange(len(x)) != row
        slow = Ridge(alpha, fit_intercept=centred).fit(used_x[others], used_y[others])
        np.testing.assert_allclose(left_out[row], slow.predict(used_x[row : row + 1])[0], atol=1e-8)


def test_the_penalty_is_the_largest_that_is_alike_the_best():
    kept = set()
    for seed in range(6):
        x, y = (torch.as_tensor(values) for values in data(seed=seed, noise=8.0))
        penalties = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
        fits = [fit_ridge(x, y, penalties=(penalty,)) for penalty in penalties]
        errors = torch.stack([(fit.left_out(y) - y).square().sum(1) for fit in fits])
        largest = int(alike(-errors).nonzero().max())
        torch.testing.assert_close(fit_ridge(x, y, penalties=penalties).coefficients, fits[largest].coefficients)
        kept.add(largest - int(errors.mean(1).argmin()))
    assert max(kept) > 0  # in some of them it is not the best one itself


def test_at_an_infinite_penalty_only_the_mean_of_the_others_is_learned():
    x, y = (torch.as_tensor(values - values.mean(0)) for values in data())
    fit = fit_ridge(x, y, penalties=(np.inf,), centred=True)
    assert not fit.coefficients.any()
    torch.testing.assert_close(fit.left_out(y), -y / (len(y) - 1))
