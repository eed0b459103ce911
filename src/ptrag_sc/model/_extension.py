"""How are new experiments added to a memory, without training?"""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ptrag_sc._validation import unusable
from ptrag_sc.data import (
    ConditionIndex,
    ControlMeans,
    OwnEffects,
    Screen,
    Shifts,
    Spread,
    condition_split,
    learn_drift,
    matching_weights,
    mean_shifts_and_spread,
    measured_targets,
    read_split,
    reference_means,
)
from ptrag_sc.data._diagnose import design_warnings
from ptrag_sc.data._levels import control_levels
from ptrag_sc.model._module import MEMORY
from ptrag_sc.model._prediction import ModulePredictor
from ptrag_sc.model._support import CONDITION
from ptrag_sc.model._tables import learn_own_effects
from ptrag_sc.retrieval import GeneEmbedding, ResponseMemory, build_memory, shrink, squared_errors

logger = logging.getLogger(__name__)

IN_MEMORY = "memory"  # split of a condition that was added later


class GrowingMemory(ModulePredictor):
    """The part of :class:`ptrag_sc.PTRAG` that adds to the memory."""

    def extend_memory(self, adata: AnnData, *, gene_embedding: object = None) -> None:
        """Add experiments to the memory; nothing is trained, and no weight changes.

        Conditions that the memory lacks are added with their mean shift in ``adata``, shrunk like the others. New
        perturbations become candidates, and new cell types bring their own mean shift. Entries that the memory already
        has do not change. The added conditions count as seen, so :func:`ptrag_sc.benchmark.compare` refuses to test on
        them.

        Parameters
        ----------
        adata
            New experiments with their control cells, genes and columns as at set-up. If it has the column that was
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
        self.check_idle("extend_memory")
        memory = self.module.memory
        if memory is None:
            remedy = 'Construct it with memory="response".'
            raise ValueError(unusable("The model", "extend_memory", "has no memory", remedy))
        screen = self.read(adata, query=False)
        if bad := design_warnings(screen.index):
            logger.warning("The new experiments: %s.", bad)
        table = self._new_conditions(adata, screen.index, memory)
        # New names are appended, so that the rows and columns of the memory stay where they are.
        candidates = np.array(list(dict.fromkeys([*self.candidates_, *table["perturbation"]])), dtype=str)  # (P',)
        cell_types = tuple(dict.fromkeys([*self.tables_.cell_types, *table["cell_type"]]))  # (T',)
        embedding = self._embedding_with(tuple(table["perturbation"].unique()), adata, gene_embedding)
        matching = matching_weights(screen.reader, screen.index, self.init_params_["control_matching"])
        controls = reference_means(screen, matching)
        shifts, spread = mean_shifts_and_spread(screen.reader, screen.index, screen.index.coded(table), controls)
        masked, own_effects = self._masked_with(table, shifts.shift, screen, controls)
        shifts = shifts._replace(shift=masked)
        places = pd.Index(screen.index.cell_types).get_indexer(list(cell_types))  # (T',); what -1 picks is not used
        memory = _extended(
            memory,
            pd.Index(candidates).get_indexer(table["perturbation"]),
            pd.Index(cell_types).get_indexer(table["cell_type"]),
            shifts=shifts,
            spread=spread._replace(variance=spread.variance[places]),
            controls=controls.cell_type[places],
        )
        drift, found = self.drift_, learn_drift(screen)
        if drift is not None and found is not None:
            drift = drift.with_new(found)
        self.tables_ = replace(
            self.tables_,
            candidates=candidates,
            embedding=embedding,
            split=self._split_with(table),
            own_effects=own_effects,
            memory=memory,
            cell_types=cell_types,
            drift=drift,
            control_levels={**control_levels(screen), **self.control_levels_},
        )
        self.control_levels_ = self.tables_.control_levels
        self.own_effects_, self.drift_, self.recoveries_ = own_effects, drift, None
        self.candidates_ = self.tables_.candidates
        self.split_ = self.tables_.split
        vectors = torch.as_tensor(embedding.vectors_for(candidates, self.keys_.sep))  # (P', D)
        self.module.register_buffer("embeddings", vectors.to(self.module.device))
        for name, tensor in memory._asdict().items():
            self.module.register_buffer(MEMORY + name, tensor.to(self.module.device))
        logger.info("Added %d conditions to the memory.", len(table))

    def _masked_with(
        self, table: pd.DataFrame, shifts: np.ndarray, screen: Screen, controls: ControlMeans
    ) -> tuple[np.ndarray, OwnEffects]:
        """Return the masked shifts (C, G) of new conditions (names), and what all did to their own targets.

        In a cell type that the memory knows, its mean shift stands for the other perturbations; the share by which
        targets change there stays as it was learned.
        """
        codes = screen.index.coded(table)
        masked, learned = learn_own_effects(screen, codes, shifts, controls, self.keys_)
        memory = self.module.memory
        assert memory is not None  # extend_memory refuses a model without one
        own = measured_targets(table["perturbation"].to_numpy(), screen.genes, self.keys_.sep)
        known = pd.Index(self.tables_.cell_types).get_indexer(table["cell_type"])  # (C,)
        c, g = np.nonzero(own & (known >= 0)[:, None])
        masked[c, g] = memory.mean.cpu().numpy()[known[c], g]
        old = self.tables_.own_effects
        names = table["perturbation"].to_numpy(dtype=str)
        alone = learned.alone.set_index(["gene", "cell_type"])["effect"]
        for i, j in zip(c, g, strict=True):
            if names[i] == screen.genes[j]:
                alone[names[i], table["cell_type"].iloc[i]] = shifts[i, j] - masked[i, j]
        return masked, OwnEffects(
            {**learned.shares, **old.shares}, old.pooled, pd.concat([old.alone, alone.reset_index()], ignore_index=True)
        )

    def _split_with(self, added: pd.DataFrame) -> pd.DataFrame:
        """Return the model's split with added conditions, which may have had another label before."""
        pairs = pd.MultiIndex.from_frame(added[CONDITION])
        old = self.split_[~pd.MultiIndex.from_frame(self.split_[CONDITION]).isin(pairs)]
        return pd.concat([old, added.assign(split=IN_MEMORY)[old.columns]], ignore_index=True)

    def _new_conditions(self, adata: AnnData, index: ConditionIndex, memory: ResponseMemory) -> pd.DataFrame:
        """Return the conditions (names) to add; those that the memory has are left out with a warning."""
        table = index.conditions
        key = self.keys_.split_key
        split = None
        if key is not None and key in self.keys_.container(adata, "split_key").obs:
            split = read_split(adata, self.keys_)  # (n,)
        if split is not None:
            table = condition_split(index, split, place=f"adata.obs[{key!r}]")
            table = table[table["split"] == "train"].drop(columns="split")
        single = (table["n_cells"] < 2).to_numpy()
        if single.any():
            logger.warning("Left %d conditions of a single cell out of the memory.", single.sum())
        table = index.named(table[~single])
        pairs = (memory.n_cells > 0).nonzero().tolist()
        held = pd.MultiIndex.from_tuples([(self.candidates_[p], self.tables_.cell_types[t]) for p, t in pairs])
        is_held = pd.MultiIndex.from_frame(table[CONDITION]).isin(held)  # (C,)
        if is_held.all():
            remedy = "Pass experiments with other perturbations or cell types."
            raise ValueError(unusable("The data", "extend_memory", "hold no condition that the memory lacks", remedy))
        if is_held.any():
            logger.warning("%d conditions are in the memory already and stay as they are.", is_held.sum())
        return table[~is_held].reset_index(drop=True)

    def _embedding_with(self, labels: tuple[str, ...], adata: AnnData, gene_embedding: object) -> GeneEmbedding:
        """Return the model's table, extended by the genes that some perturbations need."""
        own = self.tables_.embedding
        lacking = tuple(own.missing(labels, self.keys_.sep))
        genes = np.concatenate([own.genes, lacking]).astype(str)
        vectors = np.concatenate([own.vectors, self.resolve(lacking, adata, gene_embedding)])  # (genes, D)
        excluded = [gene for gene in own.excluded if gene not in lacking]
        return GeneEmbedding.from_table(genes, vectors, source=own.source, excluded=excluded)


def _extended(
    memory: ResponseMemory,
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    *,
    shifts: Shifts,
    spread: Spread,
    controls: np.ndarray,
) -> ResponseMemory:
    """Return a memory with further conditions; known cell types keep their means and reliabilities.

    Parameters
    ----------
    memory
        The memory.
    perturbation, cell_type
        Row and column of each new condition (C,); new perturbations and cell types come after those of the memory.
    shifts, spread, controls
        As in :func:`build_memory`; rows of cell types that have no new condition are not used.
    """
    n, n_types = memory.n_cells.shape
    shape = max(n, int(perturbation.max()) + 1), max(n_types, int(cell_type.max()) + 1)  # (P', T')
    old = ResponseMemory(*(tensor.cpu() for tensor in memory))
    directions = old.directions.numpy()  # (L, G)
    new = build_memory(
        perturbation, cell_type, shape, shifts=shifts, spread=spread, controls=controls, directions=directions
    )
    # No condition is in both, so the sum keeps each.
    new.n_cells[:n, :n_types] += old.n_cells
    new.entries[:n, :n_types] += old.entries * (old.n_cells > 0)[..., None]
    for name in ("between", "mean", "controls"):
        getattr(new, name)[:n_types] = getattr(old, name)
    # In a known cell type new entries are deviations from its kept mean, shrunk by its kept variance.
    known = cell_type < n_types  # (C,)
    p = perturbation[known]
    t = cell_type[known]
    deviation = (shifts.shift[known] - old.mean.numpy()[t]) @ directions.T  # (known, L)
    # Their controls are others than those of the kept mean, so the error of these does not cancel.
    error = squared_errors(spread.variance, spread.scale, cell_type, directions)[known]  # (known, L)
    new.entries[p, t] = torch.as_tensor(shrink(deviation, error, old.between.numpy()[t]), dtype=new.entries.dtype)
    return new
