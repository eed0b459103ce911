"""How good is a model, compared with simple baselines?"""

from ._ceilings import interpolated_duplicate, split_half
from ._cell_eval import to_cell_eval
from ._compare import compare
from ._evaluate import evaluate
from ._lift import selection_lift
from ._null_error import null_error
from ._pertpy import pertpy_metric
from ._summary import summary

__all__ = [
    "compare",
    "evaluate",
    "interpolated_duplicate",
    "null_error",
    "pertpy_metric",
    "selection_lift",
    "split_half",
    "summary",
    "to_cell_eval",
]
