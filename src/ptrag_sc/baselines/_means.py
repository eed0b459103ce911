"""What is the mean shift of each group of conditions?"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from ptrag_sc.data import components


def mean_by(labels: pd.Series, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct labels (L,), sorted, and the mean of their rows (L, G)."""
    names, code = np.unique(labels.to_numpy(dtype=str), return_inverse=True)  # (L,), (C,)
    sums = np.zeros((len(names), values.shape[1]))  # (L, G)
    np.add.at(sums, code, values)  # unlike sums[code] += values, this adds every row of a repeated label
    counts = np.bincount(code, minlength=len(names))  # (L,)
    return names, sums / counts[:, None]


def mean_by_cell_type(conditions: pd.DataFrame, shifts: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the mean shift (G,) of each cell type, and of all conditions for cell types without training data."""
    types, means = mean_by(conditions["cell_type"], shifts)  # (T,), (T, G)
    return dict(zip(types, means, strict=True)), shifts.mean(0)


def deviations(conditions: pd.DataFrame, shifts: np.ndarray) -> np.ndarray:
    """Return shifts minus the mean shift of their cell type (C, G): what is specific to the perturbation."""
    of_type, _ = mean_by_cell_type(conditions, shifts)
    means = np.stack([of_type[t] for t in conditions["cell_type"]])  # (C, G)
    return shifts - means


def own_or_sum(label: str, sep: str | None, find: Callable[[str], np.ndarray | None]) -> np.ndarray | None:
    """Return what is found for a label, else the sum of what is found for its genes; None if one gene is missing."""
    own = find(label)
    if own is not None:
        return own
    found = [find(gene) for gene in components(label, sep)]
    known = [part for part in found if part is not None]
    if len(known) < len(found):  # a sum over some of the genes would be another perturbation's shift
        return None
    return np.sum(known, axis=0)
