"""How are scores put into words?"""

import numpy as np
import pandas as pd

MAIN = "pearson_delta"  # the metric that sentences are about
TINY = 0.005  # a difference that two decimals do not show
IN_WORDS = "correlation of predicted and observed shift (pearson_delta)"


def means(summary: pd.DataFrame) -> str:
    """Return the mean of every method and metric as text, the best metric direction in the head."""
    wide = summary.pivot_table(index=["kind", "method"], columns="metric", values="mean", sort=False)
    arrows = {"higher": "up", "lower": "down", "closer": "to 1"}
    direction = summary.drop_duplicates("metric").set_index("metric")["direction"]
    wide.columns = [f"{metric} ({arrows[direction[metric]]})" for metric in wide.columns]
    wide = wide.droplevel("kind")
    wide.index.name = None
    return str(wide.T.round(3).to_string(na_rep="-"))


def verdict(summary: pd.DataFrame, *, model: str = "PTRAG") -> str:
    """Return in words how good a model is, between floors, the best other method and the ceiling.

    Examples
    --------
    >>> rows = [("PTRAG", "method", 0.5), ("mean shift", "floor", 0.4), ("split half", "ceiling", 0.8)]
    >>> table = pd.DataFrame(rows, columns=["method", "kind", "mean"]).assign(metric="pearson_delta")
    >>> print(verdict(table.assign(low=0.3, high=0.9, difference=0.1, difference_low=-0.1, difference_high=0.2)))
    PTRAG's correlation of predicted and observed shift (pearson_delta) is 0.50, between 0.30 and 0.90.
    Two halves of the same cells agree by 0.80: a score near it is as good as these cells can tell.
    The mean shift of all training perturbations has 0.40, so that is no clear gain: +0.10 (-0.10 to +0.20).
    """
    rows = summary[summary["metric"] == MAIN].set_index("method")
    own = rows.loc[model]
    lines = [f"{model}'s {IN_WORDS} is {own['mean']:.2f}, between {own['low']:.2f} and {own['high']:.2f}."]
    if "split half" in rows.index and np.isfinite(rows.loc["split half", "mean"]):
        ceiling = rows.loc["split half", "mean"]
        text = "a score near it is as good as these cells can tell"
        lines.append(f"Two halves of the same cells agree by {ceiling:.2f}: {text}.")
    floor = rows.loc["mean shift"]
    low, high = own["difference_low"], own["difference_high"]
    word = "no clear gain"
    if low > TINY:
        word = "a gain"
    elif high < -TINY:
        word = "a loss"
    lines.append(
        f"The mean shift of all training perturbations has {floor['mean']:.2f}, so that is {word}: "
        f"{own['difference']:+.2f} ({low:+.2f} to {high:+.2f})."
    )
    others = rows[(rows["kind"] == "method") & (rows.index != model)]
    if len(others):
        best = others["mean"].idxmax()
        lines.append(f"The best other method is {best} with {others.loc[best, 'mean']:.2f}.")
    return "\n".join(lines)
