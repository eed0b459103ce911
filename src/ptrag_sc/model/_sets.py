"""Which sets does a training run visit, and which noise does a sampled prediction see?"""

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
    Labels (row q - 1 is query q), training sets, validation sets or None.

    Raises
    ------
    ValueError
        If the screen holds no training condition.
    """
    table = index.coded(split[split["split"] != "test"])
    found = [len(index.rows(p, t)) > 1 for p, t in zip(table["perturbation"], table["cell_type"], strict=True)]
    table = table[np.array(found, dtype=bool)]
    if not (table["split"] == "train").any():
        remedy = "Pass the training data to load(), or construct a new model."
        raise ValueError(unusable("The registered object", "model.adata", "holds no training condition", remedy))
    _warn_few_controls(index, np.unique(table["cell_type"]), set_size)
    used = np.unique(table["perturbation"])

    def sets(name: str) -> RandomSets | None:
        chosen = table[table["split"] == name]
        if chosen.empty:
            return None
        query = 1 + np.searchsorted(used, chosen["perturbation"])
        sizes = {"set_size": set_size, "batch_size": batch_size}
        return RandomSets(index, chosen, query, **sizes, seed=seed, fresh=name == "train", matching=matching)

    return tuple(index.perturbations[used]), sets("train"), sets("val")


def _warn_few_controls(index: ConditionIndex, cell_types: np.ndarray, set_size: int) -> None:
    few = [index.cell_types[t] for t in cell_types if len(index.controls(t)) < set_size]
    if few:
        logger.warning(
            "Fewer control cells than set_size=%d in %s: their sets hold every control once.", set_size, listed(few)
        )


def gate_noise(
    sets: CellSets, labels: tuple[str, ...], cell_types: np.ndarray, sizes: list[int], *, seed: int
) -> torch.Tensor:
    """Return logistic noise (B, S, J) that depends on the seed and each set's own condition only.

    Batch mates, row order and other conditions in the call change nothing. Nor do combinations in the call, which bring
    places for their components: these are drawn last.

    Parameters
    ----------
    sets, labels, cell_types
        The sets, and the names of their conditions.
    sizes
        Places of each kind of evidence, :attr:`ptrag_sc.retrieval.Recall.sizes`.
    seed
        Of the noise.
    """
    n_own, n_components, n_neighbours = sizes
    names = np.array(
        [f"{q and labels[q - 1]}\t{cell_types[t]}" for q, t in zip(sets.query, sets.cell_type, strict=True)]
    )
    noise = np.zeros((len(names), sets.target.shape[1], sum(sizes)), dtype=np.float32)
    for b, key in enumerate(name_hash(names, seed)):
        n_cells = int(sets.target_mask[b].sum())
        rng = np.random.default_rng([int(key), int(sets.ordinal[b])])
        own, neighbours = np.split(rng.logistic(size=(n_cells, n_own + n_neighbours)), [n_own], axis=1)
        components = rng.logistic(size=(n_components, n_cells)).T
        noise[b, :n_cells] = np.concatenate([own, components, neighbours], axis=1)
    return torch.from_numpy(noise)
