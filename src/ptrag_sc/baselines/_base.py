"""What do all baselines share? Registration, fitting on training conditions, and prediction like PTRAG."""

import logging
from abc import abstractmethod
from collections.abc import Iterator
from copy import copy
from typing import NamedTuple, Self, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._validation import listed, unusable
from ptrag_sc.data import (
    ROLES,
    CellSets,
    ConditionIndex,
    ControlMeans,
    OwnEffects,
    Predictor,
    Screen,
    ScreenKeys,
    components,
    condition_split,
    learn_drift,
    masked_shifts,
    mean_shifts,
    mean_shifts_and_spread,
    measured_targets,
    own_change,
    read_screen,
    read_split,
    reference_means,
)
from ptrag_sc.data._assembly import ExpectedShifts, PredictedSets, check_shifts
from ptrag_sc.data._dataset import BATCH
from ptrag_sc.data._gene_names import MissingGenes
from ptrag_sc.data._intervals import EffectErrors, make_residuals, residual_folds
from ptrag_sc.data._levels import control_levels
from ptrag_sc.data._refits import Refits
from ptrag_sc.data._targets import target_columns

logger = logging.getLogger(__name__)

SET_SIZE = 512  # cells are shifted one by one, so the size of a set changes nothing
NOTHING = np.zeros(0)
NO_RESPONSES = np.zeros((0, 0))
LABELS_AT_ONCE = 64
Vectors: TypeAlias = np.ndarray | None  # embeddings (Q, D) of the queries of a call, if the baseline needs them


class Answer(NamedTuple):
    """The shift of one query, and the K candidates behind it; none if nothing is retrieved."""

    shift: np.ndarray  # (G,)
    candidates: np.ndarray = NOTHING  # (K,) rows of ``candidates_``
    similarity: np.ndarray = NOTHING  # (K,)
    weights: np.ndarray = NOTHING  # (K,)
    responses: np.ndarray = NO_RESPONSES  # (K, G) shifts of the candidates


class Baseline(Predictor):
    """A predictor that adds a shift to control cells.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`. Without ``split_key`` every condition counts as
        training.

    Attributes
    ----------
    trained_on_
        Columns ``perturbation``, ``cell_type`` of the conditions that :meth:`fit` learned from.
    """

    _splits: tuple[str, ...] = ("train",)  # which conditions are learned from
    _changes_targets = True  # whether what perturbations do to their own targets is added to the shift

    def __init__(self, adata: AnnData):
        self.adata = adata
        self.keys_ = ScreenKeys.of(adata)
        self.set_size_ = SET_SIZE
        self.candidates_ = np.array([], dtype=str)  # a baseline that retrieves nothing keeps none
        self.fitted_ = False

    def fit(self) -> Self:
        """Learn from the training conditions and return the baseline itself.

        Conditions of a single cell are left out, and conditions of genes without an embedding if the baseline needs
        one. A warning names them, as in PTRAG.

        Raises
        ------
        ValueError
            If no training condition is left, or a cell type has no control cells.
        """
        screen = read_screen(self.adata, self.keys_)
        self.genes_, self.drift_ = screen.genes, learn_drift(screen)
        self.control_levels_ = control_levels(screen)
        table = self._learnable(screen.index)
        controls = reference_means(screen)
        shifts = mean_shifts(screen.reader, screen.index, table, controls).shift  # (C, G)
        named = screen.index.named(table)
        self._learn_masked(named, shifts, dict(zip(screen.index.cell_types, controls.cell_type, strict=True)))
        self.effect_errors_, self.recoveries_ = None, None  # of an earlier fit
        self.trained_on_ = named[["perturbation", "cell_type"]]
        self._answers = named["split"].to_numpy() == "train"  # (C,); validation conditions only choose weights
        self.fitted_ = True
        return self

    def _learn_masked(self, named: pd.DataFrame, shifts: np.ndarray, controls: dict[str, np.ndarray]) -> None:
        """Learn from conditions (names, with their split) and their shifts (C, G), own targets apart from all else."""
        own = measured_targets(named["perturbation"].to_numpy(), self.genes_, self.keys_.sep)
        is_train = (named["split"] == "train").to_numpy()  # (C,)
        masked = masked_shifts(shifts, own, named["cell_type"].to_numpy(), among=is_train)
        if self._changes_targets:
            self.own_effects_ = OwnEffects.learn(named, shifts, masked, own & is_train[:, None], controls, self.genes_)
        self._learn(named, masked)

    def learn_effect_errors(self) -> None:
        """Set ``effect_errors_``: every training perturbation is left out of a fit in turn and predicted by it."""
        if self.effect_errors_ is not None:
            return
        screen, table, named, controls, of_type = self._to_refit()
        shifts, spread = mean_shifts_and_spread(screen.reader, screen.index, table, controls)
        train = np.flatnonzero(named["split"] == "train")
        vectors = self._vectors_of(named)  # (C, D) or None
        own = target_columns(named["perturbation"], self.genes_, self.keys_.sep)
        found = []
        for fold in residual_folds(named.iloc[train], self.keys_.sep):
            kept = np.setdiff1d(np.arange(len(named)), train[fold.left_out])
            if not (named["split"].iloc[kept] == "train").any():
                continue
            other = copy(self)
            other._learn_masked(named.iloc[kept].reset_index(drop=True), shifts.shift[kept], of_type)
            for c in train[fold.scored]:
                label, t = named["perturbation"].iloc[c], named["cell_type"].iloc[c]
                predicted = other._shift(label, None if vectors is None else vectors[c], t).shift.copy()
                predicted += own_change(other.own_effects_, label, t, of_type[t], own[c], self.genes_)
                found.append((c, fold.kind, shifts.shift[c] - predicted))
        rows = np.array([c for c, _, _ in found], dtype=np.int64)
        conditions = named.iloc[rows][["perturbation", "cell_type"]].assign(kind=[kind for _, kind, _ in found])
        errors = np.array([error for _, _, error in found]).reshape(len(found), len(self.genes_))
        self.effect_errors_ = EffectErrors.learn(
            make_residuals(conditions, errors, table.iloc[rows], spread, rows, controls, self.genes_, self.keys_.sep),
            dict(zip(screen.index.cell_types, spread.variance, strict=True)),
        )

    def _to_refit(self) -> tuple[Screen, pd.DataFrame, pd.DataFrame, ControlMeans, dict[str, np.ndarray]]:
        """Return what every fit to some conditions needs: screen, conditions as codes and as names, mean controls."""
        screen = self.read(self.adata)
        table = self._learnable(screen.index)
        controls = reference_means(screen)
        of_type = dict(zip(screen.index.cell_types, controls.cell_type, strict=True))
        return screen, table, screen.index.named(table), controls, of_type

    def refits(self) -> Refits:
        """Return what the baseline can be fitted anew from; validation conditions are kept in every fit."""
        screen, table, named, controls, of_type = self._to_refit()
        shifts = mean_shifts(screen.reader, screen.index, table, controls).shift  # (C', G), also of validation
        is_train = (named["split"] == "train").to_numpy()  # (C',)
        train, others = np.flatnonzero(is_train), np.flatnonzero(~is_train)

        def fit(kept: np.ndarray) -> "Baseline":
            rows = np.concatenate([train[kept], others])
            other = copy(self)
            other._learn_masked(named.iloc[rows].reset_index(drop=True), shifts[rows], of_type)
            return other

        conditions = named.iloc[train][["perturbation", "cell_type"]].reset_index(drop=True)
        return Refits(screen, conditions, shifts[train], fit)

    def _vectors_of(self, named: pd.DataFrame) -> np.ndarray | None:
        """Return the embedding (C, D) of some conditions, None if none is needed."""
        return None

    def _learnable(self, index: ConditionIndex) -> pd.DataFrame:
        """Return the conditions (codes) that are learned from, each with its split."""
        table = index.conditions.assign(split="train")
        split = read_split(self.adata, self.keys_)
        if split is not None:
            table = condition_split(index, split, place=f"adata.obs[{self.keys_.split_key!r}]")
        table = table[table["split"].isin(self._splits)]
        if not (table["split"] == "train").any():
            remedy = "Label conditions 'train'."
            raise ValueError(unusable("The split", "the data", "has no training condition", remedy))
        names = index.named(table)
        parts = [components(p, self.keys_.sep) for p in names["perturbation"]]
        excluded = np.array([not set(self.excluded_).isdisjoint(part) for part in parts])  # (C,)
        single = (table["n_cells"] < 2).to_numpy() & ~excluded  # (C,)
        # Two warnings, because the remedies differ: a vector for the gene, or more cells.
        for left_out, why in ((excluded, "without gene embedding"), (single, "of a single cell")):
            if left_out.any():
                shown = listed(names["perturbation"][left_out] + " in " + names["cell_type"][left_out])
                logger.warning("Left out %d conditions %s: %s.", left_out.sum(), why, shown)
        table = table[~excluded & ~single].reset_index(drop=True)
        if not (table["split"] == "train").any():
            problem = "has cells or embeddings for no training condition"
            remedy = "Give conditions two cells or more, and genes a vector."
            raise ValueError(unusable("The screen", "the data", problem, remedy))
        return table

    @abstractmethod
    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        """Learn from conditions (names, with their split) and their batch-matched, masked mean shifts (C, G)."""

    @abstractmethod
    def _shift(self, label: str, vector: np.ndarray | None, cell_type: str) -> Answer:
        """Return the shift of a perturbation, whose embedding is ``vector`` (D,), in a cell type."""

    @property
    def known_conditions_(self) -> pd.DataFrame:
        """Conditions (``perturbation``, ``cell_type``) that answers are made from."""
        return self.trained_on_[self._answers]

    def training_data(self) -> AnnData:
        """Return the registered object."""
        return self.adata

    def read(self, adata: AnnData, *, missing_genes: MissingGenes | None = None, query: bool = True) -> Screen:
        """Return the arrays of an AnnData, genes in the order of the baseline.

        Raises
        ------
        ValueError
            If the baseline was not fitted.
        """
        if not self.fitted_:
            raise ValueError(unusable(type(self).__name__, "memory", "was not fitted", "Call fit() first."))
        return super().read(adata, missing_genes=missing_genes, query=query)

    def resolve(self, labels: tuple[str, ...], adata: AnnData, gene_embedding: object = None) -> np.ndarray | None:
        """Return None: no embedding is needed."""
        return None

    def expected_shifts(
        self, labels: tuple[str, ...], screen: Screen, cell_type: int, *, state: Vectors
    ) -> Iterator[ExpectedShifts]:
        """Yield the mean shifts of perturbations in a cell type."""
        name = str(screen.index.cell_types[cell_type])
        for start in range(0, len(labels), LABELS_AT_ONCE):
            part = range(start, min(start + LABELS_AT_ONCE, len(labels)))
            answers = [self._shift(labels[q], None if state is None else state[q], name) for q in part]
            n_neighbours = max(len(answer.candidates) for answer in answers)  # K
            rows = np.zeros((len(answers), n_neighbours), dtype=np.int64)
            weights = np.zeros(rows.shape, dtype=np.float32)
            responses = np.zeros((*rows.shape, len(self.genes_)), dtype=np.float32)
            for b, answer in enumerate(answers):
                n_found = len(answer.candidates)
                rows[b, :n_found] = answer.candidates
                weights[b, :n_found] = answer.weights
                if n_found:
                    responses[b, :n_found] = answer.responses
            shift = np.stack([answer.shift for answer in answers]).astype(np.float32)
            yield ExpectedShifts(check_shifts(shift, labels[start:], name), rows, weights, responses)

    def predict_batch(
        self, batch: BATCH, sets: CellSets, labels: tuple[str, ...], screen: Screen, *, state: Vectors, seed: int | None
    ) -> PredictedSets:
        """Return control cells plus the shift of each set's condition; the control itself is not shifted."""
        answers = []
        for q, t in zip(sets.query.tolist(), sets.cell_type.tolist(), strict=True):
            answer = Answer(np.zeros(len(self.genes_)))  # of the control, which is query 0
            if q > 0:
                vector = None if state is None else state[q - 1]  # (D,)
                answer = self._shift(labels[q - 1], vector, str(screen.index.cell_types[t]))
            answers.append(answer)
        # Sets with fewer neighbours than the largest number K are padded; their last places are not present.
        n_neighbours = max(len(answer.candidates) for answer in answers)
        shape = len(answers), n_neighbours  # (B, K)
        rows = np.zeros(shape, dtype=np.int64)
        present = np.zeros(shape, dtype=bool)
        similarity = np.zeros(shape)
        weights = np.zeros(shape)
        for b, answer in enumerate(answers):
            n_found = len(answer.candidates)
            rows[b, :n_found] = answer.candidates
            present[b, :n_found] = True
            similarity[b, :n_found] = answer.similarity
            weights[b, :n_found] = answer.weights
        control = batch["control_cells"].numpy()  # (B, S, G)
        cells = np.empty(control.shape, dtype=np.float32)
        for b, answer in enumerate(answers):  # one by one, because the sums are float64
            cells[b] = control[b] + answer.shift
        of_cells = (*sets.target.shape, n_neighbours)  # (B, S, K): every cell of a set has the same neighbours
        return PredictedSets(
            cells=cells,
            rows=rows,
            present=present,
            role=np.full(n_neighbours, ROLES.index("neighbour")),
            similarity=similarity[..., None],
            weights=np.broadcast_to(weights[:, None], of_cells),
            gates=np.broadcast_to(present[:, None].astype(float), of_cells),
            strength=np.zeros(len(answers)),
        )
