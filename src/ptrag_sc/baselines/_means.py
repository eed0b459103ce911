"""What is the mean shift of each group of conditions?"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from ptrag_sc.data import components


def mean_by(labels: pd.Series, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct labels (L,), sorted, and the mean of their rows (L, G)."""
    names, code = np.unique(labels.to_numpy(dtype=str), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, code, values)
    return names, sums / np.bincount(code, minlength=len(names))[:, None]


def mean_by_cell_type(conditions: pd.DataFrame, shifts: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the mean shift (G,) of each cell type, and of all conditions for cell types without training data."""
    return dict(zip(*mean_by(conditions["cell_type"], shifts), strict=True)), shifts.mean(0)


def deviations(conditions: pd.DataFrame, shifts: np.ndarray) -> np.ndarray:
    """Return shifts less the mean shift of their cell type (C, G): what is specific to the perturbation."""
    of_type, _ = mean_by_cell_type(conditions, shifts)
    return shifts - np.stack([of_type[t] for t in conditions["cell_type"]])


def own_or_sum(label: str, sep: str, find: Callable[[str], np.ndarray | None]) -> np.ndarray | None:
    """Return what is found for a label, else the sum of what is found for its genes; None if one of them lacks."""
    found = find(label)
    if found is None:
        parts = [find(gene) for gene in components(label, sep)]
        found = None if any(part is None for part in parts) else np.sum(parts, axis=0)
    return found
