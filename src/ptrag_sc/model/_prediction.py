"""How does a trained module answer a request for predicted cells, or for what was retrieved?"""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ptrag_sc._validation import absent, check_whole, unusable
from ptrag_sc.data import CellSetDataset, CellSets, Predictor, Screen, SequentialSets, components, control_means
from ptrag_sc.data._assembly import PredictedSets
from ptrag_sc.data._dataset import BATCH
from ptrag_sc.data._requests import find_cell_types, request_population
from ptrag_sc.data._retrieval_tally import RetrievalTally
from ptrag_sc.data._run import Run
from ptrag_sc.data._set_sampler import name_hash
from ptrag_sc.model._module import PTRAGModule
from ptrag_sc.model._sets import gate_noise
from ptrag_sc.model._support import Calibration, support_table
from ptrag_sc.model._tables import TrainingTables
from ptrag_sc.nn import MemoryRefiner
from ptrag_sc.retrieval import (
    MemoryView,
    QueryTable,
    initial_weights,
    make_query_table,
    resolve_vectors,
    shuffled_names,
    view_memory,
)

NULLS = ("random", "shuffled")
RETRIEVAL_CELLS = 256  # control cells that stand for a cell type in get_retrieval


class ModulePredictor(Predictor):
    """The predictor's side of :class:`ptrag_sc.PTRAG`."""

    module: PTRAGModule
    tables_: TrainingTables
    init_params_: dict[str, Any]
    split_: pd.DataFrame
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

    def run(
        self, adata: AnnData, screen: Screen, labels: tuple[str, ...], *, gene_embedding=None, seed: int | None = None
    ) -> Run:
        """Prepare what all requests of one call share; an untrained model is used with a warning."""
        self._check_if_trained(warn=True)
        return super().run(adata, screen, labels, gene_embedding=gene_embedding, seed=seed)

    def query_table(
        self,
        labels: tuple[str, ...],
        vectors: np.ndarray | None,
        *,
        view: MemoryView | None = None,
        random_seed: int | None = None,
    ) -> QueryTable:
        """Return the query table of a training or of a call; every neighbour is found here, once.

        Parameters
        ----------
        labels
            Perturbations.
        vectors
            Their embeddings (Q, D); None looks them up.
        view
            Of :meth:`view`.
        random_seed
            Draws the neighbours of each query at random instead.
        """
        if vectors is None:
            vectors = self.tables_.embedding.vectors_for(labels, self.keys_.sep)
        table = self.module.embeddings
        own = pd.Index(self.candidates_).get_indexer(list(labels))  # (Q,)
        n_neighbours = 0 if self.init_params_["retrieval"] == "none" else self.init_params_["n_candidates"]
        keys = None if random_seed is None else name_hash(np.array(labels, dtype=object), random_seed)
        return make_query_table(
            torch.as_tensor(vectors, device=table.device),
            table,
            torch.as_tensor(own, device=table.device),
            n_neighbours,
            view=view,
            components=torch.as_tensor(self._components(labels), device=table.device),
            random_keys=keys,
        )

    def _components(self, labels: tuple[str, ...]) -> np.ndarray:
        """Return the rows (Q, M) of the components of combinations in the memory, -1 where there is none."""
        names = [components(label, self.keys_.sep) for label in labels]
        names = [genes if len(genes) > 1 else () for genes in names]
        rows = np.full((len(labels), max(map(len, names), default=0)), -1)
        for row, genes in zip(rows, names, strict=True):
            found = pd.Index(self.candidates_).get_indexer(list(genes))
            if (found >= 0).all():
                row[: len(genes)] = found
        return rows

    def view(self, screen: Screen, *, mapped_share: float | None = None) -> MemoryView | None:
        """Return the memory, if there is one, as seen from the cell types of a screen.

        ``mapped_share`` None is that of the model.
        """
        if self.tables_.memory is None:
            return None
        memory = self.module.memory
        names = screen.index.cell_types
        known = pd.Index(self.tables_.cell_types).get_indexer(names.tolist())  # (V,)
        controls = memory.controls[torch.as_tensor(known.clip(min=0), device=memory.controls.device)]
        if (known < 0).any():
            means = control_means(screen.reader, screen.index).cell_type
            controls = torch.as_tensor(np.nan_to_num(means), dtype=controls.dtype, device=controls.device)
        share = self.module.mapped_share if mapped_share is None else mapped_share
        return view_memory(memory, torch.as_tensor(known), controls, share)

    def set_initial_weights(self, screen: Screen) -> None:
        """Set the memory's weights to what answers the training conditions best."""
        if not isinstance(self.module.refiner, MemoryRefiner):
            return
        train = self.split_[self.split_["split"] == "train"]
        perturbation = torch.as_tensor(pd.Index(self.candidates_).get_indexer(train["perturbation"]))  # (C,)
        cell_type = torch.as_tensor(pd.Index(screen.index.cell_types).get_indexer(train["cell_type"]))  # (C,)
        view = self.view(screen, mapped_share=1.0)
        labels = tuple(self.candidates_.tolist())
        both = initial_weights(self.query_table(labels, None, view=view), perturbation, cell_type)
        # The gene embedding counts otherwise where the query's response is unknown: the same with nothing known.
        nothing = torch.zeros_like(view.elsewhere)
        unknown = view._replace(elsewhere=nothing, own=nothing, known=torch.zeros_like(view.known))
        alone = initial_weights(self.query_table(labels, None, view=unknown), perturbation, cell_type)
        sharpness = torch.cat([both.sharpness, alone.sharpness[:1]])
        self.module.refiner.set_weights(sharpness, both.own, both.components)
        self.module.mapped_share.fill_(both.mapped)

    def describe(self, retrieved: RetrievalTally, params: dict) -> dict:
        """Return what stands in ``.uns[key]`` beside a prediction: also what it rests on, and how wrong it may be."""
        found = super().describe(retrieved, params)
        support = support_table(found["retrieval"], retrieved.strength())
        if self.support_ is not None:
            support = self.support_.expected(support)
            found["support_calibration"] = self.support_.conditions
        return {**found, "support": support}

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
        state: QueryTable,
        seed: int | None,
    ) -> PredictedSets:
        """Return the predicted cells of one mini-batch of sets, and what they rest on."""
        inferred = self._infer(batch, sets, labels, screen, state, seed)
        with torch.no_grad():
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
    ) -> dict:
        device = self.module.device
        recall = table.recall(batch["query"].to(device), batch["cell_type"].to(device))
        noise = None
        if seed is not None and self.init_params_["retrieval"] == "gumbel":
            noise = gate_noise(sets, labels, screen.index.cell_types, recall.sizes, seed=seed)
        slots = recall.joined.rows if self.module.reads_keys else None
        self.module.eval()
        with torch.no_grad():
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
        Columns ``perturbation``, ``cell_type``, ``candidate``, ``rank`` (0 nearest), ``similarity`` (cosine of the gene
        embeddings), with a memory ``similarity_response`` (cosine of the responses in other cell types),
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
        drawn = seed if null == "random" else None
        queries = self.query_table(labels, vectors, view=self.view(screen), random_seed=drawn)
        state = self.module.with_keys(queries)
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
