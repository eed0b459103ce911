"""Which cells does a caller mean by a mask, by names, or by row numbers?"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ptrag_sc._validation import unknown, unusable

REMEDY = "Pass names of adata.obs_names, row numbers, or a mask."


def chosen_rows(names: pd.Index, cells: Any, place: str) -> np.ndarray:
    """Return whether each cell is meant (n,).

    Parameters
    ----------
    names
        Names of all cells (n,).
    cells
        None: all. A mask (n,), a Series of truth values with the names of the cells in any order, one name or several,
        or row numbers. A missing truth value counts as False.
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
    if np.ndim(cells) > 1:  # of an array, a table or nested lists
        raise ValueError(unusable("cells", place, f"has {np.ndim(cells)} dimensions", REMEDY))
    if isinstance(cells, str) or not isinstance(cells, Iterable):
        cells = [cells]
    values = pd.array(list(cells))  # (m,), of the type that all values have
    if pd.api.types.is_bool_dtype(values.dtype):
        flags = pd.Series(values.astype("boolean"))
        if isinstance(cells, pd.Series) and not cells.index.equals(names):
            flags = _aligned(flags.set_axis(cells.index), names, place)
        if len(flags) != len(names):
            problem = f"is a mask of {len(flags)} values, for {len(names)} cells"
            raise ValueError(unusable("cells", place, problem, "Pass one truth value for each cell of adata."))
        mask = flags.to_numpy(dtype=bool, na_value=False)
    else:
        mask[:] = False
        mask[_positions(names, values, place)] = True
    if not mask.any():
        raise ValueError(unusable("cells", place, "means no cell", "Leave cells=None to predict all."))
    return mask


def _aligned(flags: pd.Series, names: pd.Index, place: str) -> pd.Series:
    """Return truth values in the order of the cells."""
    if len(flags) != len(names) or not flags.index.is_unique or not flags.index.isin(names).all():
        problem = "is a Series of truth values whose index holds other names than adata.obs_names"
        raise ValueError(unusable("cells", place, problem, "Pass a column of adata.obs, or names of cells."))
    return flags.reindex(names)


def _positions(names: pd.Index, values: pd.api.extensions.ExtensionArray, place: str) -> np.ndarray:
    """Return the rows (m,) of names, or row numbers as they are."""
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    if pd.api.types.is_integer_dtype(values.dtype) and not values.isna().any():
        rows = values.to_numpy(dtype=np.int64)
        wrong = rows[(rows < 0) | (rows >= len(names))]
        if len(wrong):
            raise KeyError(unusable(f"Row {wrong[0]}", "cells", f"is not between 0 and {len(names) - 1}", REMEDY))
        return rows
    found = list(values)
    if not all(isinstance(value, str) for value in found):
        kinds = sorted({type(value).__name__ for value in found if not isinstance(value, str)})
        raise TypeError(unusable("cells", place, f"holds {', '.join(kinds)}", REMEDY))
    rows = names.get_indexer(found)
    if (rows < 0).any():
        lacking = list(dict.fromkeys(name for name, row in zip(found, rows, strict=True) if row < 0))
        raise KeyError(unknown("Cell", lacking, "adata.obs_names", names, REMEDY))
    return rows
