"""How good is a model, next to simple baselines?"""

from ._evaluate import evaluate

__all__ = ["evaluate"]
