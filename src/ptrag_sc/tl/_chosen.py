"""Which cells does a caller mean by a mask, by names, or by row numbers?"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ptrag_sc._validation import unknown, unusable


def chosen_rows(names: pd.Index, cells: object, place: str) -> np.ndarray:
    """Return whether each cell is meant (n,).

    Parameters
    ----------
    names
        Names of all cells (n,).
    cells
        None: all. A mask (n,), a Series of truth values with the names of the cells, one name or several, or row
        numbers.
    place
        Function that was called, for messages.

    Raises
    ------
    KeyError
        If a name or row does not occur.
    TypeError
        If it is something else.
    ValueError
        If a mask has another length, or no cell is meant.

    Examples
    --------
    >>> chosen_rows(pd.Index(["a", "b", "c"]), ["c", "a"], "tl.predict")
    array([ True, False,  True])
    """
    mask = np.ones(len(names), dtype=bool)
    if cells is None:
        return mask
    if isinstance(cells, str) or not isinstance(cells, Iterable):
        cells = [cells]
    if isinstance(cells, pd.Series) and pd.api.types.is_bool_dtype(cells.dtype) and not cells.index.equals(names):
        if len(cells) != len(names) or not cells.index.is_unique or not cells.index.isin(names).all():
            problem = "is a Series of truth values whose index holds other names than adata.obs_names"
            raise ValueError(unusable("cells", place, problem, "Pass a column of adata.obs, or names of cells."))
        cells = cells.reindex(names)
    values = pd.array(list(cells)) if not isinstance(cells, np.ndarray | pd.Series | pd.Index) else cells
    if pd.api.types.is_bool_dtype(values.dtype):
        flags = pd.array(values, dtype="boolean").to_numpy(dtype=bool, na_value=False)  # (n,)
        if flags.shape != mask.shape:
            problem = f"is a mask of shape {flags.shape}, for {len(names)} cells"
            raise ValueError(unusable("cells", place, problem, "Pass one truth value for each cell of adata."))
        mask = flags
    else:
        mask[:] = False
        mask[_positions(names, np.asarray(values), place)] = True
    if not mask.any():
        raise ValueError(unusable("cells", place, "means no cell", "Leave cells=None to predict all."))
    return mask


def _positions(names: pd.Index, values: np.ndarray, place: str) -> np.ndarray:
    """Return the rows (m,) of names, or row numbers as they are."""
    remedy = "Pass names of adata.obs_names, row numbers, or a mask."
    if values.ndim != 1:
        raise ValueError(unusable("cells", place, f"has {values.ndim} dimensions", remedy))
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    if np.issubdtype(values.dtype, np.integer):
        if values.min() < 0 or values.max() >= len(names):
            wrong = values[(values < 0) | (values >= len(names))][0]
            raise KeyError(unusable(f"Row {wrong}", "cells", f"is not between 0 and {len(names) - 1}", remedy))
        return values.astype(np.int64)
    if not all(isinstance(value, str) for value in values):
        kinds = sorted({type(value).__name__ for value in values})
        raise TypeError(unusable("cells", place, f"holds {', '.join(kinds)}", remedy))
    rows = names.get_indexer(values.astype(object))
    if (rows < 0).any():
        lacking = list(dict.fromkeys(values[rows < 0].tolist()))
        raise KeyError(unknown("Cell", lacking, "adata.obs_names", names, remedy))
    return rows
