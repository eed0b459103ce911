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
    table = crosstab(first, second).count  # (r, k)
    n = table.sum()
    r, k = table.shape
    if min(r, k) < 2 or n < 2:
        return 0.0
    phi = association(table, method="cramer") ** 2 * (min(r, k) - 1)  # chi squared over n
    # Independent labels have phi = (r - 1) (k - 1) / (n - 1) on average; the levels shrink by the same argument.
    corrected = max(0.0, phi - (r - 1) * (k - 1) / (n - 1))
    levels = min(r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1))
    if levels <= 1:  # as many labels as cells: no association can be seen
        return 0.0
    return float(np.sqrt(corrected / (levels - 1)))


def design_findings(index: ConditionIndex, *, set_size: int) -> list[Finding]:
    """Return findings from the labels alone: controls, batches, and cells per condition.

    Parameters
    ----------
    index
        The screen.
    set_size
        Cells in a set, S.
    """
    perturbed = index.perturbation != index.control  # (n,)
    with_controls = np.isin(index.batch, index.batch[index.is_control])  # (n,) whether the cell's batch has controls
    bare = 0.0
    if perturbed.any():
        bare = float((~with_controls[perturbed]).mean())
    # Within each cell type, because perturbations may well differ between cell types measured apart.
    confounded = 0.0
    for t in range(len(index.cell_types)):
        rows = perturbed & (index.cell_type == t)
        confounded = max(confounded, cramers_v(index.batch[rows], index.perturbation[rows]))
    return [
        _control_cells(index, max(set_size, FEW_CELLS)),
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
        _cells_per_condition(index.conditions["n_cells"].to_numpy()),
    ]


def _control_cells(index: ConditionIndex, needed: int) -> Finding:
    n_types = len(index.cell_types)
    kinds = index.is_control, index.is_source  # the same cells, unless time is registered
    n = np.min([np.bincount(index.cell_type[kind], minlength=n_types) for kind in kinds], axis=0)  # (T,)
    few = index.cell_types[n < needed]
    lowest = int(n.min())
    if not len(few):
        return Finding("control cells", "ok", lowest, "enough in every cell type")
    # Below `needed` a set cannot be filled, which is no harm; below FEW_CELLS their mean is noise in every shift.
    level = "note"
    if lowest < FEW_CELLS:
        level = "warning"
    return Finding("control cells", level, lowest, f"{listed(few)} have fewer than {needed} control cells")


def _cells_per_condition(sizes: np.ndarray) -> Finding:
    small = 0.0
    message = "no perturbed cells"
    if len(sizes):
        small = float((sizes < FEW_CELLS).mean())
        message = f"{small:.0%} of the conditions have fewer than {FEW_CELLS} cells (median {np.median(sizes):.0f})"
    return finding("cells per condition", small, message, note=0.1, warning=0.5)


def design_warnings(index: ConditionIndex) -> str:
    """Return the warnings about a design in one line; empty if there are none."""
    # With sets of one cell the message asks for no more than FEW_CELLS.
    return "; ".join(f.message for f in design_findings(index, set_size=1) if f.level == "warning")
