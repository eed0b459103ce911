"""What do the labels of a screen say about its design, before any expression is read?"""

from typing import NamedTuple

import numpy as np
from scipy.stats.contingency import association, crosstab

from ptrag_sc._validation import listed
from ptrag_sc.data._conditions import ConditionIndex

LEVELS = ("ok", "note", "warning")
FEW_CELLS = 20  # the mean of fewer is mostly noise


class Finding(NamedTuple):
    """One line of the report."""

    check: str
    level: str  # one of LEVELS
    value: float
    message: str


def finding(check: str, value: float, message: str, *, note: float, warning: float) -> Finding:
    """Return a finding whose level follows from how far a value exceeds two bounds."""
    level = LEVELS[int(value > note) + int(value > warning)]
    return Finding(check, level, float(value), message)


def cramers_v(first: np.ndarray, second: np.ndarray) -> float:
    """Return the association of two labels (n,) between 0 and 1, corrected for chance (Bergsma 2013).

    Without the correction many small groups look associated.
    """
    table = crosstab(first, second).count
    n, (r, k) = table.sum(), table.shape
    if min(r, k) < 2 or n < 2:
        return 0.0
    phi = association(table, method="cramer") ** 2 * (min(r, k) - 1)
    corrected = max(0.0, phi - (r - 1) * (k - 1) / (n - 1))
    r, k = r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)
    return float(np.sqrt(corrected / (min(r, k) - 1))) if min(r, k) > 1 else 0.0


def design_findings(index: ConditionIndex, *, set_size: int) -> list[Finding]:
    """Return what the labels alone tell: controls, batches, and cells per condition.

    Parameters
    ----------
    index
        The screen.
    set_size
        Cells in a set, S.
    """
    perturbed = ~index.is_control
    with_controls = np.isin(index.batch, index.batch[index.is_control])
    bare = float((~with_controls[perturbed]).mean()) if perturbed.any() else 0.0
    controls = np.bincount(index.cell_type[index.is_control], minlength=len(index.cell_types))
    needed = max(set_size, FEW_CELLS)
    few = index.cell_types[controls < needed]
    sizes = index.conditions["n_cells"].to_numpy()
    small = float((sizes < FEW_CELLS).mean()) if len(sizes) else 0.0
    confounded = 0.0
    for t in range(len(index.cell_types)):
        rows = perturbed & (index.cell_type == t)
        confounded = max(confounded, cramers_v(index.batch[rows], index.perturbation[rows]))
    lowest = int(controls.min())
    message = f"{listed(few)} have fewer than {needed} control cells" if len(few) else "enough in every cell type"
    return [
        Finding("control cells", "warning" if lowest < FEW_CELLS else "note" if len(few) else "ok", lowest, message),
        finding(
            "batches without controls",
            bare,
            f"{bare:.0%} of the perturbed cells are in a batch without control cells",
            note=0.0,
            warning=0.1,
        ),
        finding(
            "batch and perturbation",
            confounded,
            f"association of batch and perturbation {confounded:.2f} (Cramér's V; 1: confounded)",
            note=0.2,
            warning=0.5,
        ),
        finding(
            "cells per condition",
            small,
            f"{small:.0%} of the conditions have fewer than {FEW_CELLS} cells (median {np.median(sizes):.0f})"
            if len(sizes)
            else "no perturbed cells",
            note=0.1,
            warning=0.5,
        ),
    ]


def design_warnings(index: ConditionIndex) -> str:
    """Return what is badly off in a design, in one line; nothing where nothing is."""
    return "; ".join(f.message for f in design_findings(index, set_size=1) if f.level == "warning")
