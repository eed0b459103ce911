"""What was retrieved, summed over the sets of each condition?"""

import numpy as np
import pandas as pd

from ptrag_sc.data._assembly import PredictedSets
from ptrag_sc.data._set_sampler import CellSets

RETRIEVAL_COLUMNS = ["perturbation", "cell_type", "candidate", "rank", "similarity", "weight", "selected"]


class RetrievalTally:
    """Sums over all sets that a call has generated so far.

    Parameters
    ----------
    labels
        Perturbations; query q > 0 is ``labels[q - 1]``, query 0 the control.
    candidates
        Names of what can be retrieved (C,).
    cell_types
        Names of the cell types.
    """

    def __init__(self, labels: tuple[str, ...], candidates: np.ndarray, cell_types: np.ndarray):
        self.labels, self.candidates, self.cell_types = labels, candidates, cell_types
        self._sums, self._strength = {}, {}

    def add(self, sets: CellSets, predicted: PredictedSets) -> None:
        """Add one mini-batch of sets."""
        strength = np.broadcast_to(predicted.strength, len(sets.query))
        for b, condition in enumerate(zip(sets.query.tolist(), sets.cell_type.tolist(), strict=True)):
            real, shown = sets.target_mask[b], predicted.present[b]
            columns, similarity = predicted.indices[b][shown], predicted.similarity[b][shown]
            weights, gates = (x[b][real][:, shown].sum(0) for x in (predicted.weights, predicted.gates))
            sums = np.array([np.full(len(columns), real.sum()), weights, gates], dtype=float)
            previous = self._sums.get(condition, (columns, similarity, 0.0))[2]
            self._sums[condition] = (columns, similarity, previous + sums)
            self._strength[condition] = self._strength.get(condition, 0.0) + real.sum() * np.array([strength[b], 1.0])

    def strength(self) -> pd.DataFrame:
        """Return ``perturbation``, ``cell_type``, ``strength`` (mean over cells) of every condition."""
        rows = [
            (self.labels[q - 1], self.cell_types[t], strength / n)
            for (q, t), (strength, n) in sorted(self._strength.items(), key=lambda item: item[0])
            if q > 0
        ]
        return pd.DataFrame(rows, columns=["perturbation", "cell_type", "strength"])

    def table(self) -> pd.DataFrame:
        """Return ``RETRIEVAL_COLUMNS``, one row per condition and retrieved candidate: means over its cells.

        A predictor that retrieves in a second space adds ``similarity_response``.
        """
        tables = [
            pd.DataFrame(
                {
                    "perturbation": self.labels[q - 1],
                    "cell_type": self.cell_types[t],
                    "candidate": self.candidates[columns],
                    "rank": np.arange(len(columns)),
                    **_named(similarity),
                    "weight": weight / n,
                    "selected": gate / n,
                }
            )
            for (q, t), (columns, similarity, (n, weight, gate)) in sorted(self._sums.items(), key=lambda item: item[0])
            if q > 0 and len(columns)
        ]
        if tables:
            return pd.concat(tables, ignore_index=True)
        kinds = {c: object if c in RETRIEVAL_COLUMNS[:3] else float for c in RETRIEVAL_COLUMNS}
        return pd.DataFrame({c: pd.Series(dtype=kind) for c, kind in kinds.items()})


def _named(similarity: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of similarities (K,) in one space or (K, 2) in two."""
    if similarity.ndim == 1:
        return {"similarity": similarity}
    return {"similarity": similarity[:, 0], "similarity_response": similarity[:, 1]}
