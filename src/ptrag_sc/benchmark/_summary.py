"""How large is the difference between methods, and could it be chance?"""

from typing import Literal

import numpy as np
import pandas as pd

from ptrag_sc._validation import absent, unusable

N_BOOTSTRAP = 2000
MEAN = ("mean", "low", "high")
DIFFERENCE = ("difference", "difference_low", "difference_high")


def summary(
    scores: pd.DataFrame,
    *,
    against: str = "mean shift",
    truth: Literal["half", "all"] = "half",
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean of every metric for every method, and its paired difference from one of them, with intervals.

    Differences are taken condition by condition and seed by seed, if both methods have a value. The unit is the
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
        Confidence of the intervals.
    seed
        Seed of the bootstrap.

    Returns
    -------
    DataFrame
        Columns ``truth``, ``metric``, ``method``, ``kind``, ``n_seeds``, ``n_conditions``, ``direction``, ``best``,
        ``confidence``, ``mean``, ``low``, ``high``, ``sd_seeds`` (of the means of single seeds), ``difference``,
        ``difference_low``, ``difference_high``, ``positive_seeds`` (share of seeds with a positive difference).

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
        place = f"the table with truth={truth!r}"
        raise KeyError(absent("Method", against, place, scores["method"].unique(), "Pass against=..."))
    rng = np.random.default_rng(seed)
    rows = []
    kinds = scores.drop_duplicates("method").set_index("method")["kind"]
    for metric, of_metric in scores.groupby("metric", sort=False):
        wide = of_metric.set_index(["perturbation", "cell_type", "seed", "method"])["value"].unstack("method")
        # All methods share the resamples of the P perturbations, so that their intervals can be compared.
        n = wide.index.get_level_values("perturbation").nunique()
        draws = rng.integers(0, n, (N_BOOTSTRAP, n))  # (N_BOOTSTRAP, P)
        for method in dict.fromkeys(of_metric["method"]):
            counted = of_metric[of_metric["method"] == method]
            gain = wide[method] - wide[against]
            seed_means = wide[method].groupby(level="seed").mean().dropna()
            seed_gains = gain.groupby(level="seed").mean().dropna()
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
                    **_interval(MEAN, _by_perturbation(wide[method]), draws, confidence),
                    "sd_seeds": float(seed_means.std()),  # NaN for a single seed
                    **_interval(DIFFERENCE, _by_perturbation(gain), draws, confidence),
                    "positive_seeds": float((seed_gains > 0).mean()),  # NaN without seeds in common
                }
            )
    return pd.DataFrame(rows)


def _by_perturbation(values: pd.Series) -> np.ndarray:
    """Return the mean (P,) over seeds, then over cell types, of every perturbation; NaN if it has no value."""
    conditions = values.groupby(level=["perturbation", "cell_type"], observed=True).mean()
    return conditions.groupby(level="perturbation", observed=True).mean().to_numpy()


def _interval(
    names: tuple[str, str, str], values: np.ndarray, draws: np.ndarray, confidence: float
) -> dict[str, float]:
    """Return mean, lower and upper bound under three names.

    Parameters
    ----------
    names
        The names.
    values
        Values (P,) of the perturbations.
    draws
        Resamples (N_BOOTSTRAP, P) of these.
    confidence
        Confidence of the interval.
    """
    if not np.isfinite(values).any():
        return dict.fromkeys(names, np.nan)
    picked = values[draws]  # (N_BOOTSTRAP, P)
    known = np.isfinite(picked)
    counts = known.sum(1)
    # A resample may consist of perturbations without value: it has no mean and is left out.
    means = np.where(known, picked, 0.0).sum(1)[counts > 0] / counts[counts > 0]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail]).tolist()
    return dict(zip(names, (float(np.nanmean(values)), low, high), strict=True))
