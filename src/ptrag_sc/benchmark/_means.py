"""How are the mean cells of two sides compared, given that each is measured from controls?"""

from collections.abc import Iterator, Mapping

import numpy as np
from scipy.sparse import issparse

from ptrag_sc.benchmark._pairing import Cells, Pair
from ptrag_sc.metrics import Metric, Reference

Sides = tuple[np.ndarray, np.ndarray]  # means of real and of predicted cells, (P, G) each
Scores = Iterator[tuple[str, np.ndarray]]  # names of metrics and their values (P,)


def comparable_mean(cells: np.ndarray, batches: np.ndarray | None, cell_type: str, reference: Reference) -> np.ndarray:
    """Return the mean (G,) that cells of one condition would have at the control composition of the cell type.

    Parameters
    ----------
    cells
        Cells of the condition (n, G), or their mean (1, G).
    batches
        Their batches (n,), or None without batches.
    cell_type
        Their cell type.
    reference
        Control means.
    """
    own = reference.matched_control(cell_type, batches)  # (G,)
    return cells.mean(0, dtype=np.float64) - own + reference.control[reference.cell_type_row(cell_type)]


def read_mean(side: Cells, rows: np.ndarray) -> np.ndarray:
    """Return the mean (1, G) of some cells; sparse cells are not made dense."""
    reader = side.reader
    if not issparse(reader.matrix):
        return reader.rows(rows).mean(0, dtype=np.float64, keepdims=True)
    return reader.in_order(np.asarray(reader.matrix[rows].mean(0, dtype=np.float64)).reshape(1, -1))


def both_ways(panel: list[Pair], means: Sides, real: Cells, predicted: Cells, reference: Reference) -> list[Sides]:
    """Return means of which each side is measured from controls of its own: one pair of sides, or one per assignment.

    Parameters
    ----------
    panel
        Conditions of one cell type (P).
    means
        Their means, both sides measured from all controls (:func:`comparable_mean`).
    real, predicted
        Cells.
    reference
        With halves of the controls each side is measured from one of them, both ways round.
    """
    if reference.halves is None:
        return [means]
    found = []
    for halves in ((0, 1), (1, 0)):
        sides = means[0].copy(), means[1].copy()
        for i, pair in enumerate(panel):
            rows = pair.real, pair.predicted
            for side, cells, of_pair, half in zip(sides, (real, predicted), rows, halves, strict=True):
                batches = cells.batches(of_pair)
                side[i] += reference.matched_control(pair.cell_type, batches)
                side[i] -= reference.matched_control(pair.cell_type, batches, half=half)
        found.append(sides)
    return found


def values_of_means(
    means: Sides, from_controls: list[Sides], further: dict[str, np.ndarray], rows: Mapping[str, Metric]
) -> Scores:
    """Yield name and values (P,) of the metrics that take means.

    Parameters
    ----------
    means
        Both sides measured from the same controls, whose noise cancels in differences of the sides.
    from_controls
        For metrics that take the control: their values are averaged over these.
    further
        Other arguments of metrics by name, (G,) or (P, G).
    rows
        The metrics.
    """
    for name, row in rows.items():
        if row.level not in ("panel", "means"):
            continue
        pairs = from_controls if "control" in row.reference else [means]
        yield name, np.mean([_values(row, sides, further) for sides in pairs], axis=0)


def _values(row: Metric, sides: Sides, further: dict[str, np.ndarray]) -> np.ndarray:
    """Return the values (P,) of one metric."""
    real, predicted = sides
    if row.level == "panel":
        return np.asarray(row.function(real, predicted, *(further[key] for key in row.reference)))
    # The weights (P, G) differ between conditions; everything else (G,) is that of the cell type.
    each = [np.broadcast_to(further[key], real.shape) for key in row.reference]
    return np.array([row.function(*values) for values in zip(real, predicted, *each, strict=True)])
