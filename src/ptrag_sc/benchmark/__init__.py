"""How good is a model, next to simple baselines?"""

from ._evaluate import evaluate
from ._lift import selection_lift

__all__ = ["evaluate", "selection_lift"]
