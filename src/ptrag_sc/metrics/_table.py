"""Which metrics are there, what does each need, and what is best?"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from ptrag_sc.metrics._distribution import energy_distance
from ptrag_sc.metrics._mean import effect_slope, pearson_delta


class Metric(NamedTuple):
    """One row of :data:`METRICS`.

    ``level`` says what the function takes: ``"means"`` f(real mean, predicted mean, reference mean), with the
    control or the centre as reference; ``"cells"`` f(real cells, predicted cells), in principal components.
    """

    function: Callable[..., float]
    level: Literal["means", "cells"]
    reference: Literal["control", "centre"] | None
    best: float
    direction: Literal["higher", "lower", "closer"]  # closer to ``best``
    citation: str


METRICS: dict[str, Metric] = {
    "pearson_delta": Metric(pearson_delta, "means", "control", 1.0, "higher", "Roohani et al. 2024"),
    "pearson_delta_pert": Metric(pearson_delta, "means", "centre", 1.0, "higher", "Viñas Torné et al. 2025"),
    "effect_slope": Metric(effect_slope, "means", "control", 1.0, "closer", "least squares through the origin"),
    "energy_distance": Metric(energy_distance, "cells", None, 0.0, "lower", "Székely and Rizzo 2013"),
}
