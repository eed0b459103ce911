"""What did a perturbation do elsewhere, in a few numbers?"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ptrag_sc.baselines._means import deviations, mean_by, own_or_sum
from ptrag_sc.data import leading_directions

N_DIRECTIONS = 30  # of the shifts; as many as PTRAG's output has: the rest is noise in screens of this kind
MIN_RESPONSE = 1e-6  # a response below this norm has no direction


@dataclass(frozen=True)
class Responses:
    """Mean deviation of each perturbation in cell types other than one, in the leading directions.

    A deviation is a shift less the mean shift of its cell type.

    Parameters
    ----------
    rows
        Perturbation to row of ``vectors``.
    vectors
        Responses (P, R), in units of the shifts.
    """

    rows: dict[str, int]
    vectors: np.ndarray

    @classmethod
    def elsewhere(cls, conditions: pd.DataFrame, projected: np.ndarray, cell_type: str | None) -> "Responses":
        """Average projected deviations (C, R) of training conditions over cell types other than ``cell_type``."""
        other = (conditions["cell_type"] != cell_type).to_numpy()
        names, vectors = mean_by(conditions["perturbation"][other], projected[other])
        kept = np.linalg.norm(vectors, axis=1) > MIN_RESPONSE
        return cls({name: i for i, name in enumerate(names[kept])}, vectors[kept])

    def of(self, label: str, sep: str) -> np.ndarray | None:
        """Return a response (R,), of a combination that was not measured the sum of its genes'; None if unknown."""
        found = own_or_sum(label, sep, lambda name: self.vectors[self.rows[name]] if name in self.rows else None)
        return None if found is None or np.linalg.norm(found) < MIN_RESPONSE else found

    def known(self, names: Iterable[str], sep: str) -> tuple[np.ndarray, np.ndarray]:
        """Return which of some perturbations have a response (m,), and these responses (m, R)."""
        found = {i: self.of(str(name), sep) for i, name in enumerate(names)}
        found = {i: response for i, response in found.items() if response is not None}
        rows = np.array(list(found), dtype=np.int64)
        return rows, np.array(list(found.values())).reshape(len(rows), self.vectors.shape[1])


@dataclass(frozen=True)
class ResponseSpace:
    """Responses as seen from every cell type; from one without training data, averaged over all.

    Parameters
    ----------
    axes
        Leading directions (R, G) of the deviations of all training conditions.
    seen_from
        Responses elsewhere, by cell type.
    overall
        Responses in all cell types.
    """

    axes: np.ndarray
    seen_from: dict[str, Responses]
    overall: Responses

    @classmethod
    def of(cls, conditions: pd.DataFrame, shifts: np.ndarray) -> "ResponseSpace":
        """Build the space from training conditions and their shifts (C, G)."""
        deviation = deviations(conditions, shifts)
        axes, _ = leading_directions(deviation, N_DIRECTIONS)
        seen = {
            t: Responses.elsewhere(conditions, deviation @ axes.T, t) for t in (*conditions["cell_type"].unique(), None)
        }
        return cls(axes, {t: seen[t] for t in seen if t is not None}, seen[None])

    def __getitem__(self, cell_type: str | None) -> Responses:
        return self.seen_from.get(cell_type, self.overall)
