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

    Differences are taken condition by condition and seed by seed, where both methods have a value. The unit is the
    perturbation: scores and differences are averaged over seeds and then over cell types, and perturbations are
    resampled (percentile bootstrap).

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
    Columns ``truth``, ``metric``, ``method``, ``kind``, ``n_seeds``, ``n_conditions``, ``direction``, ``best``,
    ``confidence``, ``mean``, ``low``, ``high``,
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
    >>> scores = scores.assign(
    ...     kind="method", seed=0, truth="half", cell_type="t", metric="pearson_delta", direction="higher", best=1
    ... )
    >>> summary(scores)["difference"].round(2).tolist()
    [0.2, 0.0]
    """
    if scores.empty:
        raise ValueError(unusable("The table", "summary", "is empty", "Pass the result of benchmark.compare."))
    if truth not in set(scores["truth"]):
        remedy = "Pass one that is there."
        raise KeyError(absent("Truth", truth, "the table", scores["truth"].unique(), remedy))
    scores = scores[scores["truth"] == truth]
    if against not in set(scores["method"]):
        place, remedy = f"the table with truth={truth!r}", "Pass against=..."
        raise KeyError(absent("Method", against, place, scores["method"].unique(), remedy))
    rng, rows = np.random.default_rng(seed), []
    kinds = scores.drop_duplicates("method").set_index("method")["kind"]
    for metric, of_metric in scores.groupby("metric", sort=False):
        wide = of_metric.set_index(["perturbation", "cell_type", "seed", "method"])["value"].unstack("method")
        draws = rng.integers(0, (n := wide.index.get_level_values(0).nunique()), (N_BOOTSTRAP, n))
        for method in dict.fromkeys(of_metric["method"]):
            counted = of_metric[of_metric["method"] == method]
            gain = wide[method] - wide[against]
            seeds, gains = (x.groupby(level="seed").mean().dropna() for x in (wide[method], gain))
            rows.append(
                {
                    "truth": truth,
                    "metric": metric,
                    "method": method,
                    "kind": kinds[method],
                    "n_seeds": counted["seed"].nunique(),
                    "n_conditions": len(counted.drop_duplicates(["perturbation", "cell_type"])),
                    "direction": counted["direction"].iloc[0],
                    "best": counted["best"].iloc[0],
                    "confidence": confidence,
                    **_interval("", _by_perturbation(wide[method]), draws, confidence),
                    "sd_seeds": float(seeds.std()) if len(seeds) > 1 else np.nan,
                    **_interval("difference", _by_perturbation(gain), draws, confidence),
                    "positive_seeds": float((gains > 0).mean()) if len(gains) else np.nan,
                }
            )
    return pd.DataFrame(rows)


def _by_perturbation(values: pd.Series) -> np.ndarray:
    """Return the mean over seeds, then over cell types, of every perturbation; NaN where nothing is known."""
    conditions = values.groupby(level=["perturbation", "cell_type"], observed=True).mean()
    return conditions.groupby(level="perturbation", observed=True).mean().to_numpy()


def _interval(name: str, values: np.ndarray, draws: np.ndarray, confidence: float) -> dict[str, float]:
    names = [name or "mean", f"{name}_low".lstrip("_"), f"{name}_high".lstrip("_")]
    if not np.isfinite(values).any():
        return dict.fromkeys(names, np.nan)
    picked, tail = values[draws], (1 - confidence) / 2
    known = np.isfinite(picked)
    counts = known.sum(1)
    means = np.where(known, picked, 0.0).sum(1)[counts > 0] / counts[counts > 0]
    return dict(zip(names, [float(np.nanmean(values)), *np.quantile(means, [tail, 1 - tail]).tolist()], strict=True))
