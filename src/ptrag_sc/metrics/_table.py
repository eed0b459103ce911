"""Which metrics are there, what does each need, and what is best?"""

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from ptrag_sc.metrics._distribution import energy_distance, mmd2, variance_ratio, wasserstein_1, wasserstein_2
from ptrag_sc.metrics._genes import de_direction, de_jaccard, de_overlap, lfc_nmae
from ptrag_sc.metrics._mean import effect_slope, mae, mse, pearson_delta, r2w_delta, wmse
from ptrag_sc.metrics._ranking import centroid_accuracy, pds_cosine


class Metric(NamedTuple):
    """One row of :data:`METRICS`.

    ``level`` decides the arguments of ``function``: ``"means"`` f(real mean, predicted mean, ...), ``"panel"`` the same
    for all perturbations of a cell type at once, f(real (P, G), predicted (P, G), ...) -> (P,), ``"cells"`` f(real
    cells, predicted cells), ``"tests"`` f(real test, predicted test) with tests of every gene against controls.
    ``reference`` names the arguments after these two: the mean ``control``, the ``centre`` of the training
    perturbations, the ``weights`` of the genes, or which genes are ``perturbed``. ``space`` decides whether features
    are genes or principal components of the :class:`Reference`.
    """

    function: Callable[..., Any]  # returns a float, or (P,) for a panel
    level: Literal["means", "panel", "cells", "tests"]
    space: Literal["genes", "pcs"]
    reference: tuple[Literal["control", "centre", "weights", "perturbed"], ...]
    best: float
    direction: Literal["higher", "lower", "closer"]  # closer to ``best``
    citation: str
    default: bool = False
    u_statistic: bool = False  # best is the expectation at the truth; identical cells are below it


# Final, so that a type checker knows the literals.
GENES: Final = "genes"
PCS: Final = "pcs"

# Citations of several metrics.
SYSTEMA = "Viñas Torné et al. 2025"
MEJIA = "Mejia et al. 2025"
CELL_EVAL = "cell-eval2, after Adduri et al. 2025"
TRANSPORT = "Peyré and Cuturi 2019"
VARIANCES = "ratio of traces of covariances"

METRICS: dict[str, Metric] = {
    "pearson_delta": Metric(
        pearson_delta, "means", GENES, ("control",), 1.0, "higher", "Roohani et al. 2024", default=True
    ),
    "pearson_delta_pert": Metric(pearson_delta, "means", GENES, ("centre",), 1.0, "higher", SYSTEMA, default=True),
    "pds_cosine": Metric(pds_cosine, "panel", GENES, ("control", "perturbed"), 1.0, "higher", CELL_EVAL, default=True),
    "centroid_accuracy": Metric(centroid_accuracy, "panel", GENES, (), 1.0, "higher", SYSTEMA),
    "mse": Metric(mse, "means", GENES, (), 0.0, "lower", "mean squared error"),
    "mae": Metric(mae, "means", GENES, (), 0.0, "lower", "mean absolute error"),
    "wmse": Metric(wmse, "means", GENES, ("weights",), 0.0, "lower", MEJIA, default=True),
    "r2w_delta_pert": Metric(r2w_delta, "means", GENES, ("centre", "weights"), 1.0, "higher", MEJIA),
    "effect_slope": Metric(
        effect_slope, "means", GENES, ("control",), 1.0, "closer", "least squares through the origin", default=True
    ),
    "de_overlap": Metric(de_overlap, "tests", GENES, (), 1.0, "higher", CELL_EVAL),
    "de_direction": Metric(de_direction, "tests", GENES, (), 1.0, "higher", CELL_EVAL),
    "de_jaccard": Metric(de_jaccard, "tests", GENES, (), 1.0, "higher", CELL_EVAL),
    "lfc_nmae": Metric(lfc_nmae, "tests", GENES, (), 0.0, "lower", CELL_EVAL),
    "energy_distance": Metric(
        energy_distance, "cells", PCS, (), 0.0, "lower", "Székely and Rizzo 2013", default=True, u_statistic=True
    ),
    "wasserstein_1": Metric(wasserstein_1, "cells", PCS, (), 0.0, "lower", TRANSPORT),
    "wasserstein_2": Metric(wasserstein_2, "cells", PCS, (), 0.0, "lower", TRANSPORT),
    "mmd2": Metric(mmd2, "cells", PCS, (), 0.0, "lower", "Gretton et al. 2012", u_statistic=True),
    "variance_ratio": Metric(variance_ratio, "cells", GENES, (), 1.0, "closer", VARIANCES, default=True),
}

DEFAULT_METRICS = tuple(name for name, row in METRICS.items() if row.default)
