"""How well is the distribution of cells after a perturbation predicted?"""

import numpy as np
import torch

from ptrag_sc import nn
from ptrag_sc._validation import unusable


def energy_distance(real: np.ndarray, predicted: np.ndarray) -> float:
    r"""Unbiased squared energy distance of two samples of cells (Székely and Rizzo 2013).

    :math:`2E|x-y| - E|x-x'| - E|y-y'|`, Euclidean norms, U-statistics: the expectation is 0 for two samples of one
    population, and single values can be slightly negative (identical cells: about -.31 at 64 cells x 50 PCs).

    Parameters
    ----------
    real, predicted
        Cells x features, usually principal components (n, d) and (m, d).

    Returns
    -------
    The distance, in units of the features; 0 in expectation at the truth.

    Raises
    ------
    ValueError
        If either has fewer than two cells.

    Examples
    --------
    >>> import numpy as np
    >>> energy_distance(np.array([[0.0], [2.0]]), np.array([[0.0], [2.0]]))
    -2.0
    """
    for name, cells in (("real", real), ("predicted", predicted)):
        if len(cells) < 2:
            problem = f"hold {len(cells)} cells, a U-statistic needs two"
            raise ValueError(unusable("The cells", name, problem, "Leave such conditions out."))
    x, y = (torch.as_tensor(np.asarray(a), dtype=torch.float64)[None] for a in (predicted, real))
    masks = (torch.ones(a.shape[:2], dtype=torch.bool) for a in (x, y))
    return float(nn.energy_distance(x, y, *masks))
