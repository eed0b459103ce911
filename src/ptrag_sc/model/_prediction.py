"""How does a trained module answer a request for predicted cells, or for what was retrieved?"""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ptrag_sc._validation import absent, check_whole, unusable
from ptrag_sc.data import CellSetDataset, CellSets, Predictor, Screen, SequentialSets
from ptrag_sc.data._assembly import PredictedSets, find_cell_types, request_population
from ptrag_sc.data._dataset import BATCH
from ptrag_sc.data._predictor import Run
from ptrag_sc.data._retrieval_tally import RetrievalTally
from ptrag_sc.data._set_sampler import name_hash
from ptrag_sc.model._module import EncodedQueries, PTRAGModule
from ptrag_sc.model._sets import gate_noise
from ptrag_sc.model._tables import TrainingTables
from ptrag_sc.retrieval import (
    Queries,
    distinct_rows,
    make_queries,
    random_candidates,
    resolve_vectors,
    shuffled_names,
    with_control,
)

NULLS = ("random", "shuffled")
RETRIEVAL_CELLS = 256  # control cells that stand for a cell type in get_retrieval


class ModulePredictor(Predictor):
    """The predictor's side of :class:`ptrag_sc.PTRAG`."""

    module: PTRAGModule
    tables_: TrainingTables
    init_params_: dict[str, Any]
    split_: pd.DataFrame

    @property
    def trained_on_(self) -> pd.DataFrame:
        """Conditions (``perturbation``, ``cell_type``) of the training and validation split."""
        return self.split_.loc[self.split_["split"] != "test", ["perturbation", "cell_type"]]

    def training_data(self) -> AnnData:
        """Return the registered object.

        Raises
        ------
        ValueError
            If the model was loaded without one.
        """
        if self.adata is None:
            raise ValueError(unusable("The model", "memory", "was loaded without data", "Pass adata=..."))
        return self.adata

    def resolve(self, labels: tuple[str, ...], adata: AnnData, gene_embedding: object = None) -> np.ndarray:
        """Return the embedding (Q, D) of each perturbation: model, then ``adata``, then ``gene_embedding``."""
        key, sep = self.keys_.embedding_key, self.keys_.sep
        table = self.keys_.container(adata, "embedding_key").uns.get(key)
        return resolve_vectors(labels, self.tables_.embedding, table=table, key=key, sep=sep, extra=gene_embedding)

    def run(
        self, adata: AnnData, screen: Screen, labels: tuple[str, ...], *, gene_embedding=None, seed: int | None = None
    ) -> Run:
        """Prepare what all requests of one call share; an untrained model is used with a warning."""
        self._check_if_trained(warn=True)
        return super().run(adata, screen, labels, gene_embedding=gene_embedding, seed=seed)

    def queries(
        self, labels: tuple[str, ...], vectors: np.ndarray | None, *, random_seed: int | None = None
    ) -> Queries:
        """Return the query table of a training run or of a call; every neighbour is found here, once.

        With ``random_seed`` the candidates of each query are drawn at random instead.
        """
        if vectors is None:
            vectors = self.tables_.embedding.vectors_for(labels, self.keys_.sep)
        own = pd.Index(self.candidates_).get_indexer(list(labels))
        table = self.module.embeddings
        n_slots = 0 if self.init_params_["retrieval"] == "none" else self.init_params_["n_candidates"]
        arguments = (
            torch.as_tensor(vectors, device=table.device),
            table,
            torch.as_tensor(own, device=table.device),
            n_slots,
        )
        if random_seed is None:
            return make_queries(*arguments)
        keys = name_hash(np.array(labels, dtype=object), random_seed)
        return with_control(arguments[0], random_candidates(*arguments, keys))

    def prepare(self, labels: tuple[str, ...], vectors: np.ndarray | None) -> EncodedQueries:
        """Return the encoded queries and candidates of a call."""
        return self.encode(self.queries(labels, vectors))

    def encode(self, table: Queries) -> EncodedQueries:
        """Return a query table with every query and every distinct candidate encoded once."""
        queries, candidates = table
        rows, slots = distinct_rows(candidates.indices)
        with torch.no_grad():
            return self.module.encode(queries, rows, slots, candidates)

    def predict_batch(
        self,
        batch: BATCH,
        sets: CellSets,
        labels: tuple[str, ...],
        screen: Screen,
        *,
        state: EncodedQueries,
        seed: int | None,
    ) -> PredictedSets:
        """Return the predicted cells of one mini-batch of sets, and what they rest on."""
        inferred = self._infer(batch, sets, labels, screen, state, seed)
        with torch.no_grad():
            inputs = self.module._get_generative_input(batch, inferred)
            cells = self.module.generative(**inputs)["cells"]
        return _as_arrays(cells, inferred)

    def _infer(self, batch, sets, labels, screen, state, seed) -> dict:
        noise = None
        if seed is not None and self.init_params_["retrieval"] == "gumbel":
            noise = gate_noise(sets, labels, screen.index.cell_types, self.init_params_["n_candidates"], seed)
        self.module.eval()
        with torch.no_grad():
            retrieved = state.take(batch["query"].to(self.module.device))
            inputs = self.module._get_inference_input(batch)
            return self.module.inference(**inputs, retrieved=retrieved, noise=noise)

    def get_retrieval(
        self,
        adata: AnnData | None = None,
        *,
        perturbations: str | Iterable[str] | None = None,
        cell_types: str | Iterable[str] | None = None,
        gene_embedding: object = None,
        null: Literal["random", "shuffled"] | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return what is retrieved for perturbations in cell types, without generating cells.

        Parameters
        ----------
        adata
            Object with control cells; None takes the training data.
        perturbations
            None takes all perturbations that the model was set up with.
        cell_types
            None takes all that have control cells.
        gene_embedding
            Table for genes that neither the model nor ``adata`` knows.
        null
            ``"random"``: the model sees candidates drawn at random; ``"shuffled"``: what is retrieved, under names
            that are dealt anew. None: the retrieval itself.
        seed
            Of the null.

        Returns
        -------
        Columns ``perturbation``, ``cell_type``, ``candidate``, ``rank`` (0 nearest), ``similarity`` (cosine),
        ``weight`` (mean over cells) and ``selected`` (share of cells with an open gate), over up to 256 control cells.

        Raises
        ------
        KeyError
            If a cell type does not occur or a gene has no embedding.
        ValueError
            If ``null`` is something else.
        """
        if null not in (None, *NULLS):
            raise ValueError(absent("null=", null, "get_retrieval", NULLS, "Pass one of them, or None."))
        check_whole("seed", seed, "get_retrieval")
        adata = self.training_data() if adata is None else adata
        screen = self.read(adata)
        named = self.split_["perturbation"].unique() if perturbations is None else perturbations
        labels, types = self.canonical_labels(named), find_cell_types(screen, cell_types)
        vectors = self.resolve(labels, adata, gene_embedding)
        state = self.encode(self.queries(labels, vectors, random_seed=seed if null == "random" else None))
        dataset = CellSetDataset(screen.reader, with_target=False)

        def without_cells(request):
            for sets in SequentialSets(request.planned, batch_size=self._prediction_batch_size):
                inferred = self._infer(dataset[sets], sets, labels, screen, state, None)
                yield sets, _as_arrays(inferred["basal"][..., :0], inferred)

        tables = []
        for t in types:
            n_cells = min(RETRIEVAL_CELLS, len(screen.index.controls(t)))
            size = {"n_cells": n_cells, "set_size": self.set_size_}
            population = request_population(screen, len(labels), [t], **size, seed=None)
            retrieved = RetrievalTally(labels, self.candidates_, screen.index.cell_types)
            for sets, predicted in without_cells(population.whole()):
                retrieved.add(sets, predicted)
            tables.append(retrieved.table())
        table = pd.concat(tables, ignore_index=True)
        return shuffled_names(table, self.candidates_, seed) if null == "shuffled" else table


def _as_arrays(cells: torch.Tensor, inferred: dict) -> PredictedSets:
    """Return the tensors of a mini-batch as arrays; without retrieval K is 0."""
    candidates, refined = inferred["candidates"], inferred["refined"]
    retrieved = candidates.indices, candidates.present, candidates.similarity[..., 0]
    tensors = cells, *retrieved, refined.weights, refined.gates
    return PredictedSets(*(t.detach().cpu().numpy() for t in tensors))
