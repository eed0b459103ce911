"""How does a model find what bears on a question, and how much does each kind of evidence count before training?"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ptrag_sc._validation import unusable
from ptrag_sc.data import Predictor, Screen, ScreenKeys, components, controls_at_end, measured_targets
from ptrag_sc.data._set_sampler import name_hash
from ptrag_sc.model._module import PTRAGModule
from ptrag_sc.model._tables import TrainingTables
from ptrag_sc.nn import MemoryRefiner
from ptrag_sc.retrieval import MemoryView, QueryTable, ResponseMemory, initial_weights, make_query_table, view_memory

if TYPE_CHECKING:
    from ptrag_sc.model._epochs import Epochs


class Retriever(Predictor):
    """Stage 1 of :class:`ptrag_sc.PTRAG`: names become a query table, the memory a view."""

    module: PTRAGModule
    tables_: TrainingTables
    init_params_: dict[str, Any]
    split_: pd.DataFrame
    epochs_: "Epochs | None" = None  # of the training that is running

    @abstractmethod
    def _build(self, tables: TrainingTables, keys: ScreenKeys, params: dict[str, Any]) -> None:
        """Set the state that follows from what a model has before its first step."""

    def check_idle(self, call: str) -> None:
        """Refuse a call while the model is trained: its weights change, and so does how its module computes.

        Raises
        ------
        RuntimeError
            If a training is running.
        """
        if self.epochs_ is not None:
            remedy = "Wait until the training is over, or save the model in a callback and load that file."
            raise RuntimeError(unusable("The model", call, "is being trained", remedy))

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Compute without gradients; a training that begins meanwhile makes the answer void."""
        self.check_idle("the request")
        if self.module.training:
            self.module.eval()
        with torch.no_grad():
            yield
        self.check_idle("the request")

    def query_table(
        self,
        labels: tuple[str, ...],
        vectors: np.ndarray | None,
        *,
        view: MemoryView | None = None,
        random_seed: int | None = None,
        as_new: bool = False,
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
        as_new
            Leaves out what a new gene would not have: combinations of a single perturbation are no neighbours of it.
        """
        hidden = None
        if as_new:
            hidden = torch.as_tensor(self._combinations(labels), device=self.module.embeddings.device)
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
            hidden=hidden,
            random_keys=keys,
        )

    def query_targets(self, labels: tuple[str, ...]) -> np.ndarray:
        """Return which genes each query of a table targets (Q, G), the control first."""
        own = measured_targets(np.array(labels, dtype=str), self.genes_, self.keys_.sep)
        return np.concatenate([np.zeros_like(own[:1]), own])

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

    def _combinations(self, labels: tuple[str, ...]) -> np.ndarray:
        """Return the rows (Q, E) of the candidates that combine a single perturbation with others, padded with -1."""
        rows_of: dict[str, list[int]] = {}
        for i, candidate in enumerate(self.candidates_):
            genes = components(candidate, self.keys_.sep)
            if len(genes) > 1:
                for gene in genes:
                    rows_of.setdefault(gene, []).append(i)
        found = [rows_of.get(label, []) for label in labels]  # nothing for a combination
        rows = np.full((len(labels), max(map(len, found), default=0)), -1)
        for row, combinations in zip(rows, found, strict=True):
            row[: len(combinations)] = combinations
        return rows

    def view(
        self, screen: Screen, *, mapped_share: float | None = None, memory: ResponseMemory | None = None
    ) -> MemoryView | None:
        """Return the memory, if there is one, as seen from the cell types of a screen.

        ``mapped_share`` and ``memory`` None are those of the model.
        """
        memory = self.module.memory if memory is None else memory
        if memory is None:
            return None
        names = screen.index.cell_types
        known = pd.Index(self.tables_.cell_types).get_indexer(names.tolist())  # (V,)
        controls = memory.controls[torch.as_tensor(known.clip(min=0), device=memory.controls.device)]
        if (known < 0).any():
            means = controls_at_end(screen, self.drift_)
            controls = torch.as_tensor(np.nan_to_num(means), dtype=controls.dtype, device=controls.device)
        share = self.module.mapped_share if mapped_share is None else mapped_share
        return view_memory(memory, torch.as_tensor(known), controls, share)

    def set_initial_weights(self, screen: Screen) -> None:
        """Set the memory's weights to what answers the training conditions best."""
        view = self.view(screen, mapped_share=1.0)
        if view is None or not isinstance(self.module.refiner, MemoryRefiner):
            return
        train = self.split_[self.split_["split"] == "train"]
        perturbation = torch.as_tensor(pd.Index(self.candidates_).get_indexer(train["perturbation"]))  # (C,)
        cell_type = torch.as_tensor(pd.Index(screen.index.cell_types).get_indexer(train["cell_type"]))  # (C,)
        labels = tuple(self.candidates_.tolist())
        both = initial_weights(self.query_table(labels, None, view=view, as_new=True), view, perturbation, cell_type)
        # The gene embedding counts otherwise where the query's response is unknown: the same with nothing known.
        nothing = torch.zeros_like(view.elsewhere)
        unknown = view._replace(elsewhere=nothing, own=nothing, known=torch.zeros_like(view.known))
        alone = initial_weights(
            self.query_table(labels, None, view=unknown, as_new=True), unknown, perturbation, cell_type
        )
        sharpness = torch.cat([both.sharpness, alone.sharpness[:1]])
        self.module.refiner.set_weights(sharpness, both.own, both.components)
        self.module.mapped_share.fill_(both.mapped)
