"""How does a screen get the vectors of its perturbed genes?"""

import logging
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from anndata import AnnData

from ptrag_sc._constants import EMBEDDING_KEY
from ptrag_sc._validation import absent, check_key, listed, unusable
from ptrag_sc.data._labels import components, control_names, read_perturbations, read_sep
from ptrag_sc.data._lazy import load_tables
from ptrag_sc.data._mudata import require_anndata
from ptrag_sc.data._user_keys import check_free
from ptrag_sc.retrieval._gene_embeddings import GeneEmbedding
from ptrag_sc.retrieval._same_vectors import warn_of_same_vectors
from ptrag_sc.retrieval._sources import EmbeddingSource, read_embedding

MISSING = ("error", "drop")

logger = logging.getLogger(__name__)


def gene_embedding(
    adata: AnnData,
    source: EmbeddingSource = "genept",
    *,
    perturbation_key: str,
    control: object,
    genes: Iterable[str] | None = None,
    sep: str | None = "+",
    aliases: Mapping[str, str] | None = None,
    missing: Literal["error", "drop"] = "error",
    key_added: str = EMBEDDING_KEY,
    source_name: str | None = None,
) -> None:
    """Write the vectors of the perturbed genes into ``adata.uns``.

    Every gene of every perturbation label gets one unit vector; the genes of a combination get one each. Symbols must
    agree with the source, because nothing is guessed; pass ``aliases`` for those that differ.

    Parameters
    ----------
    adata
        Annotated data of a screen, or of control cells only if ``genes`` is given.
    source
        ``"genept"`` (downloaded once, see :func:`ptrag_sc.datasets.genept`), the path of a file (.npz with ``genes``
        and ``vectors``, .parquet, .csv, .pt with a dict of tensors, .h5ad, GenePT's .pickle, which is read without
        executing it), a DataFrame indexed by symbol, a mapping of symbols to vectors, or an AnnData. An AnnData or
        .h5ad has the vectors of its genes as the only table in ``varm`` (scanpy's ``PCs`` do not count), or genes as
        observations.
    perturbation_key
        Column of ``adata.obs`` with the perturbation labels.
    control
        Label of the control cells, or a list of labels that count as one control; it has no vector.
    genes
        Further genes or combinations that are to be predicted, although no cell has them as its perturbation.
    sep
        What joins the genes of a combination in a label; None: labels are never split.
    aliases
        Symbol in the source for each gene whose label differs from it.
    missing
        For genes that the source lacks: ``"error"``, or ``"drop"`` to list them under ``excluded``. Their conditions
        are then left out of training and prediction; no cell is deleted.
    key_added
        Key of ``adata.uns``. An earlier table of this function is replaced, anything else is refused.
    source_name
        Name under which the source is kept, so that tables of one source are recognised as such: a model takes vectors
        of new genes from another AnnData only if their source has the same name. None: ``"genept"``, the name of the
        file, or the kind of object.

    Returns
    -------
    None
        Written is ``adata.uns[key_added]``: ``genes`` (n,) sorted, ``vectors`` (n, D) float32 of unit norm, ``source``,
        ``excluded`` (genes left out).

    Raises
    ------
    KeyError
        If the column does not exist, the kind of source is unknown, or genes have no vector (the message names the
        closest symbols).
    ValueError
        If the control label is absent, labels are NaN, the table cannot be used, or ``adata.uns[key_added]`` is
        something that this function did not write.

    Examples
    --------
    >>> import anndata as ad
    >>> import numpy as np
    >>> import pandas as pd
    >>> import ptrag_sc
    >>> obs = pd.DataFrame({"perturbation": ["control", "STAT1", "JAK2+STAT1"]}, index=["c1", "c2", "c3"])
    >>> adata = ad.AnnData(np.ones((3, 2), dtype=np.float32), obs=obs)
    >>> table = pd.DataFrame(np.eye(3), index=["JAK2", "STAT1", "TP53"])
    >>> ptrag_sc.pp.gene_embedding(adata, table, perturbation_key="perturbation", control="control")
    >>> adata.uns["gene_embedding"]["genes"].tolist()
    ['JAK2', 'STAT1']
    """
    if missing not in MISSING:
        raise ValueError(absent("Value", missing, "the choices of missing=", MISSING, "Pass one of them."))
    check_key(key_added, "pp.gene_embedding")
    if source_name is not None and not str(source_name).strip():
        raise ValueError(unusable(f"source_name={source_name!r}", "pp.gene_embedding", "is no name", "Pass a text."))
    require_anndata(adata, "ptrag_sc.pp.gene_embedding", column=perturbation_key)
    check_free(adata, uns=[key_added])
    sep = read_sep(sep)
    load_tables(adata)
    labels = read_perturbations(adata.obs, perturbation_key, control=control, sep=sep)
    if isinstance(genes, str):  # else its letters would be taken for genes
        genes = [genes]
    labels = labels[labels != control_names(control)[0]]
    wanted = _genes_of([*np.unique(labels.astype(str)), *(genes or ())], sep)
    if not wanted:
        remedy = "Pass genes=[...] with what is to be predicted."
        raise ValueError(unusable("Labels", f"adata.obs[{perturbation_key!r}]", "name the control only", remedy))
    symbols = {gene: str((aliases or {}).get(gene, gene)) for gene in wanted}  # of the source, by gene
    table = read_embedding(source, genes=symbols.values(), missing=missing)
    present = set(table.genes.tolist())
    # Under the gene's own name from here on, so that labels need no aliases any more.
    kept = [gene for gene, symbol in symbols.items() if symbol in present]
    excluded = [gene for gene, symbol in symbols.items() if symbol not in present]
    vectors = table.rows([symbols[gene] for gene in kept])
    name = table.source if source_name is None else str(source_name)
    _log(kept, excluded, name, labels, sep)
    embedding = GeneEmbedding.from_table(kept, vectors, source=name, excluded=excluded)
    warn_of_same_vectors(embedding)
    adata.uns[key_added] = embedding.to_uns()


def _genes_of(labels: Iterable[str], sep: str | None) -> list[str]:
    return sorted({gene for label in labels for gene in components(label, sep)})


def _log(kept: list[str], excluded: list[str], source: str, labels: np.ndarray, sep: str | None) -> None:
    """Log how many genes have a vector, and which perturbations and cells lose theirs."""
    logger.info("%d genes have a vector in %r.", len(kept), source)
    if not excluded:
        return
    found, n_cells = np.unique(labels.astype(str), return_counts=True)
    # (labels,); one missing gene is enough to exclude a combination.
    affected = np.array([not set(excluded).isdisjoint(components(label, sep)) for label in found], dtype=bool)
    logger.warning(
        "%d genes have no vector in %r and are excluded: %s. "
        "They occur in %d perturbations and %d cells; no cell was deleted.",
        *(len(excluded), source, listed(excluded), affected.sum(), n_cells[affected].sum()),
    )
