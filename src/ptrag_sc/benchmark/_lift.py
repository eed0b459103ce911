"""Does selection find the relevant candidates, where it is known which ones are?"""

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

    With the rate :math:`g_{qk}` at which candidate k of query q is selected (or its weight) and :math:`r_{qk}` 1 where
    it is relevant, lift = (sum of g r / sum of g) / (mean of r), over all queries of a cell type. 1: selection does not
    know; the inverse of the share of relevant candidates: it selects nothing else.

    Parameters
    ----------
    retrieval
        Retrieval table of :func:`ptrag_sc.tl.retrieval`.
    relevant
        True pairs: columns ``perturbation``, ``cell_type``, ``candidate``; ``adata.uns["truth"]["relevant"]`` of
        :func:`ptrag_sc.datasets.simulated`.
    by
        Column of the table that says how much a candidate is used.
    confidence
        Of the interval, a percentile bootstrap over queries.
    seed
        Of the bootstrap.

    Returns
    -------
    One row for each cell type and one for ``"all"``: ``cell_type``, ``n_queries``, ``share_relevant`` (among the
    candidates), ``share_selected`` (mean of ``by``), ``lift``, ``low``, ``high``. NaN where nothing is selected or
    relevant.

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
    truth = pd.MultiIndex.from_frame(relevant[KEYS].astype(str))
    table = retrieval.assign(
        relevant=pd.MultiIndex.from_frame(retrieval[KEYS].astype(str)).isin(truth), used=retrieval[by].astype(float)
    )
    table["hit"] = table["relevant"] * table["used"]
    sums = table.groupby(["cell_type", "perturbation"], observed=True).agg(
        n=("used", "size"), relevant=("relevant", "sum"), used=("used", "sum"), hit=("hit", "sum")
    )
    groups = [(str(t), part.to_numpy(float)) for t, part in sums.groupby(level=0, observed=True)]
    rng, tail = np.random.default_rng(seed), (1 - confidence) / 2
    rows = []
    for name, part in [*groups, ("all", sums.to_numpy(float))]:
        draws = rng.integers(0, len(part), (N_BOOTSTRAP, len(part)))
        lifts = _lift(part[draws].sum(1))
        low, high = np.nanquantile(lifts, [tail, 1 - tail]) if np.isfinite(lifts).any() else (np.nan, np.nan)
        n, n_relevant, used, _ = part.sum(0)
        rows.append((name, len(part), n_relevant / n, used / n, float(_lift(part.sum(0))), low, high))
    names = ["cell_type", "n_queries", "share_relevant", "share_selected", "lift", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def _lift(sums: np.ndarray) -> np.ndarray:
    n, relevant, used, hit = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((used > 0) & (relevant > 0), (hit / used) / (relevant / n), np.nan)
