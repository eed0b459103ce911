"""What does a linear model predict for rows that it has not seen?"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ptrag_sc.retrieval._selection import alike

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
TINY = 1e-12


class Ridge(NamedTuple):
    """A fitted ridge regression without intercept."""

    coefficients: Float[Tensor, "F O"]
    fitted: Float[Tensor, "N O"]
    leverage: Float[Tensor, "N 1"]  # diagonal of the hat matrix

    def left_out(self, y: Float[Tensor, "N O"]) -> Float[Tensor, "N O"]:
        """Return the prediction of each row from all others."""
        return (self.fitted - self.leverage * y) / (1 - self.leverage).clamp(min=TINY)


def fit_ridge(
    x: Float[Tensor, "N F"],
    y: Float[Tensor, "N O"],
    *,
    penalties: tuple[float, ...] = PENALTIES,
    centred: bool = False,
) -> Ridge:
    r"""Fit a ridge regression whose penalty predicts best what is left out, one row at a time.

    With :math:`h_n` the diagonal of the hat matrix, the prediction of row n from the others is
    :math:`(\hat y_n - h_n y_n) / (1 - h_n)`; the best penalty has the least squared error of these (PRESS, Allen 1974).
    Of the penalties that are :func:`alike` the best one the largest is taken.

    Parameters
    ----------
    x, y
        Features and outcomes; N is at least 1.
    penalties
        To choose from, rising, in units of the mean eigenvalue of :math:`X^\top X`; at inf nothing is learned.
    centred
        Whether both are deviations from their mean over these very rows. The mean was estimated from each row too, so
        its share 1/N counts in the leverage.

    Returns
    -------
    Ridge
        The fit with the chosen penalty.
    """
    x, y = x.double(), y.double()
    values, axes = torch.linalg.eigh(x.T @ x)
    rotated = x @ axes  # (N, F)
    of_mean = 1 / len(x) if centred else 0.0
    fits = []
    for penalty in penalties:
        inverse = 1 / (values.clamp(min=0) + penalty * values.mean().clamp(min=TINY))  # (F,)
        coefficients = inverse[:, None] * (rotated.T @ y)
        leverage = (rotated.square() * inverse).sum(1, keepdim=True) + of_mean
        fits.append(Ridge(axes @ coefficients, rotated @ coefficients, leverage))
    errors = torch.stack([(fit.left_out(y) - y).square().sum(1) for fit in fits])  # (penalties, N)
    return fits[int(alike(-errors).nonzero().max())]
