"""How does an AnnData become cell sets and tensors, and how do predictions become AnnData again?"""

from ._assembly import ROLES
from ._conditions import ConditionIndex, condition_split
from ._dataset import CellSetDataset
from ._draw_split import draw_split
from ._drift import Drift, controls_at_end, learn_drift, reference_means
from ._fields import Screen, ScreenKeys, read_screen, read_split
from ._labels import (
    as_names,
    canonical,
    canonical_labels,
    components,
    read_labels,
    read_perturbations,
)
from ._matching import MATCHINGS, matching_weights
from ._predictor import Predictor
from ._reader import CellReader
from ._set_sampler import CellSets, RandomSets, SequentialSets
from ._shifts import (
    ControlMeans,
    Shifts,
    Spread,
    control_means,
    leading_directions,
    matched_control,
    mean_shifts,
    mean_shifts_and_spread,
)
from ._targets import OwnEffects, masked_shifts, measured_targets, own_change

__all__ = [
    "MATCHINGS",
    "ROLES",
    "CellReader",
    "CellSetDataset",
    "CellSets",
    "ConditionIndex",
    "ControlMeans",
    "Drift",
    "OwnEffects",
    "Predictor",
    "RandomSets",
    "Screen",
    "ScreenKeys",
    "SequentialSets",
    "Shifts",
    "Spread",
    "as_names",
    "canonical",
    "canonical_labels",
    "components",
    "condition_split",
    "control_means",
    "controls_at_end",
    "draw_split",
    "leading_directions",
    "learn_drift",
    "masked_shifts",
    "matched_control",
    "matching_weights",
    "mean_shifts",
    "mean_shifts_and_spread",
    "measured_targets",
    "own_change",
    "read_labels",
    "read_perturbations",
    "read_screen",
    "read_split",
    "reference_means",
]
