"""How good is a prediction? Arrays in, a number out; every metric is a row of ``METRICS``."""

from ._distribution import energy_distance
from ._mean import effect_slope, pearson_delta
from ._reference import Reference
from ._table import METRICS, Metric

__all__ = ["METRICS", "Metric", "Reference", "effect_slope", "energy_distance", "pearson_delta"]
