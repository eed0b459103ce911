"""How large is the expression of the control cells of a screen, and does a query agree with what a model knows?"""

import logging
from collections.abc import Mapping

import numpy as np

from ptrag_sc.data._counts import known_controls
from ptrag_sc.data._fields import Screen
from ptrag_sc.data._partners import without_partner
from ptrag_sc.data._scale import level, warn_of_levels
from ptrag_sc.data._shifts import sampled_means


def control_levels(screen: Screen) -> dict[str, float]:
    """Return the level of the control cells of each cell type that has some; see :func:`level`."""
    types = [t for t in range(len(screen.index.cell_types)) if len(screen.index.sources(t))]
    if not types:
        return {}
    means = sampled_means(screen.reader, [known_controls(screen, t) for t in types])  # (T, G)
    return {str(screen.index.cell_types[t]): level(mean) for t, mean in zip(types, means, strict=True)}


def check_query(screen: Screen, known: Mapping[str, float]) -> None:
    """Log a warning where the control cells of a query are on another scale than those that a model knows."""
    result = (
        "The model answers with the mean of what it knows of others, weighted by how alike their control cells are."
    )
    if known:
        names = screen.index.cell_types[np.unique(screen.index.cell_type[screen.index.is_source])]
        without_partner("Cell type", names, known, place="the model", result=result, level=logging.INFO)
    columns = screen.reader.columns
    # Genes that count as 0 would lower the level.
    if known and (columns is None or (columns >= 0).all()):
        warn_of_levels(control_levels(screen), known, place="this object", other="the model")
