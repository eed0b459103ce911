"""What does a linear model predict for rows that it has not seen?"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
TINY = 1e-12


class Ridge(NamedTuple):
    """A fitted ridge regression without intercept."""

    coefficients: Float[Tensor, "F O"]
    fitted: Float[Tensor, "N O"]
    leverage: Float[Tensor, "N 1"]  # diagonal of the hat matrix

    def left_out(self, y: Float[Tensor, "N O"], more: float = 0.0) -> Float[Tensor, "N O"]:
        """Return the prediction of each row from all others; ``more`` is the leverage of an intercept beside it."""
        leverage = self.leverage + more
        return (self.fitted - leverage * y) / (1 - leverage).clamp(min=TINY)


def fit_ridge(x: Float[Tensor, "N F"], y: Float[Tensor, "N O"]) -> Ridge:
    r"""Fit a ridge regression whose penalty predicts best what is left out, one row at a time.

    With :math:`h_n` the diagonal of the hat matrix, the prediction of row n from the others is
    :math:`(\hat y_n - h_n y_n) / (1 - h_n)`; the penalty is the one of ``PENALTIES`` (times the mean eigenvalue of
    :math:`X^\top X`) of least squared error so left out (PRESS, Allen 1974).

    Parameters
    ----------
    x, y
        Features and outcomes; N is at least 1.
    """
    x, y = x.double(), y.double()
    values, axes = torch.linalg.eigh(x.T @ x)
    rotated, best = x @ axes, None
    for penalty in PENALTIES:
        inverse = 1 / (values.clamp(min=0) + penalty * values.mean().clamp(min=TINY))
        coefficients = inverse[:, None] * (rotated.T @ y)
        leverage = (rotated.square() * inverse).sum(1, keepdim=True)
        ridge = Ridge(axes @ coefficients, rotated @ coefficients, leverage)
        press = float((ridge.left_out(y) - y).square().sum())
        if best is None or press < best[0]:
            best = press, ridge
    return best[1]
