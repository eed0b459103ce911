"""How does a trained module answer a request for predicted cells, or for what was retrieved?"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ptrag_sc._validation import absent, check_whole, unusable
from ptrag_sc.data import CellSetDataset, CellSets, Screen, SequentialSets
from ptrag_sc.data._assembly import PredictedSets
from ptrag_sc.data._dataset import BATCH
from ptrag_sc.data._requests import Request, find_cell_types, request_population
from ptrag_sc.data._retrieval_tally import RetrievalTally
from ptrag_sc.data._run import Counts, Run
from ptrag_sc.model._expected import Expecting
from ptrag_sc.model._sets import gate_noise
from ptrag_sc.model._support import Calibration, support_table, warn_of_abstention
from ptrag_sc.retrieval import QueryTable, nameable_genes, resolve_vectors, shuffled_names

NULLS = ("random", "shuffled")
RETRIEVAL_CELLS = 256  # control cells that stand for a cell type in get_retrieval


class ModulePredictor(Expecting):
    """The predictor's side of :class:`ptrag_sc.PTRAG`."""

    _check_if_trained: Callable[..., None]  # of scvi-tools' BaseModelClass
    save: Callable[..., None]
    load: Callable[..., Any]
    support_: Calibration | None

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

    def _genes_with_vector(self, adata: AnnData, gene_embedding: object) -> list[str]:
        key = self.keys_.embedding_key
        table = self.keys_.container(adata, "embedding_key").uns.get(key)
        return nameable_genes(self.tables_.embedding, table=table, key=key, extra=gene_embedding)

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
        """Prepare what all requests of one call share; an untrained model is used with a warning."""
        self.check_idle("the request")
        self._check_if_trained(warn=True)
        form: dict[str, Any] = {"counts": counts, "nonnegative": nonnegative}
        return super().run(adata, screen, labels, gene_embedding=gene_embedding, seed=seed, **form)

    def describe(self, retrieved: RetrievalTally, params: dict[str, Any]) -> dict[str, Any]:
        """Return what stands in ``.uns[key]`` beside a prediction: also what it rests on, and how wrong it may be."""
        found = super().describe(retrieved, params)
        support = support_table(found["retrieval"], retrieved.strength())
        if self.support_ is not None:
            support = self.support_.expected(support)
            found["support_calibration"] = self.support_.conditions
            warn_of_abstention(support)
        return {**found, "support": support}

    def portable(self, folder: Path) -> Callable[[], Any]:
        """Save the model into a folder and return a function that loads it from there, without data."""
        self.save(folder)
        return partial(type(self).load, folder, adata=False)

    def placed(self, state: Any, *, on_host: bool = False) -> Any:
        """Return a query table on the device of the module, or on the host."""
        return state.to(torch.device("cpu") if on_host else self.module.device)

    def prepare(self, labels: tuple[str, ...], vectors: np.ndarray | None, screen: Screen) -> QueryTable:
        """Return the query table of a call, with every candidate encoded once."""
        return self.module.with_keys(self.query_table(labels, vectors, view=self.view(screen)))

    def predict_batch(
        self,
        batch: BATCH,
        sets: CellSets,
        labels: tuple[str, ...],
        screen: Screen,
        *,
        state: Any,
        seed: int | None,
    ) -> PredictedSets:
        """Return the predicted cells of one mini-batch of sets, and what they rest on."""
        inferred = self._infer(batch, sets, labels, screen, state, seed)
        with self.answering():
            inputs = self.module._get_generative_input(batch, inferred)
            cells = self.module.generative(**inputs)["cells"]
        return _as_arrays(cells, inferred)

    def _infer(
        self,
        batch: BATCH,
        sets: CellSets,
        labels: tuple[str, ...],
        screen: Screen,
        table: QueryTable,
        seed: int | None,
    ) -> dict[str, Any]:
        device = self.module.device
        recall = table.recall(batch["query"].to(device), batch["cell_type"].to(device))
        noise = None
        if seed is not None and self.init_params_["retrieval"] == "gumbel":
            noise = gate_noise(sets, labels, screen.index.cell_types, recall.sizes, seed=seed)
        slots = recall.joined.rows if self.module.reads_keys else None
        with self.answering():
            inputs = self.module._get_inference_input(batch)
            return self.module.inference(**inputs, recall=recall, keys=table.keys, slots=slots, noise=noise)

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
        pandas.DataFrame
            Columns ``perturbation``, ``cell_type``, ``candidate``, ``role`` (``"neighbour"``; with a memory also
            ``"own"``, the query's own response in other cell types, and ``"component"`` of a combination), ``rank``
            (0 nearest), ``similarity`` (cosine of the gene embeddings), with a memory ``similarity_response`` (cosine
            of the responses in other cell types), ``weight`` (mean over cells) and ``selected`` (share of cells with an
            open gate), over up to 256 control cells. Similarities are NaN where they were not measured, and for
            everything but neighbours.

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
        drawn = seed if null == "random" else None
        queries = self.query_table(labels, vectors, view=self.view(screen), random_seed=drawn)
        state = self.module.with_keys(queries)
        dataset = CellSetDataset(screen.reader, with_target=False)

        def without_cells(request: Request) -> Iterator[tuple[CellSets, PredictedSets]]:
            for sets in SequentialSets(request.planned, batch_size=self._prediction_batch_size):
                inferred = self._infer(dataset[sets], sets, labels, screen, state, None)
                yield sets, _as_arrays(inferred["basal"][..., :0], inferred)

        tables = []
        for t in types:
            n_cells = min(RETRIEVAL_CELLS, len(screen.index.sources(t)))
            population = request_population(
                screen, len(labels), [t], n_cells=n_cells, set_size=self.set_size_, seed=None
            )
            retrieved = RetrievalTally(labels, self.candidates_, screen.index.cell_types)
            for sets, predicted in without_cells(population.whole()):
                retrieved.add(sets, predicted)
            tables.append(retrieved.table())
        table = pd.concat(tables, ignore_index=True)
        if null == "shuffled":
            return shuffled_names(table, self.candidates_, seed)
        return table


def _as_arrays(cells: torch.Tensor, inferred: dict[str, Any]) -> PredictedSets:
    """Return the tensors of a mini-batch as arrays; without retrieval J is 0."""
    refined, found = inferred["refined"], inferred["recall"].joined
    tensors = {
        "cells": cells,
        "rows": found.rows,
        "present": found.present,
        "role": inferred["recall"].role,
        "similarity": found.similarity,
        "weights": refined.weights,
        "gates": refined.gates,
        "strength": inferred["strength"],
    }
    return PredictedSets(**{name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})
