"""Which tables does a model compute from the training data before the first step?"""

import logging
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from ptrag_sc._validation import absent, listed, unusable
from ptrag_sc.data import (
    ConditionIndex,
    Drift,
    OwnEffects,
    Screen,
    ScreenKeys,
    Shifts,
    Spread,
    components,
    condition_split,
    draw_split,
    leading_directions,
    learn_drift,
    masked_shifts,
    matching_weights,
    mean_shifts,
    mean_shifts_and_spread,
    measured_targets,
    read_screen,
    read_split,
    reference_means,
)
from ptrag_sc.data._cell_labels import read_index
from ptrag_sc.data._draw_split import Holdout
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._levels import control_levels
from ptrag_sc.data._predicted_labels import LEFT_OUT
from ptrag_sc.data._shifts import ControlMeans, condition_sums
from ptrag_sc.retrieval import GeneEmbedding, ResponseMemory, build_memory
from ptrag_sc.retrieval._same_vectors import warn_of_same_vectors

logger = logging.getLogger(__name__)

N_DIRECTIONS = 30  # rank of the output; a full-rank output memorises conditions
MEMORY_DIRECTIONS = 100  # rank of the memory; shrinkage removes the noise of each direction
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
        Responses of the training conditions; None for a model without a memory.
    cell_types
        Names of the cell types (T,) of the memory.
    own_effects
        What the training perturbations did to their own targets.
    drift
        How control cells change from start to end; None if no time is registered.
    control_levels
        How large the expression of the control cells of each cell type is.
    """

    genes: np.ndarray
    candidates: np.ndarray
    embedding: GeneEmbedding
    split: pd.DataFrame
    basis: np.ndarray
    own_effects: OwnEffects
    memory: ResponseMemory | None = None
    cell_types: tuple[str, ...] = ()
    drift: Drift | None = None
    control_levels: dict[str, float] = field(default_factory=dict)


def training_tables(
    adata: AnnOrMuData,
    keys: ScreenKeys,
    *,
    with_memory: bool,
    control_matching: Literal["batch", "auto"],
    seed: int,
) -> tuple[TrainingTables, Screen]:
    """Read the training data and compute all tables that a model has before its first step.

    Only conditions of the training split enter the candidates, the basis and the memory.

    Raises
    ------
    KeyError
        If there is no embedding table, or genes are missing from it.
    ValueError
        If the split is unusable or a cell type has no control cells.
    """
    index = read_index(adata, keys)
    embedding = read_embedding_table(adata, keys)
    _warn_of_table(embedding, index, keys)
    split = usable_conditions(index, embedding, read_split(adata, keys), keys=keys, seed=seed)
    train = split[split["split"] == "train"]
    if train.empty:
        raise ValueError(unusable("The split", "the data", "has no training condition", "Label conditions 'train'."))
    sums = condition_sums(index, train, with_squares=with_memory)
    screen = read_screen(adata, keys, collect=[sums])
    # Vectors of test genes are kept too: a saved model can then predict them without the table of the user.
    labels = [p for p in screen.index.perturbations if p != keys.control]
    genes = sorted({g for p in labels for g in components(p, keys.sep)} & set(embedding.genes))
    candidates = np.unique(screen.index.perturbations[train["perturbation"]]).astype(str)  # (P,)
    matching = matching_weights(screen.reader, screen.index, control_matching)  # (n_batches,)
    controls = reference_means(screen, matching)
    memory = None
    cell_types: tuple[str, ...] = ()
    if with_memory:
        shifts, spread = mean_shifts_and_spread(screen.reader, screen.index, train, controls, sums)
        masked, own_effects = learn_own_effects(screen, train, shifts.shift, controls, keys)
        memory = training_memory(
            screen, train, candidates, controls, shifts=shifts._replace(shift=masked), spread=spread
        )
        directions = memory.directions.numpy()  # (L, G), the first of which are the basis too
        cell_types = tuple(screen.index.cell_types[np.unique(train["cell_type"])].tolist())
    else:
        shifts = mean_shifts(screen.reader, screen.index, train, controls, sums)
        masked, own_effects = learn_own_effects(screen, train, shifts.shift, controls, keys)
        directions, _ = leading_directions(masked, N_DIRECTIONS)  # (R, G)
    tables = TrainingTables(
        genes=screen.genes,
        candidates=candidates,
        embedding=embedding.subset(genes),
        split=screen.index.named(split),
        basis=directions[:N_DIRECTIONS].astype(np.float32),
        own_effects=own_effects,
        memory=memory,
        cell_types=cell_types,
        drift=learn_drift(screen),
        control_levels=control_levels(screen),
    )
    return tables, screen


def _warn_of_table(embedding: GeneEmbedding, index: ConditionIndex, keys: ScreenKeys) -> None:
    """Log a warning if two genes of the labels have the same vector."""
    labels = [str(name) for name in index.perturbations if name != keys.control]
    named = {gene for label in labels for gene in components(label, keys.sep)} & set(embedding.genes.tolist())
    if named:
        warn_of_same_vectors(embedding.subset(sorted(named)))


def learn_own_effects(
    screen: Screen, conditions: pd.DataFrame, shifts: np.ndarray, controls: ControlMeans, keys: ScreenKeys
) -> tuple[np.ndarray, OwnEffects]:
    """Return the masked shifts (C, G) of training conditions (codes), and what these did to their own targets."""
    named = screen.index.named(conditions)
    own = measured_targets(named["perturbation"].to_numpy(), screen.genes, keys.sep)
    masked = masked_shifts(shifts, own, conditions["cell_type"].to_numpy())
    of_type = dict(zip(screen.index.cell_types, controls.cell_type, strict=True))
    return masked, OwnEffects.learn(named, shifts, masked, own, of_type, screen.genes)


def training_memory(
    screen: Screen,
    train: pd.DataFrame,
    candidates: np.ndarray,
    controls: ControlMeans,
    *,
    shifts: Shifts,
    spread: Spread,
) -> ResponseMemory:
    """Return the memory of the training conditions (codes); its columns are their cell types, sorted."""
    directions, _ = leading_directions(shifts.shift, MEMORY_DIRECTIONS)  # (L, G)
    types = np.unique(train["cell_type"])  # (T,)
    return build_memory(
        np.searchsorted(candidates, screen.index.perturbations[train["perturbation"]].astype(str)),
        np.searchsorted(types, train["cell_type"]),
        (len(candidates), len(types)),
        shifts=shifts,
        spread=spread._replace(variance=spread.variance[types]),
        controls=controls.cell_type[types],
        directions=directions,
    )


def read_embedding_table(adata: AnnOrMuData, keys: ScreenKeys) -> GeneEmbedding:
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
    """Return the conditions (codes) that can be used in training, validation or test, each with its split.

    Two kinds are left out with a warning that names them: conditions whose gene was excluded with ``missing="drop"``,
    and training or validation conditions of one cell.
    """
    table = index.conditions
    names = index.perturbations[table["perturbation"]]
    parts = [components(p, keys.sep) for p in names]
    excluded = np.array([not set(part).isdisjoint(embedding.excluded) for part in parts], dtype=bool)  # (C,)
    if excluded.any():
        shown = listed(np.unique(names[excluded]))
        logger.warning("Left out %d conditions of which a gene %s: %s.", excluded.sum(), LEFT_OUT, shown)
    embedding.vectors_for(np.unique(names[~excluded]), keys.sep)  # raises if another gene has no vector
    table = table.assign(split="train")
    if split is not None:
        table = condition_split(index, split, place=f"adata.obs[{keys.split_key!r}]")
    single = ~excluded & (table["n_cells"] < 2).to_numpy() & (table["split"] != "test").to_numpy()  # (C,)
    if single.any():
        rows = index.named(table[single])
        shown = listed(rows["perturbation"] + " in " + rows["cell_type"])
        logger.warning("Left %d conditions of a single cell out of training: %s.", single.sum(), shown)
    table = table[~excluded & ~single].reset_index(drop=True)
    # Drawn last, so that no condition is drawn that is left out.
    if split is None:
        table["split"] = _own_split(index.named(table), seed, keys.sep)
    _check_controls(index, table)
    return table


def _own_split(conditions: pd.DataFrame, seed: int, sep: str | None) -> np.ndarray:
    """Return split labels (C,) that hold out a tenth of the conditions for validation.

    With several cell types pairs are held out, otherwise genes. If many genes share combinations, holding out genes can
    leave less than half of the conditions for training; then single conditions are held out instead.
    """

    def draw(table: pd.DataFrame, holdout: Holdout) -> np.ndarray:
        fraction = OWN_VALIDATION_FRACTION
        return draw_split(table, holdout=holdout, test_fraction=0.0, val_fraction=fraction, seed=seed, sep=sep)

    several = conditions["cell_type"].nunique() > 1
    labels = draw(conditions, "pair" if several else "perturbation")
    if (labels == "train").sum() < len(conditions) / 2:
        # With a number in place of its name every condition is a gene of its own.
        labels = draw(conditions.assign(perturbation=np.arange(len(conditions)).astype(str)), "perturbation")
    return labels


def _check_controls(index: ConditionIndex, table: pd.DataFrame) -> None:
    """Refuse training and validation conditions in cell types without control cells."""
    used = table.loc[table["split"] != "test", "cell_type"].unique()
    bare = [index.cell_types[t] for t in used if not (len(index.controls(t)) and len(index.sources(t)))]
    if bare and index.start is not None:
        what = f"Cell types {listed(bare)}"
        remedy = "Add the control cells, or remove these cell types; each needs one label at both times."
        raise ValueError(unusable(what, "the data", "lack control cells at the start or at the end", remedy))
    if bare:
        what = f"Cell types {listed(bare)}"
        remedy = "Add their control cells, or remove these cell types."
        raise ValueError(unusable(what, "the data", "have perturbed cells but no control cells", remedy))
