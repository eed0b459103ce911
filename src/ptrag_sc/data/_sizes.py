"""How many cells are asked for, of each perturbation in each cell type?"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from ptrag_sc._validation import absent, check_whole, listed, unknown, unusable
from ptrag_sc.data._labels import canonical

NCells: TypeAlias = int | Mapping[str, int] | pd.Series | pd.DataFrame | None

ALL = -1  # each control cell once
COLUMNS = ("perturbation", "n_cells")


def read_sizes(n_cells: NCells, labels: Sequence[str], cell_types: Sequence[str], *, sep: str | None) -> np.ndarray:
    """Return the number of cells of each perturbation in each cell type (Q, V): ``ALL``, or 0 for none.

    Parameters
    ----------
    n_cells
        One number for all, None for each control cell once, a number for each perturbation, or a table with the columns
        ``perturbation``, ``n_cells`` and, if only some pairs are wanted, ``cell_type``.
    labels
        Canonical names of the perturbations (Q,).
    cell_types
        Names of the cell types (V,).
    sep
        What joins the genes of a combination, so that ``B+A`` is found as ``A+B``.

    Raises
    ------
    KeyError
        If a column is missing.
    TypeError
        If a number is no whole number.
    ValueError
        If a number is below 1, a name was not asked for or is there twice, or a perturbation has no number.

    Examples
    --------
    >>> read_sizes({"A": 3, "C+B": 5}, ["A", "B+C"], ["K562", "RPE1"], sep="+").tolist()
    [[3, 3], [5, 5]]
    """
    sizes = np.zeros((len(labels), len(cell_types)), dtype=np.int64)
    if n_cells is None:
        return np.full_like(sizes, ALL)
    if not isinstance(n_cells, Mapping | pd.Series | pd.DataFrame):
        check_whole("n_cells", n_cells, "the request", minimum=1)
        return np.full_like(sizes, int(n_cells))
    row = {label: q for q, label in enumerate(labels)}
    column = {name: [v] for v, name in enumerate(cell_types)}
    for name, cell_type, n in _requests(n_cells):
        check_whole("n_cells", n, f"the request for {name!r}", minimum=1)
        label = canonical(name, sep)
        if label not in row:
            remedy = "Name it in perturbations=, too."
            raise ValueError(unknown("Perturbation", [name], "the request that n_cells belongs to", labels, remedy))
        if cell_type is not None and cell_type not in column:
            remedy = "Correct it, or leave cell_types=None."
            raise ValueError(absent("Cell type", cell_type, "the request that n_cells belongs to", column, remedy))
        at = list(range(len(cell_types))) if cell_type is None else column[cell_type]
        if sizes[row[label], at].any():
            problem = "stands in n_cells twice"
            raise ValueError(unusable(f"Perturbation {name!r}", "the request", problem, "Give one number for it."))
        sizes[row[label], at] = int(n)
    if lacking := [labels[q] for q in np.flatnonzero((sizes == 0).all(axis=1)).tolist()]:
        remedy = "Add them, or leave them out of perturbations=."
        raise ValueError(unusable("n_cells", "the request", f"has no number for {listed(lacking)}", remedy))
    return sizes


def named_cell_types(n_cells: NCells) -> list[str] | None:
    """Return the cell types that a table of requests names; None if it names none."""
    if isinstance(n_cells, pd.DataFrame) and "cell_type" in n_cells:
        return list(dict.fromkeys(n_cells["cell_type"].astype(str)))
    return None


def storable_sizes(n_cells: NCells) -> int | pd.DataFrame | None:
    """Return what h5ad and zarr can hold of the argument: a number, or a table."""
    if not isinstance(n_cells, Mapping | pd.Series | pd.DataFrame):
        return n_cells
    rows = pd.DataFrame(_requests(n_cells), columns=["perturbation", "cell_type", "n_cells"])
    if rows["cell_type"].isna().all():
        return rows.drop(columns="cell_type")
    return rows


def _requests(n_cells: Mapping[str, int] | pd.Series | pd.DataFrame) -> list[tuple[str, str | None, Any]]:
    """Return perturbation, cell type (None: all) and number, row by row."""
    if not isinstance(n_cells, pd.DataFrame):
        return [(str(name), None, n) for name, n in n_cells.items()]
    if lacking := [name for name in COLUMNS if name not in n_cells]:
        remedy = "Give the columns perturbation and n_cells, and cell_type if only some pairs are wanted."
        raise KeyError(absent("Column", lacking[0], "the table n_cells", n_cells.columns, remedy))
    names = n_cells["perturbation"].astype(str)
    numbers = n_cells["n_cells"].tolist()
    if "cell_type" not in n_cells:
        return [(name, None, n) for name, n in zip(names, numbers, strict=True)]
    return list(zip(names, n_cells["cell_type"].astype(str), numbers, strict=True))
