"""What was retrieved, summed over the sets of each condition?"""

from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from ptrag_sc.data._assembly import ROLES, PredictedSets
from ptrag_sc.data._set_sampler import CellSets

RETRIEVAL_COLUMNS = ["perturbation", "cell_type", "candidate", "role", "rank", "similarity", "weight", "selected"]
SIMILARITIES = ["similarity", "similarity_response"]  # columns of the spaces, in their order


class _Sums(NamedTuple):
    """What was retrieved for one condition, summed over its cells so far; J' places hold evidence."""

    candidate: np.ndarray  # (J',) row of the candidates
    role: np.ndarray  # (J',) index into ROLES
    similarity: np.ndarray  # (J', R)
    weight: np.ndarray  # (J',) summed over cells
    gate: np.ndarray  # (J',) summed over cells
    strength: float  # summed over cells
    n_cells: int


SetSums: TypeAlias = tuple[int, int, _Sums]  # query, cell type, and what was retrieved for one set


class RetrievalTally:
    """Sums over all sets that a call has generated so far.

    Parameters
    ----------
    labels
        Perturbations; query q > 0 is ``labels[q - 1]``, query 0 the control.
    candidates
        Names of the perturbations that can be retrieved (P,).
    cell_types
        Names of the cell types (T,).
    """

    def __init__(self, labels: tuple[str, ...], candidates: np.ndarray, cell_types: np.ndarray):
        self.labels = labels
        self.candidates = candidates
        self.cell_types = cell_types
        self._sums: dict[tuple[int, int], _Sums] = {}

    def add(self, sets: CellSets, predicted: PredictedSets) -> None:
        """Add one mini-batch of sets."""
        for b, condition in enumerate(zip(sets.query.tolist(), sets.cell_type.tolist(), strict=True)):
            is_cell = sets.target_mask[b]  # (S,)
            is_filled = predicted.present[b]  # (J,)
            n_cells = int(is_cell.sum())
            weight = predicted.weights[b][is_cell][:, is_filled].sum(0, dtype=float)  # (J',)
            gate = predicted.gates[b][is_cell][:, is_filled].sum(0, dtype=float)  # (J',)
            # The strength belongs to the set; its cells count, because sets of one condition differ in size.
            strength = n_cells * float(predicted.strength[b])
            sums = _Sums(
                candidate=predicted.rows[b][is_filled],
                role=predicted.role[is_filled],
                similarity=predicted.similarity[b][is_filled],
                weight=weight,
                gate=gate,
                strength=strength,
                n_cells=n_cells,
            )
            self.merge((*condition, sums))

    def merge(self, found: SetSums) -> None:
        """Add one set."""
        query, cell_type, sums = found
        previous = self._sums.get((query, cell_type))
        if previous is not None:
            sums = sums._replace(
                weight=previous.weight + sums.weight,
                gate=previous.gate + sums.gate,
                strength=sums.strength + previous.strength,
                n_cells=sums.n_cells + previous.n_cells,
            )
        self._sums[query, cell_type] = sums

    def keep(self, query: np.ndarray, cell_type: np.ndarray) -> None:
        """Forget all conditions but those of some cells (m,)."""
        kept = set(zip(query.tolist(), cell_type.tolist(), strict=True))
        self._sums = {condition: sums for condition, sums in self._sums.items() if condition in kept}

    def _conditions(self) -> list[tuple[str, str, _Sums]]:
        """Return the sums of every condition but the controls, in order."""
        return [
            (self.labels[q - 1], self.cell_types[t], sums)
            for (q, t), sums in sorted(self._sums.items(), key=lambda item: item[0])
            if q > 0
        ]

    def strength(self) -> pd.DataFrame:
        """Return ``perturbation``, ``cell_type``, ``strength`` (mean over cells) of every condition."""
        rows = [(name, cell_type, sums.strength / sums.n_cells) for name, cell_type, sums in self._conditions()]
        return pd.DataFrame(rows, columns=["perturbation", "cell_type", "strength"])

    def table(self) -> pd.DataFrame:
        """Return ``RETRIEVAL_COLUMNS``, one row per condition and retrieved candidate: means over its cells.

        A predictor that retrieves in a second space adds ``similarity_response``.
        """
        tables = []
        for name, cell_type, sums in self._conditions():
            if not len(sums.candidate):  # an empty table would change the types of the columns
                continue
            columns = {
                "perturbation": name,
                "cell_type": cell_type,
                "candidate": self.candidates[sums.candidate],
                "role": np.array(ROLES, dtype=object)[sums.role],
                "rank": np.arange(len(sums.candidate)),
                **dict(zip(SIMILARITIES[: sums.similarity.shape[1]], sums.similarity.T, strict=True)),
                "weight": sums.weight / sums.n_cells,
                "selected": sums.gate / sums.n_cells,
            }
            tables.append(pd.DataFrame(columns))
        if tables:
            return pd.concat(tables, ignore_index=True)
        # Nothing was retrieved: an empty table with the same columns and types.
        texts = dict.fromkeys(RETRIEVAL_COLUMNS[:4], object)
        numbers = dict.fromkeys(RETRIEVAL_COLUMNS[4:], float)
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in {**texts, **numbers}.items()})
