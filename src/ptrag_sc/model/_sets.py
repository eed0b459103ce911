"""Which sets does a training run visit, and which noise does a sampled prediction use?"""

import logging

import numpy as np
import pandas as pd
import torch

from ptrag_sc._validation import listed, unusable
from ptrag_sc.data import CellSets, ConditionIndex, RandomSets
from ptrag_sc.data._set_sampler import name_hash

logger = logging.getLogger(__name__)


def training_sets(
    index: ConditionIndex,
    split: pd.DataFrame,
    *,
    matching: np.ndarray | None = None,
    set_size: int,
    batch_size: int,
    seed: int,
) -> tuple[tuple[str, ...], RandomSets, RandomSets | None]:
    """Return the perturbations involved and the samplers of training and validation sets.

    Parameters
    ----------
    index
        The screen.
    split
        Names and split of the conditions.
    matching, set_size, batch_size, seed
        As in :class:`RandomSets`.

    Returns
    -------
    tuple
        Labels (row q - 1 is query q); training sets; validation sets, or None if there is no validation condition.

    Raises
    ------
    ValueError
        If the screen holds no training condition.
    """
    table = index.coded(split[split["split"] != "test"])
    # Other data than at set-up may lack a condition, or hold one cell of it.
    found = [len(index.rows(p, t)) > 1 for p, t in zip(table["perturbation"], table["cell_type"], strict=True)]
    table = table[np.array(found, dtype=bool)]
    if not (table["split"] == "train").any():
        remedy = "Pass the training data to load(), or construct a new model."
        raise ValueError(unusable("The registered object", "model.adata", "holds no training condition", remedy))
    _warn_few_controls(index, np.unique(table["cell_type"]), set_size)
    # Queries are numbered over training and validation together, because both use one query table.
    used = np.unique(table["perturbation"])  # (Q,)

    def sets(name: str) -> RandomSets:
        chosen = table[table["split"] == name]
        query = 1 + np.searchsorted(used, chosen["perturbation"])  # (C,), because query 0 is the control
        return RandomSets(
            index,
            chosen,
            query,
            set_size=set_size,
            batch_size=batch_size,
            seed=seed,
            fresh=name == "train",  # validation losses are comparable only on the same sets
            matching=matching,
        )

    val = None
    if (table["split"] == "val").any():
        val = sets("val")
    return tuple(index.perturbations[used]), sets("train"), val


def _warn_few_controls(index: ConditionIndex, cell_types: np.ndarray, set_size: int) -> None:
    """Warn of cell types with fewer control cells than a set has places."""
    few = [index.cell_types[t] for t in cell_types if len(index.sources(t)) < set_size]
    if few:
        logger.warning(
            "Fewer control cells than set_size=%d in %s: their sets hold every control once.", set_size, listed(few)
        )


def gate_noise(
    sets: CellSets, labels: tuple[str, ...], cell_types: np.ndarray, sizes: list[int], *, seed: int
) -> torch.Tensor:
    """Return logistic noise (B, S, J) that depends only on the seed and each set's own condition.

    The other sets of the mini-batch, the order of rows and other conditions in the call change nothing. Combinations in
    the call bring places for their components; the noise of these is drawn last, so that it moves no other.

    Parameters
    ----------
    sets, labels, cell_types
        The sets, and the names of their conditions.
    sizes
        Number of places of each kind of evidence, :attr:`ptrag_sc.retrieval.Recall.sizes`.
    seed
        Seed of the noise.
    """
    n_own, n_components, n_neighbours = sizes
    conditions = []
    for q, t in zip(sets.query, sets.cell_type, strict=True):
        name = labels[q - 1] if q > 0 else q  # the control is query 0
        conditions.append(f"{name}\t{cell_types[t]}")
    keys = name_hash(np.array(conditions), seed)  # (B,)
    noise = np.zeros((len(keys), sets.target.shape[1], sum(sizes)), dtype=np.float32)  # (B, S, J)
    for b, key in enumerate(keys):
        n_cells = int(sets.target_mask[b].sum())
        rng = np.random.default_rng([int(key), int(sets.ordinal[b])])
        first = rng.logistic(size=(n_cells, n_own + n_neighbours))  # the same draw with and without components
        own, neighbours = np.split(first, [n_own], axis=1)
        components = rng.logistic(size=(n_components, n_cells)).T
        noise[b, :n_cells] = np.concatenate([own, components, neighbours], axis=1)
    return torch.from_numpy(noise)
