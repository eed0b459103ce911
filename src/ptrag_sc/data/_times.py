"""Which control cells are those at the start, where cells differentiate between start and end?"""

import numpy as np
import pandas as pd

from ptrag_sc._validation import absent, listed, unusable
from ptrag_sc.data._labels import read_labels


def read_start(obs: pd.DataFrame, key: str | None, start: str | None, *, is_control: np.ndarray) -> np.ndarray | None:
    """Return which cells are control cells at the start (n,); None if no time is registered.

    Parameters
    ----------
    obs
        Holds the column of times.
    key, start
        The column, and its label of the start.
    is_control
        Whether each cell has the control label (n,).

    Raises
    ------
    KeyError
        If the column does not exist.
    ValueError
        If only one of ``key`` and ``start`` is given, the label does not occur, perturbed cells are at the start, or
        there are several end times.
    """
    if key is None and start is None:
        return None
    if key is None or start is None:
        given = "time_key" if start is None else "start"
        remedy = "Pass time_key=<column of times> and start=<its label of the start>, or neither."
        raise ValueError(unusable(f"Argument {given}", "setup_anndata", "is given alone", remedy))
    place = f"adata.obs[{key!r}]"
    times = read_labels(obs, key).astype(str)  # (n,)
    at_start = times == start
    if not at_start.any():
        raise ValueError(absent("Start", start, place, np.unique(times), "Pass start=<the label of the start>."))
    perturbed = int((at_start & ~is_control).sum())
    if perturbed:
        problem = f"has {perturbed} perturbed cells at the start {start!r}"
        remedy = "Effects are measured at the end: remove these cells."
        raise ValueError(unusable("The screen", place, problem, remedy))
    ends = np.unique(times[~at_start])
    if len(ends) > 1:
        remedy = f"Keep one, for example adata[adata.obs[{key!r}].isin([{start!r}, {str(ends[-1])!r}])].copy()."
        raise ValueError(unusable("The screen", place, f"has several end times ({listed(ends)})", remedy))
    return at_start
