"""What can be asked of anything that predicts perturbed cells: PTRAG and every baseline?"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
from anndata import AnnData

from ptrag_sc._constants import DEFAULT_KEY, RETRIEVAL_SUFFIX
from ptrag_sc._docs import documented
from ptrag_sc._validation import check_whole, unusable
from ptrag_sc.data._assembly import (
    PredictedSets,
    Prediction,
    Request,
    as_name_list,
    assemble,
    find_cell_types,
    population_anndata,
    request_population,
)
from ptrag_sc.data._conditions import canonical_labels
from ptrag_sc.data._dataset import BATCH, CellSetDataset
from ptrag_sc.data._fields import Screen, ScreenKeys, read_screen
from ptrag_sc.data._set_sampler import CellSets, SequentialSets


class Predictor(ABC):
    """A fitted predictor.

    Attributes
    ----------
    keys_
        Where things stand in the AnnData.
    genes_
        Genes (G,), in the order of every prediction.
    candidates_
        Names of the training perturbations (C,) that can be retrieved.
    set_size_
        Largest number of cells in a prediction set.
    excluded_
        Genes that were excluded for want of an embedding; perturbations of them are not predicted by label.
    """

    keys_: ScreenKeys
    genes_: np.ndarray
    candidates_: np.ndarray
    set_size_: int
    excluded_: tuple[str, ...] = ()
    _prediction_batch_size = 16

    @abstractmethod
    def resolve(self, labels: tuple[str, ...], adata: AnnData, gene_embedding: object = None) -> np.ndarray | None:
        """Return the embedding (Q, D) of each perturbation, or None where the predictor needs none.

        Raises
        ------
        KeyError
            If a gene has no embedding.
        """

    @abstractmethod
    def predict_batch(
        self, batch: BATCH, sets: CellSets, labels: tuple[str, ...], screen: Screen, *, state: object, seed: int | None
    ) -> PredictedSets:
        """Return the predicted cells of one mini-batch of sets; ``state`` is what :meth:`prepare` returned."""

    def prepare(self, labels: tuple[str, ...], vectors: np.ndarray | None) -> object:
        """Return what is computed once per call, before any set is generated."""
        return vectors

    def read(self, adata: AnnData) -> Screen:
        """Return the arrays of an AnnData, genes in the order of the predictor."""
        return read_screen(adata, self.keys_, genes=self.genes_)

    def run(self, adata: AnnData, screen: Screen, request: Request, *, gene_embedding=None, seed=None) -> Prediction:
        """Generate every set of a request and put the rows in order."""
        vectors = self.resolve(request.labels, adata, gene_embedding)
        state = self.prepare(request.labels, vectors)
        sets = SequentialSets(request.planned, batch_size=self._prediction_batch_size)
        return assemble(
            self._generate(screen, request.labels, sets, state, seed),
            request,
            n_genes=len(self.genes_),
            candidates=self.candidates_,
            cell_types=screen.index.cell_types,
        )

    def _generate(
        self, screen: Screen, labels: tuple[str, ...], batches: Iterable[CellSets], state: object, seed: int | None
    ) -> Iterator[tuple[CellSets, PredictedSets]]:
        dataset = CellSetDataset(screen.reader, with_target=False)
        for sets in batches:
            yield sets, self.predict_batch(dataset[sets], sets, labels, screen, state=state, seed=seed)

    def canonical_labels(self, perturbations: str | Iterable[str]) -> tuple[str, ...]:
        """Return distinct canonical labels in the order asked for.

        Raises
        ------
        ValueError
            If none is named, or the control is among them.
        """
        names = as_name_list(perturbations, "perturbations")
        labels = tuple(dict.fromkeys(canonical_labels(names, control=self.keys_.control, sep=self.keys_.sep).tolist()))
        if not labels or self.keys_.control in labels:
            problem = f"hold the control {self.keys_.control!r}" if labels else "are empty"
            raise ValueError(unusable("The perturbations", "the request", problem, "Name perturbed genes."))
        return labels

    @documented
    def predict(
        self,
        adata: AnnData | None = None,
        *,
        perturbations: str | Iterable[str],
        cell_types: str | Iterable[str] | None = None,
        n_cells: int | None = None,
        gene_embedding: object = None,
        seed: int | None = None,
        nonnegative: bool = False,
    ) -> AnnData:
        """Predict the populations that perturbations would give.

        Parameters
        ----------
        adata
            Object with control cells; None takes the training data.
        {perturb_parameters}

        Returns
        -------
        New AnnData, as described at :func:`ptrag_sc.tl.perturb`.
        """
        for name, value, minimum in (("n_cells", n_cells, 1), ("seed", seed, 0)):
            if value is not None:
                check_whole(name, value, "the request", minimum=minimum)
        adata = self.training_data() if adata is None else adata
        labels, screen = self.canonical_labels(perturbations), self.read(adata)
        types = find_cell_types(screen, cell_types)
        request = request_population(screen, labels, types, n_cells=n_cells, set_size=self.set_size_, seed=seed)
        prediction = self.run(adata, screen, request, gene_embedding=gene_embedding, seed=seed)
        if nonnegative:
            np.maximum(prediction.cells, 0, out=prediction.cells)
        result = population_anndata(adata, self.keys_, request, prediction, genes=self.genes_, key=DEFAULT_KEY)
        params = {"seed": seed, "nonnegative": nonnegative, "n_cells": n_cells}
        result.uns[DEFAULT_KEY] = self.describe(prediction, params)
        result.obsm[DEFAULT_KEY + RETRIEVAL_SUFFIX] = prediction.weights
        return result

    @abstractmethod
    def training_data(self) -> AnnData:
        """Return the AnnData that the predictor was built on.

        Raises
        ------
        ValueError
            If it was loaded without one.
        """

    def params(self, **given) -> dict:
        """Return what ``.uns[key]["params"]`` says: the model, the keys, and the arguments that were given."""
        arguments = {name: value for name, value in given.items() if value is not None}
        return {"model": type(self).__name__, **self.keys_.to_uns(), **arguments}

    def describe(self, prediction: Prediction, params: dict) -> dict:
        """Return what stands in ``.uns[key]`` beside a prediction."""
        return {
            "params": self.params(**params),
            "genes": self.genes_.astype(object),
            "candidates": self.candidates_.astype(object),
            "retrieval": prediction.retrieval,
        }
