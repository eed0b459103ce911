"""What would a predictor answer if some of its experiments had not been made?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ptrag_sc.data._fields import Screen

if TYPE_CHECKING:
    from ptrag_sc.data._predictor import Predictor


@dataclass(frozen=True)
class Refits:
    """What a predictor can be fitted anew from.

    Parameters
    ----------
    screen
        The training data.
    conditions
        Columns ``perturbation``, ``cell_type`` (names) of the C training conditions.
    shifts
        What was observed (C, G), own targets included.
    fit
        Returns a predictor that learned from some of the conditions (rows) and nothing else. It has no trained
        weights, because these were fitted to the other conditions too.
    """

    screen: Screen
    conditions: pd.DataFrame
    shifts: np.ndarray
    fit: Callable[[np.ndarray], "Predictor"]
