"""What does a model take from the training data before the first step?"""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._validation import absent, listed, unusable
from ptrag_sc.data import (
    ConditionIndex,
    Screen,
    ScreenKeys,
    components,
    condition_split,
    control_means,
    draw_split,
    leading_directions,
    matching_weights,
    mean_shifts,
    mean_shifts_and_spread,
    read_screen,
    read_split,
)
from ptrag_sc.retrieval import GeneEmbedding, ResponseMemory, build_memory

logger = logging.getLogger(__name__)

N_DIRECTIONS = 30  # rank of the output; a full-rank output memorises conditions
MEMORY_DIRECTIONS = 100  # rank of the memory; what is noise in a direction is shrunk away
OWN_VALIDATION_FRACTION = 0.1


@dataclass(frozen=True)
class TrainingTables:
    """Names and tables that a model keeps.

    Parameters
    ----------
    genes
        Genes (G,).
    candidates
        Training perturbations (P,), sorted.
    embedding
        Vectors of the perturbed genes that occur in the training data.
    split
        Columns ``perturbation``, ``cell_type``, ``n_cells``, ``split`` (names) of every usable condition.
    basis
        Leading directions of the training shifts (R, G).
    memory
        What the training conditions did, if the model has a memory.
    cell_types
        Names of the cell types (T,) of the memory.
    """

    genes: np.ndarray
    candidates: np.ndarray
    embedding: GeneEmbedding
    split: pd.DataFrame
    basis: np.ndarray
    memory: ResponseMemory | None = None
    cell_types: tuple[str, ...] = ()


def training_tables(
    adata: AnnData, keys: ScreenKeys, *, with_memory: bool, control_matching: str, seed: int
) -> tuple[TrainingTables, Screen]:
    """Read the training data and compute everything that comes before the first step.

    Only conditions of the training split enter the candidates, the basis and the memory.

    Raises
    ------
    KeyError
        If there is no embedding table, or genes are missing from it.
    ValueError
        If the split is unusable or a cell type has no control cells.
    """
    screen = read_screen(adata, keys)
    embedding = read_embedding_table(adata, keys)
    split = usable_conditions(screen.index, embedding, read_split(adata, keys), keys=keys, seed=seed)
    train = split[split["split"] == "train"]
    if train.empty:
        raise ValueError(unusable("The split", "the data", "has no training condition", "Label conditions 'train'."))
    perturbations = screen.index.perturbations
    labels = [p for p in perturbations if p != keys.control]
    genes = sorted({g for p in labels for g in components(p, keys.sep)} & set(embedding.genes))
    candidates = np.unique(perturbations[train["perturbation"]]).astype(str)
    matching = matching_weights(screen.reader, screen.index, control_matching)
    controls = control_means(screen.reader, screen.index, matching)
    memory, types = None, np.unique(train["cell_type"])
    if with_memory:
        shifts, spread = mean_shifts_and_spread(screen.reader, screen.index, train, controls)
        directions, _ = leading_directions(shifts.shift, MEMORY_DIRECTIONS)
        memory = build_memory(
            np.searchsorted(candidates, perturbations[train["perturbation"]].astype(str)),
            np.searchsorted(types, train["cell_type"]),
            (len(candidates), len(types)),
            shifts=shifts,
            spread=spread._replace(variance=spread.variance[types]),
            controls=controls.cell_type[types],
            directions=directions,
        )
    else:
        directions, _ = leading_directions(
            mean_shifts(screen.reader, screen.index, train, controls).shift, N_DIRECTIONS
        )
    tables = TrainingTables(
        genes=screen.genes,
        candidates=candidates,
        embedding=embedding.subset(genes),
        split=screen.index.named(split),
        basis=directions[:N_DIRECTIONS].astype(np.float32),
        memory=memory,
        cell_types=tuple(screen.index.cell_types[types].tolist()) if with_memory else (),
    )
    return tables, screen


def read_embedding_table(adata: AnnData, keys: ScreenKeys) -> GeneEmbedding:
    """Return the registered gene embedding.

    Raises
    ------
    KeyError
        If ``adata.uns`` does not hold it.
    """
    uns = keys.container(adata, "embedding_key").uns
    if keys.embedding_key not in uns:
        remedy = "Run ptrag_sc.pp.gene_embedding first, or pass embedding_key=..."
        raise KeyError(absent("Gene embedding", keys.embedding_key, "adata.uns", uns, remedy))
    return GeneEmbedding.from_uns(uns[keys.embedding_key], keys.embedding_key)


def usable_conditions(
    index: ConditionIndex, embedding: GeneEmbedding, split: np.ndarray | None, *, keys: ScreenKeys, seed: int
) -> pd.DataFrame:
    """Return the conditions (codes) that can be trained or validated on or tested, each with its split.

    Conditions whose gene was excluded with ``missing="drop"``, and training or validation conditions of one cell,
    are left out with a warning that names them.
    """
    table = index.conditions
    names = index.perturbations[table["perturbation"]]
    excluded = np.array([not set(components(p, keys.sep)).isdisjoint(embedding.excluded) for p in names], dtype=bool)
    if excluded.any():
        logger.warning(
            "Left out %d conditions without gene embedding: %s.", excluded.sum(), listed(np.unique(names[excluded]))
        )
    embedding.vectors_for(np.unique(names[~excluded]), keys.sep)  # raises for genes that nobody excluded
    labels = (
        "train" if split is None else condition_split(index, split, place=f"adata.obs[{keys.split_key!r}]")["split"]
    )
    table = table.assign(split=labels)
    single = ~excluded & (table["n_cells"] < 2).to_numpy() & (table["split"] != "test").to_numpy()
    if single.any():
        rows = index.named(table[single])
        shown = listed(rows["perturbation"] + " in " + rows["cell_type"])
        logger.warning("Left %d conditions of a single cell out of training: %s.", single.sum(), shown)
    table = table[~excluded & ~single].reset_index(drop=True)
    if split is None:
        table["split"] = _own_split(index.named(table), seed, keys.sep)
    _check_controls(index, table)
    return table


def _own_split(conditions: pd.DataFrame, seed: int, sep: str) -> np.ndarray:
    """Hold out a tenth of the conditions for validation: pairs where there are several cell types, else genes.

    Where combinations tie the genes together so that holding out genes leaves less than half for training, single
    conditions are held out.
    """
    options = {"test_fraction": 0.0, "val_fraction": OWN_VALIDATION_FRACTION, "seed": seed}
    holdout = "pair" if conditions["cell_type"].nunique() > 1 else "perturbation"
    labels = draw_split(conditions, holdout=holdout, **options, sep=sep)
    if (labels == "train").sum() < len(conditions) / 2:
        numbered = conditions.assign(perturbation=np.arange(len(conditions)).astype(str))
        labels = draw_split(numbered, holdout="perturbation", **options, sep=sep)
    return labels


def _check_controls(index: ConditionIndex, table: pd.DataFrame) -> None:
    used = table.loc[table["split"] != "test", "cell_type"].unique()
    bare = [index.cell_types[t] for t in used if not len(index.controls(t))]
    if bare:
        what = f"Cell types {listed(bare)}"
        remedy = "Add their control cells, or remove these cell types."
        raise ValueError(unusable(what, "the data", "have perturbed cells but no control cells", remedy))
