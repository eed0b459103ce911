"""What shift does a model expect, without generating cells, and how far is it from what is observed?"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ptrag_sc.data import (
    ControlMeans,
    Screen,
    Shifts,
    Spread,
    matching_weights,
    mean_shifts_and_spread,
    own_change,
    reference_means,
)
from ptrag_sc.data._assembly import ExpectedShifts, check_shifts
from ptrag_sc.data._counts import known_controls
from ptrag_sc.data._intervals import KNOWN, UNSEEN, EffectErrors, make_residuals, residual_folds
from ptrag_sc.data._refits import Refits
from ptrag_sc.data._targets import target_columns
from ptrag_sc.model._refits import make_refits
from ptrag_sc.model._retriever import Retriever
from ptrag_sc.model._tables import learn_own_effects
from ptrag_sc.retrieval import MemoryView, QueryTable, ResponseMemory, build_memory

N_CELLS = 16  # control cells that stand for a cell type; the largest part of the time is theirs
N_CELLS_OF_MANY = 8  # where many perturbations are asked for
LABELS_AT_ONCE = 16
LABELS_OF_TABLE = 2048  # queries whose neighbours are held at once


class Expecting(Retriever):
    """The part of :class:`ptrag_sc.PTRAG` that answers with mean shifts."""

    adata: AnnData | None

    def expected_shifts(
        self, labels: tuple[str, ...], screen: Screen, cell_type: int, *, state: Any
    ) -> Iterator[ExpectedShifts]:
        """Yield the mean shifts of perturbations in a cell type, over up to 16 control cells chosen by name."""
        basal = self._encoded_controls(screen, cell_type, N_CELLS)
        for query in self._queries(len(labels)):
            with self.answering():
                found = self.module.mean_shift(basal, state, query, cell_type)
            weights = found.weights * found.evidence.present
            tensors = found.shift, found.evidence.rows, weights, found.responses
            shift, places, weight, responses = (tensor.cpu().numpy() for tensor in tensors)
            if not responses.shape[1]:  # without a memory nobody knows what the candidates did
                places, weight = places[:, :0], weight[:, :0]
            names = labels[int(query[0]) - 1 :]
            check_shifts(shift, names, str(screen.index.cell_types[cell_type]))
            yield ExpectedShifts(shift, places, weight, responses)

    def shift_blocks(
        self, labels: tuple[str, ...], vectors: np.ndarray | None, screen: Screen, cell_type: int
    ) -> Iterator[np.ndarray]:
        """Yield the mean shifts (B, G) of perturbations in a cell type, over up to 8 control cells chosen by name."""
        assert vectors is not None  # a model with retrieval has a vector of every query
        basal = self._encoded_controls(screen, cell_type, N_CELLS_OF_MANY)
        view = self.view(screen)
        if view is not None:  # what no query asks for is not searched for neighbours
            view = MemoryView(*(field[cell_type : cell_type + 1] for field in view))
        table: QueryTable | None = None
        for start in range(0, len(labels), LABELS_OF_TABLE):
            part = slice(start, start + LABELS_OF_TABLE)
            keys = None if table is None else table.keys  # encoded candidates are those of every table
            table = self.query_table(labels[part], vectors[part], view=view)
            table = self.module.with_keys(table) if keys is None else table._replace(keys=keys)
            for query in self._queries(len(labels[part])):
                with self.answering():
                    found = self.module.mean_shift(basal, table, query, 0, with_responses=False)
                names = labels[start + int(query[0]) - 1 :]
                yield check_shifts(found.shift.cpu().numpy(), names, str(screen.index.cell_types[cell_type]))

    def _encoded_controls(self, screen: Screen, cell_type: int, n_cells: int) -> torch.Tensor:
        """Return encoded control cells (S, H)."""
        rows = known_controls(screen, cell_type, n_cells)
        with self.answering():
            cells = torch.as_tensor(screen.reader.rows(rows), device=self.module.device)[None]  # (1, S, G)
            (basal,) = self.module.encode_cells(cells)
        return basal

    def _queries(self, n: int) -> Iterator[torch.Tensor]:
        """Yield the rows (B,) of n queries of a table, a few at a time; row 0 is the control."""
        for start in range(1, n + 1, LABELS_AT_ONCE):
            yield torch.arange(start, min(start + LABELS_AT_ONCE, n + 1), device=self.module.device)

    def refits(self) -> Refits | None:
        """Return what the model's retrieval can be fitted anew from; None without data, or without a memory."""
        if self.adata is None or self.module.memory is None:
            return None
        return make_refits(self)

    @property
    def known_conditions_(self) -> pd.DataFrame:
        """Conditions (``perturbation``, ``cell_type``) that answers are made from."""
        return self.split_.loc[~self.split_["split"].isin(["val", "test"]), ["perturbation", "cell_type"]]

    def learn_effect_errors(self) -> None:
        """Set ``effect_errors_`` from the training data, if there are any and it is not known yet.

        Validation conditions are predicted as they are. With a memory, training conditions are predicted from a memory
        that lacks them; the trained weights have seen them.
        """
        if self.effect_errors_ is not None or self.adata is None:
            return
        screen = self.read(self.training_data())
        used = self.split_[self.split_["split"].isin(["train", "val"])]
        codes = screen.index.coded(used)
        present = [
            len(screen.index.rows(p, t)) > 1 for p, t in zip(codes["perturbation"], codes["cell_type"], strict=True)
        ]
        named = used[present].reset_index(drop=True)
        codes = codes[present].reset_index(drop=True)
        matching = matching_weights(screen.reader, screen.index, self.init_params_["control_matching"])
        controls = reference_means(screen, matching)
        shifts, spread = mean_shifts_and_spread(screen.reader, screen.index, codes, controls)
        found = _Residuals(self, screen, named, codes, shifts, spread, controls)
        found.of_validation()
        if self.module.memory is not None:
            found.of_training()
        self.effect_errors_ = found.learned()


class _Residuals:
    """Residuals of the training and validation conditions of a model, collected one condition at a time.

    Parameters
    ----------
    model
        The model.
    screen
        Its training data.
    named, codes
        Conditions (C,) by name and by code, with ``split``.
    shifts, spread
        What was observed.
    controls
        Mean controls.
    """

    def __init__(
        self,
        model: Expecting,
        screen: Screen,
        named: pd.DataFrame,
        codes: pd.DataFrame,
        shifts: Shifts,
        spread: Spread,
        controls: ControlMeans,
    ):
        self.model = model
        self.screen = screen
        self.named = named
        self.codes = codes
        self.shifts = shifts
        self.spread = spread
        self.controls = controls
        self.own = target_columns(named["perturbation"], model.genes_, model.keys_.sep)
        self.rows: list[int] = []
        self.kinds: list[str] = []
        self.errors: list[np.ndarray] = []

    def of_validation(self) -> None:
        """Collect the residuals of validation conditions."""
        val = np.flatnonzero(self.named["split"] == "val")
        measured = set(self.model.known_conditions_["perturbation"])
        kinds = [KNOWN if name in measured else UNSEEN for name in self.named["perturbation"].iloc[val]]
        self._collect(val, kinds, self.model.module.memory, self.model.tables_.own_effects)

    def of_training(self) -> None:
        """Collect the residuals of training conditions, each predicted from a memory that lacks it."""
        train = np.flatnonzero(self.named["split"] == "train")
        for fold in residual_folds(self.named.iloc[train], self.model.keys_.sep):
            kept = np.setdiff1d(train, train[fold.left_out])
            masked, own_effects = learn_own_effects(
                self.screen, self.codes.iloc[kept], self.shifts.shift[kept], self.controls, self.model.keys_
            )
            scored = train[fold.scored]
            self._collect(scored, [fold.kind] * len(scored), self._memory(kept, masked), own_effects)

    def _memory(self, kept: np.ndarray, masked: np.ndarray) -> ResponseMemory:
        """Return a memory of some conditions (rows) with masked shifts, in the directions of the model's."""
        memory = self.model.module.memory
        assert memory is not None  # of_training is called for a model with one
        types = self.screen.index.cell_types
        places = pd.Index(types).get_indexer(list(self.model.tables_.cell_types))  # (T,)
        return build_memory(
            pd.Index(self.model.candidates_).get_indexer(self.named["perturbation"].iloc[kept]),
            pd.Index(self.model.tables_.cell_types).get_indexer(self.named["cell_type"].iloc[kept]),
            (len(self.model.candidates_), len(places)),
            shifts=Shifts(masked, self.shifts.n_cells[kept]),
            spread=Spread(self.spread.variance[places], self.spread.scale[kept], self.spread.contrast[kept]),
            controls=self.controls.cell_type[places],
            directions=memory.directions.cpu().numpy(),
        )

    def _collect(self, rows: np.ndarray, kinds: list[str], memory: ResponseMemory | None, own_effects: Any) -> None:
        """Predict some conditions from a memory and note how far they are from what was observed."""
        model = self.model
        view = model.view(self.screen, memory=memory)
        for t in np.unique(self.codes["cell_type"].iloc[rows]):
            of_type = np.flatnonzero(self.codes["cell_type"].iloc[rows] == t)
            labels = tuple(self.named["perturbation"].iloc[rows[of_type]])
            state = model.module.with_keys(model.query_table(labels, None, view=view, as_new=True))
            blocks = model.expected_shifts(labels, self.screen, int(t), state=state)
            predicted = np.concatenate([block.shift for block in blocks])
            name = str(self.screen.index.cell_types[t])
            for i, shift in zip(of_type, predicted, strict=True):
                row = int(rows[i])
                label = str(self.named["perturbation"].iloc[row])
                change = own_change(own_effects, label, name, self.controls.cell_type[t], self.own[row], model.genes_)
                self.rows.append(row)
                self.kinds.append(kinds[i])
                self.errors.append(self.shifts.shift[row] - shift - change)

    def learned(self) -> EffectErrors:
        """Return what was learned from all residuals."""
        rows = np.array(self.rows, dtype=np.int64)
        conditions = self.named.iloc[rows][["perturbation", "cell_type"]].assign(kind=self.kinds)
        errors = np.array(self.errors).reshape(len(rows), len(self.model.genes_))
        found = make_residuals(
            conditions,
            errors,
            self.codes.iloc[rows],
            self.spread,
            rows,
            self.controls,
            self.model.genes_,
            self.model.keys_.sep,
        )
        return EffectErrors.learn(found, dict(zip(self.screen.index.cell_types, self.spread.variance, strict=True)))
