"""How does a distance of pertpy become a metric?"""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ptrag_sc._validation import unknown, unusable
from ptrag_sc.metrics import Metric

# Distances of pertpy, for the closest name in messages; a name that is not listed here is still looked up in pertpy.
NAMES = (
    "edistance euclidean root_mean_squared_error mse mean_absolute_error pearson_distance spearman_distance "
    "kendalltau_distance cosine_distance r2_distance mean_pairwise mmd wasserstein sym_kldiv t_test ks_test nb_ll "
    "mean_var_distribution mahalanobis"
).split()
REFUSED = {
    "classifier_proba": "draws the cells that it holds out without a seed",
    "classifier_cp": "compares one group with all the others of an AnnData, not two sets of cells",
}
OF_GENES = ("nb_ll", "mean_var_distribution")  # defined for expression, not for principal components
NOT_ZERO_AT_TRUTH = ("mean_pairwise", "nb_ll", "wasserstein")
CITATION = "pertpy, Heumos et al. 2025"


def pertpy_metric(name: str, *, space: Literal["pcs", "genes"] = "pcs", **distance_kwargs: object) -> Metric:
    """Turn a distance of pertpy into a row like those of :data:`ptrag_sc.metrics.METRICS`.

    The row compares real with predicted cells of one condition, either in the principal components of the
    :class:`ptrag_sc.metrics.Reference`, like ``energy_distance``, or in genes. The definition is that of the installed
    version of pertpy, which is not always our definition of a similar name:

    - ``"edistance"``: ``2E|x-y| - E|x-x'| - E|y-y'|``, the factor of our ``energy_distance``. pertpy 1.0.3 and 1.4.0
      count each cell's distance of 0 to itself (V-statistic: 0 for identical cells, positive for two samples of one
      population); 1.0.4 to 1.2.0 leave it out, as ours does.
    - ``"mmd"``: V-statistic; the kernel is linear by default and depends only on the means.
    - ``"wasserstein"``: the cost of regularised transport of *squared* distances, not 0 for identical cells; 1.0 means
      that the solution failed. It needs jax.

    Parameters
    ----------
    name
        A metric of ``pertpy.tools.Distance``.
    space
        ``"pcs"`` or ``"genes"``. ``"mean_var_distribution"`` and ``"nb_ll"`` (counts) are defined for genes only.
    **distance_kwargs
        Arguments of the distance, such as ``kernel="rbf"`` and ``gamma=0.1`` of ``"mmd"``, or ``agg_fct`` of distances
        between pseudobulks.

    Returns
    -------
    Metric
        A row of level ``"cells"``: ``function(real, predicted)`` returns a float. Lower is better; ``best`` is 0, or
        NaN if the value at the truth depends on the data (``"mean_pairwise"``, ``"nb_ll"``, ``"wasserstein"``).

    Raises
    ------
    ImportError
        If pertpy is not installed.
    KeyError
        If pertpy has no such distance (the message has the closest names).
    TypeError
        If the distance takes no such argument; pertpy itself would ignore it.
    ValueError
        If the distance does not compare two sets of cells, or not in this space.

    References
    ----------
    Heumos et al. (2025), Pertpy: an end-to-end framework for perturbation analysis.

    Examples
    --------
    >>> import numpy as np
    >>> row = pertpy_metric("edistance")  # doctest: +SKIP
    >>> row.function(np.array([[0.0], [2.0]]), np.array([[0.0], [2.0]]))  # doctest: +SKIP
    0.0
    """
    _check(name, space)
    distance, options = _distance(name, distance_kwargs)

    def value(real: np.ndarray, predicted: np.ndarray) -> float:
        return float(distance(np.asarray(real), np.asarray(predicted), **options))

    best = 0.0
    if name in NOT_ZERO_AT_TRUTH:
        best = float("nan")
    return Metric(value, "cells", space, (), best, "lower", CITATION)


def _check(name: str, space: str) -> None:
    place = "pertpy_metric"
    if space not in ("pcs", "genes"):
        raise ValueError(unusable(f"space={space!r}", place, "is neither 'pcs' nor 'genes'", "Pass one of them."))
    if name in REFUSED:
        remedy = "Call pertpy.tools.Distance yourself."
        raise ValueError(unusable(f"Distance {name!r}", place, REFUSED[name], remedy))
    if name in OF_GENES and space != "genes":
        problem = "is not defined for principal components"
        raise ValueError(unusable(f"Distance {name!r}", place, problem, "Pass space='genes'."))


def _distance(name: str, given: dict[str, object]) -> tuple[Callable[..., Any], dict[str, object]]:
    """Return the distance of pertpy and those arguments that belong to its call, not to its constructor."""
    try:  # here, because the import takes seconds
        from pertpy.tools import Distance
    except ImportError as error:
        remedy = "Install the extra: pip install 'ptrag_sc[pertpy]'."
        raise ImportError(unusable("pertpy", "this environment", f"cannot be imported ({error})", remedy)) from error
    own = {key: value for key, value in given.items() if key == "agg_fct"}
    try:
        distance = Distance(metric=name, **own)
    except ValueError as error:
        remedy = "Pass a metric of pertpy.tools.Distance."
        raise KeyError(unknown("Metric", [name], "pertpy.tools.Distance", NAMES, remedy)) from error
    # pertpy ignores arguments that a distance does not take, so they are checked against its signature.
    call = inspect.signature(type(distance.metric_fct).__call__).parameters.values()
    taken = [p.name for p in call if p.kind is not p.VAR_KEYWORD and p.name not in ("self", "X", "Y")]
    strange = [key for key in given if key not in taken and key not in own]
    if strange:
        raise TypeError(unknown("Argument", strange, f"pertpy's {name!r}", [*taken, "agg_fct"], "Leave it out."))
    return distance, {key: value for key, value in given.items() if key not in own}
