"""How large is the difference between methods, and could it be chance?"""

from typing import Literal

import numpy as np
import pandas as pd

from ptrag_sc._validation import absent, unusable

N_BOOTSTRAP = 2000


def summary(
    scores: pd.DataFrame,
    *,
    against: str = "mean shift",
    truth: Literal["half", "all"] = "half",
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean of every metric for every method, and its paired difference from one of them, with intervals.

    The unit is the perturbation: scores are averaged over seeds and then over cell types, and perturbations are
    resampled (percentile bootstrap), the same ones for both methods of a difference. Perturbations without a value
    in one of the two (NaN) are left out of their difference.

    Parameters
    ----------
    scores
        Table of :func:`ptrag_sc.benchmark.compare`.
    against
        Method that the others are compared with.
    truth
        Real cells that methods are scored against: ``"half"`` has ceilings, ``"all"`` has less noise.
    confidence
        Of the intervals.
    seed
        Of the bootstrap.

    Returns
    -------
    Columns ``truth``, ``metric``, ``method``, ``kind``, ``n_seeds``, ``n_conditions``, ``mean``, ``low``, ``high``,
    ``sd_seeds`` (of the means of single seeds), ``difference``, ``difference_low``, ``difference_high``,
    ``positive_seeds`` (share of seeds with a positive difference).

    Raises
    ------
    KeyError
        If ``against`` or ``truth`` is not in the table.
    ValueError
        If the table is empty.

    Examples
    --------
    >>> rows = [("new", "P", 0.5), ("new", "Q", 0.7), ("mean shift", "P", 0.4), ("mean shift", "Q", 0.4)]
    >>> scores = pd.DataFrame(rows, columns=["method", "perturbation", "value"])
    >>> scores = scores.assign(kind="method", seed=0, truth="half", cell_type="t", metric="pearson_delta")
    >>> summary(scores)["difference"].round(2).tolist()
    [0.2, 0.0]
    """
    if scores.empty:
        raise ValueError(unusable("The table", "summary", "is empty", "Pass the result of benchmark.compare."))
    if against not in set(scores["method"]):
        raise KeyError(absent("Method", against, "the table", scores["method"].unique(), "Pass against=..."))
    if truth not in set(scores["truth"]):
        remedy = "Pass one that is there."
        raise KeyError(absent("Truth", truth, "the table", scores["truth"].unique(), remedy))
    scores = scores[scores["truth"] == truth]
    rng, rows = np.random.default_rng(seed), []
    kinds = scores.drop_duplicates("method").set_index("method")["kind"]
    for metric, of_metric in scores.groupby("metric", sort=False):
        means = of_metric.groupby(["perturbation", "cell_type", "method"], observed=True)["value"].mean()
        wide = means.groupby(level=[0, 2], observed=True).mean().unstack("method")
        seeds = of_metric.groupby(["seed", "method"])["value"].mean().unstack("method")
        draws = rng.integers(0, len(wide), (N_BOOTSTRAP, len(wide)))
        for method in dict.fromkeys(of_metric["method"]):
            own, other = wide[method].to_numpy(), wide[against].to_numpy()
            counted = of_metric[of_metric["method"] == method]
            gain = seeds[method] - seeds[against]
            rows.append(
                {
                    "truth": truth,
                    "metric": metric,
                    "method": method,
                    "kind": kinds[method],
                    "n_seeds": counted["seed"].nunique(),
                    "n_conditions": len(counted.drop_duplicates(["perturbation", "cell_type"])),
                    **_interval("", own, draws, confidence),
                    "sd_seeds": float(seeds[method].std()) if len(seeds) > 1 else np.nan,
                    **_interval("difference", own - other, draws, confidence),
                    "positive_seeds": float((gain > 0).mean()),
                }
            )
    return pd.DataFrame(rows)


def _interval(name: str, values: np.ndarray, draws: np.ndarray, confidence: float) -> dict[str, float]:
    names = [name or "mean", f"{name}_low".lstrip("_"), f"{name}_high".lstrip("_")]
    if not np.isfinite(values).any():
        return dict.fromkeys(names, np.nan)
    picked, tail = values[draws], (1 - confidence) / 2
    known = np.isfinite(picked)
    counts = known.sum(1)
    means = np.where(known, picked, 0.0).sum(1)[counts > 0] / counts[counts > 0]
    return dict(zip(names, [float(np.nanmean(values)), *np.quantile(means, [tail, 1 - tail]).tolist()], strict=True))
