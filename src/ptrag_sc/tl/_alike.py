"""Do predicted shifts differ between perturbations at all?"""

import logging

import numpy as np

from ptrag_sc.data import Predictor

logger = logging.getLogger(__name__)

ALIKE = 1e-3  # deviations from the mean shift, as a share of its norm, below which there is nothing to compare
FEWEST = 3  # perturbations of which it can be told


def warn_if_alike(model: Predictor, shift: np.ndarray, own: np.ndarray, n_cell_types: int) -> None:
    """Log a warning if all perturbations have the same predicted shift in every cell type, own targets aside.

    Baselines that retrieve nothing predict this by design, so nothing is said of them.

    Parameters
    ----------
    model
        What predicted them.
    shift, own
        Shifts and marks of the own targets (V * Q, G), sorted by cell type.
    n_cell_types
        V.
    """
    n_queries = len(shift) // n_cell_types
    if n_queries < FEWEST or not len(model.candidates_):
        return
    shifts = np.where(own, np.nan, shift).reshape(n_cell_types, n_queries, -1)  # (V, Q, G)
    counted = ~np.isnan(shifts)
    total = np.where(counted, shifts, 0).sum(1, keepdims=True)
    mean = total / counted.sum(1, keepdims=True).clip(min=1)  # (V, 1, G)
    deviation = np.where(counted, shifts - mean, 0)
    if (np.linalg.norm(deviation, axis=2).max(1) <= ALIKE * np.linalg.norm(mean[:, 0], axis=1)).all():
        logger.warning(
            f"the predicted shifts of all {n_queries} perturbations are equal (to {ALIKE:.1%}), because the model "
            "knows nothing that sets them apart: differences between them mean nothing"
        )
