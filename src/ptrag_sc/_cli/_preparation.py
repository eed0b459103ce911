"""How does a lab's own screen become one that a model can be trained on? Vectors, split, scale, genes, set-up."""

import argparse
import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

import ptrag_sc
from ptrag_sc._cli._screens import on_scale, read_file, wants_counts
from ptrag_sc._constants import EMBEDDING_KEY
from ptrag_sc._validation import absent
from ptrag_sc.data import components, read_labels, read_perturbations
from ptrag_sc.datasets import select_training_genes
from ptrag_sc.retrieval import GeneEmbedding, read_embedding

logger = logging.getLogger(__name__)

MAX_GENES = 5000
N_VARIABLE_GENES = 2000
DRAWN = "ptrag_split"  # obs column of a split that is drawn here
LEFT_OUT = "left out"  # label in it of cells whose perturbed genes have no vector


class Prepared(NamedTuple):
    """A screen that is set up, and the vectors of all its genes, perturbed or measured."""

    adata: AnnData
    vectors: GeneEmbedding


def keys_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that name perturbations and cell types."""
    names = ("perturbation_key", "control", "cell_type_key", "sep")
    return {name: getattr(options, name) for name in names}


def registered(options: argparse.Namespace, path: Path, *, split_key: str | None, embed: bool = False) -> AnnData:
    """Read a screen and set it up; ``embed``: with the gene vectors that are named or in the file."""
    adata, counts_layer = on_scale(read_file(path, modality=options.modality), options, path)
    if embed:
        kept = _embed(adata, _vectors(options, adata.obs, adata.var_names, adata.uns), options)
        if not kept.all():
            adata = adata[kept].copy()
    _set_up(adata, options, counts_layer, split_key)
    return adata


def _set_up(adata: AnnData, options: argparse.Namespace, counts_layer: str | None, split_key: str | None) -> None:
    ptrag_sc.PTRAG.setup_anndata(
        adata,
        **keys_of(options),
        batch_key=options.batch_key,
        split_key=split_key,
        layer=options.layer,
        counts_layer=counts_layer,
    )


def prepare(options: argparse.Namespace, path: Path) -> Prepared:
    """Read a screen, hold conditions out, choose genes, and set it up.

    Conditions are held out first, because test cells must not choose the genes. Of an h5ad file with more genes than
    are kept the matrix stays on disk until they are chosen.
    """
    whole = read_file(path, modality=options.modality, backed=path.suffix == ".h5ad")
    vectors = _vectors(options, whole.obs, whole.var_names, whole.uns)
    labels = AnnData(obs=whole.obs.copy())
    kept = _embed(labels, vectors, options)  # (n,)
    split_key = options.split_key
    if split_key is None:
        split_key = DRAWN
        whole.obs[DRAWN] = _drawn(labels[kept].copy(), options).reindex(whole.obs_names).fillna(LEFT_OUT)
    else:
        read_labels(whole.obs, split_key)  # refused before the expression is read
    adata, counts_layer = _chosen(whole, options, split_key, path)
    if not kept.all():
        adata = adata[kept].copy()
    adata.uns[EMBEDDING_KEY] = labels.uns[EMBEDDING_KEY]
    _set_up(adata, options, counts_layer, split_key)
    return Prepared(adata, vectors)


def _vectors(options: argparse.Namespace, obs: pd.DataFrame, measured: pd.Index, uns: Any) -> GeneEmbedding:
    """Return the vectors of perturbed and measured genes.

    Raises
    ------
    KeyError
        If none are named and the file has none.
    """
    source = options.gene_embedding
    if source is None:
        if EMBEDDING_KEY not in uns:
            remedy = "Pass --gene-embedding FILE (or genept)."
            raise KeyError(absent("Gene embedding", EMBEDDING_KEY, "adata.uns", uns, remedy))
        return GeneEmbedding.from_uns(uns[EMBEDDING_KEY], EMBEDDING_KEY)
    labels = read_perturbations(obs, options.perturbation_key, control=options.control, sep=options.sep)
    found = set(labels) - {options.control}
    perturbed = {gene for label in found for gene in components(label, options.sep)}
    # Those that were measured too, so that the model can be asked about them.
    return read_embedding(source, genes=perturbed | set(measured), missing="drop")


def _embed(labels: AnnData, vectors: GeneEmbedding, options: argparse.Namespace) -> np.ndarray:
    """Write the vectors of the perturbed genes; return which cells (n,) can be used, because they have theirs."""
    keys = keys_of(options)
    del keys["cell_type_key"]
    table = pd.DataFrame(vectors.vectors, index=vectors.genes)
    ptrag_sc.pp.gene_embedding(labels, table, **keys, missing="drop", source_name=vectors.source)
    excluded = set(labels.uns[EMBEDDING_KEY]["excluded"])
    names, codes = np.unique(
        read_perturbations(labels.obs, options.perturbation_key, control=options.control, sep=options.sep).astype(str),
        return_inverse=True,
    )
    usable = [name == options.control or excluded.isdisjoint(components(name, options.sep)) for name in names]
    return np.array(usable)[codes]


def _drawn(labels: AnnData, options: argparse.Namespace) -> pd.Series:
    """Return train, val or test for every cell, by condition."""
    holdout: Literal["pair", "perturbation", "cell_type"] = "pair"
    if options.holdout is not None:
        holdout = options.holdout
    elif options.cell_type_key in labels.obs and labels.obs[options.cell_type_key].nunique() == 1:
        holdout = "perturbation"  # with one cell type, a held-out pair is a held-out perturbation
    ptrag_sc.pp.split(
        labels,
        **keys_of(options),
        holdout=holdout,
        test_cell_type=options.test_cell_type,
        test_fraction=options.test_fraction,
        val_fraction=options.val_fraction,
        seed=options.seed,
        key_added=DRAWN,
    )
    perturbed = labels.obs[labels.obs[options.perturbation_key].astype(str) != options.control]
    counted = perturbed.drop_duplicates([options.perturbation_key, options.cell_type_key])[DRAWN].value_counts()
    shown = ", ".join(f"{counted[name]} {name}" for name in ("train", "val", "test"))
    logger.info("Held out by %s: %s conditions of %d cells.", holdout, shown, labels.n_obs)
    return labels.obs[DRAWN].astype(object)


def _chosen(whole: AnnData, options: argparse.Namespace, split_key: str, path: Path) -> tuple[AnnData, str | None]:
    """Return the screen in memory, on scale, with the genes that are kept, and its layer of counts."""
    n_genes = options.n_genes
    if n_genes is None and whole.n_vars > MAX_GENES:
        n_genes = N_VARIABLE_GENES
    if n_genes is None or n_genes >= whole.n_vars:
        return on_scale(whole, options, path)
    in_place = options.size_factors is None and options.counts_layer is None and options.layer is None
    if in_place:  # read piece by piece; counts are recovered from what they became
        return select_training_genes(whole, counts=wants_counts(options), split_key=split_key, n_genes=n_genes), None
    adata, counts_layer = on_scale(whole, options, path)
    ranked = adata
    if options.layer is not None:
        ranked = AnnData(adata.layers[options.layer], obs=adata.obs, var=adata.var)
    genes = select_training_genes(ranked, counts=False, split_key=split_key, n_genes=n_genes).var_names
    return adata[:, genes].copy(), counts_layer
