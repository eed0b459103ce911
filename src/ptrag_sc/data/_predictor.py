"""What can be asked of anything that predicts perturbed cells: PTRAG and every baseline?"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._docs import documented
from ptrag_sc._validation import check_whole
from ptrag_sc.data._assembly import ExpectedShifts, PredictedSets, source_obs
from ptrag_sc.data._dataset import BATCH
from ptrag_sc.data._drift import Drift
from ptrag_sc.data._fields import Screen, ScreenKeys, read_screen
from ptrag_sc.data._gene_names import MissingGenes, var_of
from ptrag_sc.data._intervals import EffectErrors
from ptrag_sc.data._labels import named_perturbations
from ptrag_sc.data._levels import check_query
from ptrag_sc.data._portable import Portable
from ptrag_sc.data._refits import Refits
from ptrag_sc.data._requests import as_name_list, find_cell_types, request_population
from ptrag_sc.data._retrieval_tally import RetrievalTally
from ptrag_sc.data._run import Counts, Run, VirtualCells
from ptrag_sc.data._set_sampler import CellSets
from ptrag_sc.data._sizes import NCells, named_cell_types, read_sizes, storable_sizes
from ptrag_sc.data._targets import OwnEffects


class Predictor(Portable, ABC):
    """A fitted predictor.

    Attributes
    ----------
    keys_
        Where everything is in the AnnData.
    genes_
        Genes (G,), in the order of every prediction.
    candidates_
        Names of the training perturbations (C,) that can be retrieved.
    set_size_
        Largest number of cells in a prediction set.
    excluded_
        Genes that were excluded because they have no embedding; their perturbations are not predicted by label.
    own_effects_
        What the training perturbations did to their own targets; None adds nothing to what is predicted there.
    drift_
        How control cells change from start to end; None if no time is registered.
    effect_errors_
        How far predicted shifts are from observed ones; None if it is not known.
    recoveries_
        For each cell type and kind of candidate that was asked about, how well perturbations were recovered that were
        left out (:func:`ptrag_sc.tl.rank_perturbations`); None: for none yet.
    control_levels_
        How large the expression of the control cells of each cell type is, with which queries are compared.
    """

    keys_: ScreenKeys
    genes_: np.ndarray
    candidates_: np.ndarray
    set_size_: int
    excluded_: tuple[str, ...] = ()
    own_effects_: OwnEffects | None = None
    drift_: Drift | None = None
    effect_errors_: EffectErrors | None = None
    recoveries_: dict[tuple[str, str], Any] | None = None
    control_levels_: Mapping[str, float] = {}
    _prediction_batch_size = 16

    @abstractmethod
    def resolve(self, labels: tuple[str, ...], adata: AnnData, gene_embedding: object = None) -> np.ndarray | None:
        """Return the embedding (Q, D) of each perturbation, or None if the predictor needs none.

        Raises
        ------
        KeyError
            If a gene has no embedding.
        """

    def nameable(self, adata: AnnData, gene_embedding: object = None) -> list[str]:
        """Return all perturbations that :meth:`resolve` knows: genes with a vector, and what answers are made from.

        Parameters
        ----------
        adata
            Object of the call.
        gene_embedding
            Table for genes that neither the model nor ``adata`` knows.
        """
        names = [*self._genes_with_vector(adata, gene_embedding), *self.known_conditions_["perturbation"]]
        return [name for name in dict.fromkeys(names) if name != self.keys_.control]

    def _genes_with_vector(self, adata: AnnData, gene_embedding: object) -> list[str]:
        """Return the genes that have an embedding; none if the predictor needs none."""
        return []

    @abstractmethod
    def predict_batch(
        self, batch: BATCH, sets: CellSets, labels: tuple[str, ...], screen: Screen, *, state: Any, seed: int | None
    ) -> PredictedSets:
        """Return the predicted cells of one mini-batch of sets; ``state`` is the value of :meth:`prepare`."""

    @abstractmethod
    def expected_shifts(
        self, labels: tuple[str, ...], screen: Screen, cell_type: int, *, state: Any
    ) -> Iterator[ExpectedShifts]:
        """Yield the mean shifts of perturbations in a cell type (code), in order and a few at a time.

        Parameters
        ----------
        labels
            Perturbations.
        screen
            The control cells.
        cell_type
            Code of the cell type in the screen.
        state
            Value of :meth:`prepare`.
        """

    @abstractmethod
    def learn_effect_errors(self) -> None:
        """Set ``effect_errors_`` from the training data, if there are any and it is not known yet."""

    @abstractmethod
    def refits(self) -> Refits | None:
        """Return what the predictor can be fitted anew from; None without training data, or if only weights answer."""

    @property
    @abstractmethod
    def known_conditions_(self) -> pd.DataFrame:
        """Conditions (``perturbation``, ``cell_type``) that answers are made from."""

    def shift_blocks(
        self, labels: tuple[str, ...], vectors: np.ndarray | None, screen: Screen, cell_type: int
    ) -> Iterator[np.ndarray]:
        """Yield the mean shifts (B, G) of perturbations in a cell type (code), in order, without the evidence.

        Parameters
        ----------
        labels, vectors
            Perturbations, and the value of :meth:`resolve` for them.
        screen, cell_type
            The control cells, and the code of the cell type.
        """
        state = self.prepare(labels, vectors, screen)
        for found in self.expected_shifts(labels, screen, cell_type, state=state):
            yield found.shift

    def prepare(self, labels: tuple[str, ...], vectors: np.ndarray | None, screen: Screen) -> Any:
        """Return the state that is computed once per call, before any set is generated."""
        return vectors

    def read(self, adata: AnnData, *, missing_genes: MissingGenes | None = None, query: bool = True) -> Screen:
        """Return the arrays of an AnnData, genes in the order of the predictor; see :func:`read_screen`."""
        screen = read_screen(adata, self.keys_, genes=self.genes_, query=query, missing_genes=missing_genes)
        check_query(screen, self.control_levels_)
        return screen

    def run(
        self,
        adata: AnnData,
        screen: Screen,
        labels: tuple[str, ...],
        *,
        gene_embedding: object = None,
        seed: int | None = None,
        counts: Counts = False,
        nonnegative: bool = False,
    ) -> Run:
        """Return a run, which holds all that the requests of one call share."""
        vectors = self.resolve(labels, adata, gene_embedding)  # (Q, D) or None
        state = self.prepare(labels, vectors, screen)
        return Run(self, screen, labels, state=state, seed=seed, counts=counts, nonnegative=nonnegative)

    def canonical_labels(self, perturbations: str | Iterable[str]) -> tuple[str, ...]:
        """Return distinct canonical labels in the order asked for.

        Raises
        ------
        ValueError
            If none is named, or the control is among them or their components.
        """
        names = as_name_list(perturbations, "perturbations")
        return named_perturbations(names, control=self.keys_.controls, sep=self.keys_.sep)

    @documented
    def predict(
        self,
        adata: AnnData | None = None,
        *,
        perturbations: str | Iterable[str],
        cell_types: str | Iterable[str] | None = None,
        n_cells: NCells = None,
        gene_embedding: object = None,
        seed: int | None = None,
        counts: Counts = "auto",
        nonnegative: bool = False,
        missing_genes: MissingGenes = "error",
    ) -> AnnData:
        """Predict the populations that perturbations would give.

        Parameters
        ----------
        adata
            Object with control cells; None takes the training data.
        {perturb_parameters}

        Returns
        -------
        AnnData
            Predicted cells, as described at :func:`ptrag_sc.tl.perturb`, which can also write them to a file.
        """
        virtual = self.virtual_cells(
            adata,
            perturbations=perturbations,
            cell_types=cell_types,
            n_cells=n_cells,
            gene_embedding=gene_embedding,
            seed=seed,
            counts=counts,
            nonnegative=nonnegative,
            missing_genes=missing_genes,
        )
        return virtual.in_memory()

    @documented
    def virtual_cells(
        self,
        adata: AnnData | None,
        *,
        perturbations: str | Iterable[str],
        cell_types: str | Iterable[str] | None,
        n_cells: NCells,
        gene_embedding: object,
        seed: int | None,
        counts: Counts,
        nonnegative: bool,
        missing_genes: MissingGenes = "error",
    ) -> VirtualCells:
        """Plan the populations that perturbations would give; no cell is generated yet.

        Parameters
        ----------
        adata
            Object with control cells; None takes the training data.
        {perturb_parameters}
        """
        if seed is not None:
            check_whole("seed", seed, "the request")
        if adata is None:
            adata = self.training_data()
        # B+A and A+B are one perturbation, and one that is named twice is predicted once.
        labels = self.canonical_labels(perturbations)
        screen = self.read(adata, missing_genes=missing_genes)
        types = find_cell_types(screen, named_cell_types(n_cells) if cell_types is None else cell_types)
        names = [str(screen.index.cell_types[t]) for t in types]
        sizes = read_sizes(n_cells, labels, names, sep=self.keys_.sep)  # (Q, V)
        population = request_population(screen, len(labels), types, n_cells=sizes, set_size=self.set_size_, seed=seed)
        form: dict[str, Any] = {"counts": counts, "nonnegative": nonnegative}
        run = self.run(adata, screen, labels, gene_embedding=gene_embedding, seed=seed, **form)
        var = var_of(self.keys_.expression_holder(adata), self.keys_.gene_symbols, self.genes_)
        params = {"seed": seed, **run.form, "n_cells": storable_sizes(n_cells), "missing_genes": missing_genes}
        return VirtualCells(run, population, source_obs(adata, self.keys_), var, params)

    @abstractmethod
    def training_data(self) -> AnnData:
        """Return the AnnData that the predictor was built on.

        Raises
        ------
        ValueError
            If it was loaded without one.
        """

    def params(self, **given: Any) -> dict[str, Any]:
        """Return the content of ``.uns[key]["params"]``: the model, the keys, and the arguments that were given."""
        # None is left out, because it cannot be written to h5ad and zarr.
        arguments = {name: value for name, value in given.items() if value is not None}
        return {"model": type(self).__name__, **self.keys_.to_uns(), **arguments}

    def describe(self, retrieved: RetrievalTally, params: dict[str, Any]) -> dict[str, Any]:
        """Return the content of ``.uns[key]`` that goes with a prediction."""
        found = {
            "params": self.params(**params),
            "genes": self.genes_.astype(object),  # (G,)
            "candidates": self.candidates_.astype(object),  # (P,)
            "retrieval": retrieved.table(),
        }
        if self.excluded_:
            found["excluded"] = np.array(self.excluded_, dtype=object)
        if self.drift_ is not None:
            found["drift"] = self.drift_.to_uns()
        return found
