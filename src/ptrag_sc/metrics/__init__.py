"""How good is a prediction? Arrays in, a number out; every metric is a row of ``METRICS``."""

from ._distribution import energy_distance, mmd2, variance_ratio, wasserstein_1, wasserstein_2
from ._genes import (
    DifferentialExpression,
    de_direction,
    de_jaccard,
    de_overlap,
    differential_expression,
    lfc_nmae,
    t_weights,
)
from ._mean import effect_slope, mae, mse, pearson_delta, r2w_delta, wmse
from ._ranking import centroid_accuracy, pds_cosine
from ._reference import Reference
from ._table import DEFAULT_METRICS, METRICS, Metric

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "DifferentialExpression",
    "Metric",
    "Reference",
    "centroid_accuracy",
    "de_direction",
    "de_jaccard",
    "de_overlap",
    "differential_expression",
    "effect_slope",
    "energy_distance",
    "lfc_nmae",
    "mae",
    "mmd2",
    "mse",
    "pds_cosine",
    "pearson_delta",
    "r2w_delta",
    "t_weights",
    "variance_ratio",
    "wasserstein_1",
    "wasserstein_2",
    "wmse",
]
