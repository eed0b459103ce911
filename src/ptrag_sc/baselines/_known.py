"""What is known of one cell type, and how alike are perturbations, measured or not?"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from ptrag_sc._constants import EMBEDDING_KEY, SETUP_KEY
from ptrag_sc._validation import absent, listed, unknown, unusable
from ptrag_sc.baselines._responses import Responses, ResponseSpace
from ptrag_sc.data import (
    ControlMeans,
    Predictor,
    Screen,
    ScreenKeys,
    components,
    condition_split,
    control_means,
    masked_shifts,
    mean_shifts,
    measured_targets,
    read_screen,
    read_split,
)
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.retrieval import GeneEmbedding, PerturbationKernel, read_embedding

SimilaritySpace = Literal["auto", "text", "response"]
SPACES: tuple[SimilaritySpace, ...] = get_args(SimilaritySpace)


@dataclass(frozen=True)
class Known:
    """The conditions that count as known: those a model learned from, or the training conditions of a screen.

    Parameters
    ----------
    keys, screen
        The screen and where it came from.
    cell_type
        Code of the cell type in the screen, -1 if it is new.
    here
        Names of the perturbations that are known in it; those of genes without a vector are left out.
    conditions
        Codes of the known conditions of all cell types that have cells in the screen.
    controls
        Mean controls.
    """

    keys: ScreenKeys
    screen: Screen
    cell_type: int
    here: tuple[str, ...]
    conditions: pd.DataFrame
    controls: ControlMeans

    @classmethod
    def of(cls, adata: AnnOrMuData, model: Predictor | None, cell_type: str) -> "Known":
        """Read what is known from an AnnData with the cells.

        Raises
        ------
        ValueError
            If the screen cannot be read.
        """
        keys = model.keys_ if model is not None else ScreenKeys.of(adata)
        screen = model.read(adata) if model is not None else read_screen(adata, keys)
        index = screen.index
        if model is not None:
            conditions = index.coded(model.known_conditions_[["perturbation", "cell_type"]])
            has_cells = [len(index.rows(p, t)) > 0 for p, t in conditions.itertuples(index=False)]
            conditions = conditions[has_cells].reset_index(drop=True)
        else:
            conditions = index.conditions
            split = read_split(adata, keys)
            if split is not None:
                conditions = condition_split(index, split, place=f"adata.obs[{keys.split_key!r}]")
                conditions = conditions[conditions["split"] == "train"].reset_index(drop=True)
        code = int(pd.Index(index.cell_types).get_indexer([cell_type])[0])
        labels = model.known_conditions_ if model is not None else index.named(conditions)
        here = labels.loc[labels["cell_type"] == cell_type, "perturbation"].astype(str).tolist()
        if model is not None:
            here = [name for name in here if set(model.excluded_).isdisjoint(components(name, keys.sep))]
        return cls(keys, screen, code, tuple(here), conditions, control_means(screen.reader, index))

    @property
    def codes_here(self) -> pd.DataFrame:
        """The conditions (codes) of those perturbations that have cells in the screen."""
        table = self.conditions[self.conditions["cell_type"] == self.cell_type]
        names = self.screen.index.perturbations[table["perturbation"]]
        return table[np.isin(names, self.here)].reset_index(drop=True)

    def responses(self) -> Responses | None:
        """Return what perturbations did in the other cell types; None if nothing is known there.

        The cell type itself has no part in it, not even in the leading directions, so that what is held out there stays
        held out.
        """
        table = self.conditions[self.conditions["cell_type"] != self.cell_type].reset_index(drop=True)
        if table.empty:
            return None
        shifts = mean_shifts(self.screen.reader, self.screen.index, table, self.controls).shift  # (C, G)
        named = self.screen.index.named(table)
        own = measured_targets(named["perturbation"].to_numpy(), self.screen.genes, self.keys.sep)
        return ResponseSpace.of(named, masked_shifts(shifts, own, table["cell_type"].to_numpy())).overall


def perturbation_kernel(
    labels: tuple[str, ...],
    responses: Responses | None,
    adata: AnnOrMuData | None,
    model: Predictor | None,
    *,
    space: SimilaritySpace,
    gene_embedding: object,
    sep: str | None,
) -> PerturbationKernel:
    """Return the kernel of some perturbations in a space.

    Parameters
    ----------
    labels
        Perturbations.
    responses
        In other cell types, if any are known.
    adata, model, gene_embedding
        Where vectors of genes are found.
    space
        ``"text"``: by gene embedding. ``"response"``: by response in other cell types. ``"auto"``: by response where
        it is known, by gene embedding elsewhere.
    sep
        Separator of combinations.

    Raises
    ------
    KeyError
        If a gene has no vector where one is needed.
    ValueError
        If the space is unknown, or a perturbation has no response where one is needed.
    """
    if space not in SPACES:
        raise ValueError(absent("space=", space, "the known values", SPACES, "Pass one of them."))
    known, table = np.zeros(0, dtype=np.int64), np.zeros((0, 1))
    if responses is not None and space != "text":
        known, table = responses.known(labels, sep)  # (k,), (k, R)
    if len(known) == len(labels):
        return PerturbationKernel.of_responses(table)
    if space == "response":
        names = [labels[i] for i in np.setdiff1d(np.arange(len(labels)), known)]
        remedy = "Pass space='auto', which takes the gene embedding of these, or leave them out."
        problem = f"hold {len(names)} perturbations without a response in another cell type ({listed(names)})"
        raise ValueError(unusable("The perturbations", "the request", problem, remedy))
    vectors = text_vectors(labels, adata, model, gene_embedding=gene_embedding, sep=sep)  # (n, D)
    if not len(known):
        return PerturbationKernel.of_text(vectors)
    return PerturbationKernel.of_both(vectors, known, table)


def text_vectors(
    labels: tuple[str, ...],
    adata: AnnOrMuData | None,
    model: Predictor | None,
    *,
    gene_embedding: object,
    sep: str | None,
) -> np.ndarray:
    """Return the embedding (n, D) of each perturbation, from the model's table or else from that of the data or call.

    Raises
    ------
    KeyError
        If a gene has no vector, or there is no table.
    """
    if model is not None and adata is not None:
        vectors = model.resolve(labels, adata, gene_embedding)
        if vectors is not None:
            return vectors
    genes = sorted({gene for label in labels for gene in components(label, sep)})
    if gene_embedding is not None:
        remedy = "Pass gene_embedding=<a table that holds them>, or leave these perturbations out."
        table = read_embedding(gene_embedding, genes=genes, missing="drop", remedy=remedy)
    else:
        table = _table_of(adata)
    lacking = table.missing(labels, sep)
    if lacking:
        remedy = "Pass gene_embedding=<a table that holds them>, or leave these perturbations out."
        raise KeyError(unknown("Gene", lacking, "the gene embedding", table.genes, remedy))
    return table.vectors_for(labels, sep)


def _table_of(adata: AnnOrMuData | None) -> GeneEmbedding:
    """Return the gene embedding of an AnnData, registered or not."""
    uns, key = {}, EMBEDDING_KEY
    if adata is not None:
        uns = adata.uns
        if SETUP_KEY in uns:
            keys = ScreenKeys.of(adata)
            key, uns = keys.embedding_key, keys.container(adata, "embedding_key").uns
    if key not in uns:
        remedy = "Run ptrag_sc.pp.gene_embedding first, or pass gene_embedding=..."
        raise KeyError(absent("Gene embedding", key, "adata.uns", uns, remedy))
    return GeneEmbedding.from_uns(uns[key], key)
