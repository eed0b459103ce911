"""How does a predictor come into another process?"""

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any, Self

from anndata import AnnData
from mudata import MuData


class Portable:
    """The part of a predictor that other processes use."""

    def portable(self, folder: Path) -> Callable[[], Any]:
        """Return a function that can be sent to another process and gives it the predictor, without its data.

        Parameters
        ----------
        folder
            Empty folder that the other process can read, for files that the function reads.
        """
        return _Given(self.without_data())

    def without_data(self) -> Self:
        """Return a copy that answers alike but holds no data; so do the predictors that it asks."""
        other = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, AnnData | MuData):
                vars(other)[name] = None
            elif isinstance(value, Portable):
                vars(other)[name] = value.without_data()
        return other

    def placed(self, state: Any, *, on_host: bool = False) -> Any:
        """Return the value of :meth:`Predictor.prepare` on the device of the predictor, or on the host."""
        return state


class _Given:
    """A function that returns one value, and can be sent with it."""

    def __init__(self, value: Any):
        self.value = value

    def __call__(self) -> Any:
        """Return it."""
        return self.value
