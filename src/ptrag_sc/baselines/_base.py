"""What do all baselines share? Registration, fitting on training conditions, and prediction like PTRAG."""

from abc import abstractmethod

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._validation import unusable
from ptrag_sc.data import (
    CellSets,
    Predictor,
    Screen,
    ScreenKeys,
    condition_split,
    control_means,
    mean_shifts,
    read_screen,
    read_split,
)
from ptrag_sc.data._assembly import PredictedSets
from ptrag_sc.data._dataset import BATCH

SET_SIZE = 512  # cells are shifted one by one: the size of a set changes nothing


class Baseline(Predictor):
    """A predictor that adds a shift to control cells.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`. Without ``split_key`` every condition counts as
        training.
    """

    def __init__(self, adata: AnnData):
        self.adata, self.keys_, self.set_size_ = adata, ScreenKeys.of(adata), SET_SIZE
        self.candidates_ = np.array([], dtype=str)
        self.fitted_ = False

    def fit(self) -> "Baseline":
        """Learn from the training conditions and return the baseline itself."""
        screen = read_screen(self.adata, self.keys_)
        self.genes_ = screen.genes
        split = read_split(self.adata, self.keys_)
        train = screen.index.conditions
        if split is not None:
            table = condition_split(screen.index, split, place=f"adata.obs[{self.keys_.split_key!r}]")
            train = table[table["split"] == "train"].reset_index(drop=True)
        if train.empty:
            raise ValueError(
                unusable("The split", "the data", "has no training condition", "Label conditions 'train'.")
            )
        controls = control_means(screen.reader, screen.index)
        shifts = mean_shifts(screen.reader, screen.index, train, controls).shift
        self._learn(screen.index.named(train), shifts)
        self.fitted_ = True
        return self

    @abstractmethod
    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        """Learn from training conditions (names) and their batch-matched mean shifts (C, G)."""

    @abstractmethod
    def _shift(
        self, query: int, cell_type: str, state: object
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the shift (G,) of a query > 0, and candidates (K,), similarity (K,) and weights (K,) behind it."""

    def training_data(self) -> AnnData:
        """Return the registered object."""
        return self.adata

    def read(self, adata: AnnData) -> Screen:
        """Return the arrays of an AnnData, genes in the order of the baseline.

        Raises
        ------
        ValueError
            If the baseline was not fitted.
        """
        if not self.fitted_:
            raise ValueError(unusable(type(self).__name__, "memory", "was not fitted", "Call fit() first."))
        return super().read(adata)

    def resolve(self, labels: tuple[str, ...], adata: AnnData, gene_embedding: object = None) -> np.ndarray | None:
        """Return None: no embedding is needed."""
        return None

    def predict_batch(
        self, batch: BATCH, sets: CellSets, labels: tuple[str, ...], screen: Screen, *, state: object, seed: int | None
    ) -> PredictedSets:
        """Return control cells plus the shift of each set's condition; the control itself is not shifted."""
        nothing = np.zeros(0)
        answers = [
            self._shift(q, str(screen.index.cell_types[t]), state)
            if q > 0
            else (np.zeros(1), nothing, nothing, nothing)
            for q, t in zip(sets.query.tolist(), sets.cell_type.tolist(), strict=True)
        ]
        n_slots = max(len(indices) for _, indices, _, _ in answers)
        padded = np.zeros((3, len(answers), n_slots))
        present = np.zeros((len(answers), n_slots), dtype=bool)
        for b, (_, *fields) in enumerate(answers):
            padded[:, b, : len(fields[0])], present[b, : len(fields[0])] = fields, True
        cells = (
            batch["control_cells"].numpy()
            + np.stack([np.broadcast_to(s, len(self.genes_)) for s, *_ in answers])[:, None]
        )
        shape = (*sets.target.shape, n_slots)
        weights = np.broadcast_to(padded[2][:, None], shape)
        gates = np.broadcast_to(present[:, None].astype(float), shape)
        return PredictedSets(cells.astype(np.float32), padded[0].astype(int), present, padded[1], weights, gates)
