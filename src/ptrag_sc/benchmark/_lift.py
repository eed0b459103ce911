"""Does selection find the relevant candidates, if it is known which ones are?"""

from typing import Literal

import numpy as np
import pandas as pd

from ptrag_sc._validation import absent, unusable
from ptrag_sc.retrieval import neighbours_only

N_BOOTSTRAP = 1000
KEYS = ["perturbation", "cell_type", "candidate"]


def selection_lift(
    retrieval: pd.DataFrame,
    relevant: pd.DataFrame,
    *,
    by: Literal["selected", "weight"] = "selected",
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Lift of the relevant candidates by stage 2 over their share among what stage 1 retrieved.

    With the rate :math:`g_{qk}` at which candidate k of query q is selected (or its weight) and :math:`r_{qk}` equal to
    1 if the candidate is relevant, lift = (sum of g r / sum of g) / (mean of r), over all queries of a cell type. A
    lift of 1 means that selection is not better than chance; the largest lift, the inverse of the share of relevant
    candidates, means that only relevant candidates are selected.

    Parameters
    ----------
    retrieval
        Retrieval table of :func:`ptrag_sc.tl.retrieval`.
    relevant
        True pairs: columns ``perturbation``, ``cell_type``, ``candidate``; ``adata.uns["truth"]["relevant"]`` of
        :func:`ptrag_sc.datasets.simulated`.
    by
        Column of the table for how much a candidate is used.
    confidence
        Confidence of the interval, a percentile bootstrap over queries.
    seed
        Seed of the bootstrap.

    Returns
    -------
    DataFrame
        One row for each cell type and one for ``"all"``: ``cell_type``, ``n_queries``, ``share_relevant`` (among the
        candidates), ``share_selected`` (mean of ``by``), ``lift``, ``low``, ``high``. The lift is NaN if nothing is
        selected or relevant.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If the table is empty.

    Examples
    --------
    >>> table = pd.DataFrame(
    ...     {"perturbation": "A", "cell_type": "t", "candidate": list("BCDE"), "selected": [1, 1, 0, 0]}
    ... )
    >>> true = pd.DataFrame({"perturbation": ["A"], "cell_type": ["t"], "candidate": ["B"]})
    >>> float(selection_lift(table, true)["lift"].iloc[0])
    2.0
    """
    for name, frame, columns in (("retrieval", retrieval, [*KEYS, by]), ("relevant", relevant, KEYS)):
        if missing := [c for c in columns if c not in frame]:
            raise KeyError(
                absent("Column", missing[0], f"the table {name}", frame.columns, "Pass the table of tl.retrieval.")
            )
    if retrieval.empty:
        raise ValueError(unusable("The table", "retrieval", "is empty", "Retrieve with a model that has candidates."))
    retrieval = neighbours_only(retrieval)
    pairs = pd.MultiIndex.from_frame(retrieval[KEYS].astype(str))
    true_pairs = pd.MultiIndex.from_frame(relevant[KEYS].astype(str))
    table = retrieval.assign(relevant=pairs.isin(true_pairs), used=retrieval[by].astype(float))
    table["hit"] = table["relevant"] * table["used"]
    # Four sums per query are enough for the lift of any resample of queries.
    sums = table.groupby(["cell_type", "perturbation"], observed=True).agg(
        n=("used", "size"), relevant=("relevant", "sum"), used=("used", "sum"), hit=("hit", "sum")
    )
    groups = [(str(t), part.to_numpy(float)) for t, part in sums.groupby(level=0, observed=True)]  # (Q, 4) each
    rng = np.random.default_rng(seed)
    tail = (1 - confidence) / 2
    rows = []
    for name, part in [*groups, ("all", sums.to_numpy(float))]:
        draws = rng.integers(0, len(part), (N_BOOTSTRAP, len(part)))
        lifts = _lift(part[draws].sum(1))  # (N_BOOTSTRAP,)
        low, high = (np.nan, np.nan)
        if np.isfinite(lifts).any():
            low, high = np.nanquantile(lifts, [tail, 1 - tail])
        n, n_relevant, used, _ = part.sum(0)
        rows.append((name, len(part), n_relevant / n, used / n, float(_lift(part.sum(0))), low, high))
    names = ["cell_type", "n_queries", "share_relevant", "share_selected", "lift", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def _lift(sums: np.ndarray) -> np.ndarray:
    """Return the lift (...,) from sums (..., 4): candidates, relevant ones, their use, and use of relevant ones."""
    n, relevant, used, hit = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((used > 0) & (relevant > 0), (hit / used) / (relevant / n), np.nan)
