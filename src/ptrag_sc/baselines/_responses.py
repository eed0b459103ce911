"""What did a perturbation do in other cell types, in a few numbers?"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ptrag_sc.baselines._means import deviations, own_or_sum
from ptrag_sc.data import leading_directions
from ptrag_sc.retrieval import averaged

N_DIRECTIONS = 30  # of the shifts, as in PTRAG's output; further directions are noise in screens of this kind
MIN_RESPONSE = 1e-6  # a response below this norm has no direction


@dataclass(frozen=True)
class Responses:
    """Mean deviation of each perturbation in all cell types but one, in the leading directions.

    A deviation is a shift minus the mean shift of its cell type.

    Parameters
    ----------
    rows
        For each perturbation, its row in ``vectors``.
    vectors
        Responses (P, R), in units of the shifts.
    """

    rows: dict[str, int]
    vectors: np.ndarray

    @classmethod
    def where_known(cls, names: np.ndarray, vectors: np.ndarray) -> "Responses":
        """Keep the perturbations (P,) whose response (P, R) has a direction."""
        kept = np.linalg.norm(vectors, axis=1) > MIN_RESPONSE  # (P,)
        return cls({name: i for i, name in enumerate(names[kept])}, vectors[kept])

    def of(self, label: str, sep: str | None) -> np.ndarray | None:
        """Return the response (R,) of a perturbation, or None if it has none.

        If a combination was not measured, it is the sum of its genes' responses.
        """
        found = own_or_sum(label, sep, self._single)
        if found is None or np.linalg.norm(found) < MIN_RESPONSE:  # responses of genes can cancel in the sum
            return None
        return found

    def _single(self, name: str) -> np.ndarray | None:
        if name not in self.rows:
            return None
        return self.vectors[self.rows[name]]  # (R,)

    def known(self, names: Iterable[str], sep: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Return which of some perturbations have a response (m,), and these responses (m, R)."""
        found: dict[int, np.ndarray] = {}
        for i, name in enumerate(names):
            response = self.of(str(name), sep)
            if response is not None:
                found[i] = response
        rows = np.array(list(found), dtype=np.int64)  # (m,)
        shape = (len(rows), self.vectors.shape[1])  # given, because an empty list has no second axis
        return rows, np.array(list(found.values())).reshape(shape)


@dataclass(frozen=True)
class ResponseSpace:
    """Responses in the cell types other than a given one; for one without training data, in all cell types.

    Parameters
    ----------
    axes
        Leading directions (R, G) of the deviations of all training conditions.
    seen_from
        For each cell type, the responses in the other ones.
    overall
        Responses in all cell types.
    """

    axes: np.ndarray
    seen_from: dict[str, Responses]
    overall: Responses

    @classmethod
    def of(cls, conditions: pd.DataFrame, shifts: np.ndarray) -> "ResponseSpace":
        """Build the space from training conditions and their shifts (C, G)."""
        deviation = deviations(conditions, shifts)  # (C, G)
        axes, _ = leading_directions(deviation, N_DIRECTIONS)  # (R, G)
        projected = deviation @ axes.T  # (C, R)
        names, p = np.unique(conditions["perturbation"].to_numpy(dtype=str), return_inverse=True)
        types, t = np.unique(conditions["cell_type"].to_numpy(dtype=str), return_inverse=True)
        entries = torch.zeros(len(names), len(types), len(axes), dtype=torch.float64)  # (P, T, R)
        entries[p, t] = torch.as_tensor(projected)
        is_entry = torch.zeros(len(names), len(types), dtype=torch.float64)
        is_entry[p, t] = 1.0
        all_types = torch.ones(1, len(types), dtype=torch.float64)
        others = all_types - torch.eye(len(types), dtype=torch.float64)  # (T, T): all but one
        *elsewhere, overall = averaged(torch.cat([others, all_types]), entries, is_entry)[0].numpy()
        seen_from = {
            name: Responses.where_known(names, vectors) for name, vectors in zip(types, elsewhere, strict=True)
        }
        return cls(axes, seen_from, Responses.where_known(names, overall))

    def __getitem__(self, cell_type: str | None) -> Responses:
        if cell_type is None:
            return self.overall
        return self.seen_from.get(cell_type, self.overall)
