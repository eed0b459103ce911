"""How well does a predicted shift agree with a wanted one?"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

TINY = 1e-12


class Sums(NamedTuple):
    """Sums over the genes that count, of B predicted shifts with S signatures, (B, S) each."""

    product: np.ndarray
    shift: np.ndarray  # squares of the prediction
    wanted: np.ndarray  # squares of the signature

    @classmethod
    def of(cls, shift: np.ndarray, values: np.ndarray, counted: np.ndarray | None = None) -> "Sums":
        """Return sums of shifts (B, G) and signatures (S, G), which are 0 where they do not count (S, G); None: all."""
        values = values.astype(shift.dtype)
        squares = np.square(shift)
        of_shift = squares.sum(1, keepdims=True) if counted is None else squares @ counted.T.astype(shift.dtype)
        shape = len(shift), len(values)
        parts = shift @ values.T, np.broadcast_to(of_shift, shape), np.broadcast_to(np.square(values).sum(1), shape)
        return cls(*(part.astype(np.float64) for part in parts))

    def without(
        self, own: Sequence[np.ndarray], shift: np.ndarray, values: np.ndarray, counted: np.ndarray | None = None
    ) -> "Sums":
        """Return the sums without some genes (columns) of each prediction: those that its perturbation targets."""
        product, of_shift, wanted = (part.copy() for part in self)
        for b, columns in enumerate(own):
            if not len(columns):
                continue
            at, there = shift[b, columns].astype(np.float64), values[:, columns]  # (targets,), (S, targets)
            counts = np.ones(there.shape) if counted is None else counted[:, columns]
            product[b] -= there @ at
            of_shift[b] -= counts @ np.square(at)
            wanted[b] -= np.square(there).sum(1)
        return Sums(product, of_shift.clip(min=0), wanted.clip(min=0))


def cosine(sums: Sums) -> np.ndarray:
    """Return the cosine of prediction and signature; 0 where one of them is zero."""
    size = np.sqrt(sums.shift * sums.wanted)
    return np.where(size > TINY, sums.product / np.maximum(size, TINY), 0.0)


def minus_distance(sums: Sums) -> np.ndarray:
    """Return minus the squared distance of prediction and signature."""
    return 2 * sums.product - sums.shift - sums.wanted


SCORES: dict[str, Callable[[Sums], np.ndarray]] = {"cosine": cosine, "distance": minus_distance}
