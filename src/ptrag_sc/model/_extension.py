"""How does a memory learn of new experiments, without training?"""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ptrag_sc._validation import unusable
from ptrag_sc.data import (
    ConditionIndex,
    Shifts,
    Spread,
    condition_split,
    control_means,
    matching_weights,
    mean_shifts_and_spread,
    read_split,
)
from ptrag_sc.data._diagnose import design_warnings
from ptrag_sc.model._module import MEMORY
from ptrag_sc.model._prediction import ModulePredictor
from ptrag_sc.retrieval import GeneEmbedding, ResponseMemory, build_memory, shrink, squared_errors

logger = logging.getLogger(__name__)

IN_MEMORY = "memory"  # split of a condition that was added later


class GrowingMemory(ModulePredictor):
    """The memory's side of :class:`ptrag_sc.PTRAG`."""

    def extend_memory(self, adata: AnnData, *, gene_embedding: object = None) -> None:
        """Add experiments to the memory; nothing is trained, and no weight changes.

        Conditions that the memory lacks are added with the mean shift that ``adata`` shows, shrunk like the others. New
        perturbations become candidates, new cell types bring their own mean shift. What the memory holds stays. The
        added conditions count as seen: :func:`ptrag_sc.benchmark.compare` refuses to test on them.

        Parameters
        ----------
        adata
            New experiments with their control cells, genes and columns as at set-up. Where it has the column that was
            registered as ``split_key``, only conditions of ``train`` are added.
        gene_embedding
            Table for genes that neither the model nor ``adata`` knows.

        Raises
        ------
        KeyError
            If a gene has no embedding.
        ValueError
            If the model has no memory, or ``adata`` holds no condition that the memory lacks.

        Examples
        --------
        >>> import ptrag_sc
        >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
        >>> new = adata.obs["perturbation"] == adata.uns["gene_embedding"]["genes"][0]
        >>> known, keys = adata[~new].copy(), {"perturbation_key": "perturbation", "control": "non-targeting"}
        >>> ptrag_sc.PTRAG.setup_anndata(known, **keys, cell_type_key="cell_type")
        >>> model = ptrag_sc.PTRAG(known, n_candidates=4, n_hidden=16, n_layers=1)
        >>> model.extend_memory(adata)
        >>> len(model.candidates_)
        10
        """
        if self.tables_.memory is None:
            remedy = 'Construct it with memory="response".'
            raise ValueError(unusable("The model", "extend_memory", "has no memory", remedy))
        screen = self.read(adata)
        if bad := design_warnings(screen.index):
            logger.warning("The new experiments: %s.", bad)
        table = self._new_conditions(adata, screen.index)
        known, names = set(self.candidates_), tuple(dict.fromkeys(table["perturbation"]))
        candidates = np.array([*self.candidates_, *(p for p in names if p not in known)], dtype=str)
        cell_types = tuple(dict.fromkeys([*self.tables_.cell_types, *table["cell_type"]]))
        embedding = self._embedding_with(names, adata, gene_embedding)
        matching = matching_weights(screen.reader, screen.index, self.init_params_["control_matching"])
        controls = control_means(screen.reader, screen.index, matching)
        shifts, spread = mean_shifts_and_spread(screen.reader, screen.index, screen.index.coded(table), controls)
        places = pd.Index(screen.index.cell_types).get_indexer(list(cell_types))
        memory = _extended(
            self.module.memory,
            pd.Index(candidates).get_indexer(table["perturbation"]),
            pd.Index(cell_types).get_indexer(table["cell_type"]),
            shifts=shifts,
            spread=spread._replace(variance=spread.variance[places]),
            controls=controls.cell_type[places],
        )
        added = pd.MultiIndex.from_frame(table[["perturbation", "cell_type"]])
        old = self.split_[~pd.MultiIndex.from_frame(self.split_[["perturbation", "cell_type"]]).isin(added)]
        split = pd.concat([old, table.assign(split=IN_MEMORY)[old.columns]], ignore_index=True)
        changed = {"candidates": candidates, "embedding": embedding, "split": split, "cell_types": cell_types}
        self.tables_ = replace(self.tables_, memory=memory, **changed)
        self.candidates_, self.split_ = candidates, split
        vectors = torch.as_tensor(embedding.vectors_for(candidates, self.keys_.sep))
        tables = {"embeddings": vectors, **{MEMORY + name: tensor for name, tensor in memory._asdict().items()}}
        for name, tensor in tables.items():
            self.module.register_buffer(name, tensor.to(self.module.device))
        logger.info("Added %d conditions to the memory.", len(table))

    def _new_conditions(self, adata: AnnData, index: ConditionIndex) -> pd.DataFrame:
        """Return the conditions (names) to add; what the memory holds is left out with a warning."""
        table, key = index.conditions, self.keys_.split_key
        if key is not None and key in self.keys_.container(adata, "split_key").obs:
            table = condition_split(index, read_split(adata, self.keys_), place=f"adata.obs[{key!r}]")
            table = table[table["split"] == "train"].drop(columns="split")
        single = (table["n_cells"] < 2).to_numpy()
        if single.any():
            logger.warning("Left %d conditions of a single cell out of the memory.", single.sum())
        table = index.named(table[~single])
        pairs = (self.module.memory.n_cells > 0).nonzero().tolist()
        held = pd.MultiIndex.from_tuples([(self.candidates_[p], self.tables_.cell_types[t]) for p, t in pairs])
        is_held = pd.MultiIndex.from_frame(table[["perturbation", "cell_type"]]).isin(held)
        if is_held.all():
            remedy = "Pass experiments with other perturbations or cell types."
            raise ValueError(unusable("The data", "extend_memory", "hold no condition that the memory lacks", remedy))
        if is_held.any():
            logger.warning("%d conditions are in the memory already and stay as they are.", is_held.sum())
        return table[~is_held].reset_index(drop=True)

    def _embedding_with(self, labels: tuple[str, ...], adata: AnnData, gene_embedding: object) -> GeneEmbedding:
        """Return the model's table with the genes of some perturbations."""
        own, sep = self.tables_.embedding, self.keys_.sep
        lacking = tuple(own.missing(labels, sep))
        vectors = self.resolve(lacking, adata, gene_embedding)
        both = np.concatenate([own.genes, lacking]).astype(str), np.concatenate([own.vectors, vectors])
        excluded = [gene for gene in own.excluded if gene not in lacking]
        return GeneEmbedding.from_table(*both, source=own.source, excluded=excluded)


def _extended(
    memory: ResponseMemory,
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    *,
    shifts: Shifts,
    spread: Spread,
    controls: np.ndarray,
) -> ResponseMemory:
    """Return a memory with further conditions; in cell types that it knows, means and reliabilities stay.

    Parameters
    ----------
    memory
        The memory.
    perturbation, cell_type
        Row and column of each new condition (C,), beyond the memory where new.
    shifts, spread, controls
        As in :func:`build_memory`; rows of cell types that have no new condition are not read.
    """
    n, n_types = len(memory.entries), len(memory.mean)
    shape = max(n, int(perturbation.max()) + 1), max(n_types, int(cell_type.max()) + 1)
    old = ResponseMemory(*(tensor.cpu() for tensor in memory))
    directions = old.directions.numpy()
    new = build_memory(
        perturbation, cell_type, shape, shifts=shifts, spread=spread, controls=controls, directions=directions
    )
    new.n_cells[:n, :n_types] += old.n_cells
    new.entries[:n, :n_types] += old.entries * (old.n_cells > 0)[..., None]
    for name in ("between", "mean", "controls"):
        getattr(new, name)[:n_types] = getattr(old, name)
    known = cell_type < n_types
    p, t = perturbation[known], cell_type[known]
    deviation = (shifts.shift[known] - old.mean.numpy()[t]) @ directions.T
    error = squared_errors(spread, cell_type, directions)[known]
    new.entries[p, t] = torch.as_tensor(shrink(deviation, error, old.between.numpy()[t]), dtype=new.entries.dtype)
    return new
