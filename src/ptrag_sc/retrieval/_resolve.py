"""Where does the embedding of a perturbation asked for by name come from?"""

import numpy as np

from ptrag_sc._validation import unknown, unusable
from ptrag_sc.data import components
from ptrag_sc.data._predicted_labels import LEFT_OUT
from ptrag_sc.retrieval._gene_embeddings import GeneEmbedding
from ptrag_sc.retrieval._sources import read_embedding

REMEDY = "Pass gene_embedding=<a table of the same source that holds it>, or check the symbol."
SAME_DIRECTION = 0.999  # smallest cosine at which two vectors of a gene count as the same


def resolve_vectors(
    labels: tuple[str, ...],
    own: GeneEmbedding,
    *,
    table: object = None,
    key: str,
    sep: str | None,
    extra: object = None,
) -> np.ndarray:
    """Return one unit vector per canonical label (Q, D).

    Each gene is looked up in the model's own table, then in the table of the AnnData (if it has the same width and
    source), then in ``extra``.

    Parameters
    ----------
    labels
        Perturbations.
    own
        Table saved with the model.
    table
        ``adata.uns[key]`` of the AnnData of this call, if any.
    key
        Its name, for messages.
    extra
        Argument ``gene_embedding`` of the user.

    Raises
    ------
    KeyError
        If a gene is in none of them.
    ValueError
        If ``extra`` has another width.
    """
    genes = list(dict.fromkeys(g for label in labels for g in components(label, sep)))  # distinct, in order
    if not genes:
        return np.zeros((0, own.vectors.shape[1]), dtype=np.float32)
    found: dict[str, np.ndarray] = {}  # vector (D,) of each gene
    known = list(own.genes)  # for the closest symbols in a message
    # The own table first, because the model was trained with its vectors.
    _take(found, own, genes)
    if table is not None and len(found) < len(genes):
        of_adata = GeneEmbedding.from_uns(table, key)
        known += list(of_adata.genes)
        # Vectors of another source have other axes, so comparing them with the model's would mean nothing.
        if of_adata.source == own.source and _agree(own, of_adata):
            _take(found, of_adata, genes)
    lacking = [g for g in genes if g not in found]
    # Read only if needed, because it may be a large file.
    if lacking and extra is not None:
        _take(found, _read_extra(extra, own, lacking), lacking)
    missing = [g for g in genes if g not in found]
    if dropped := sorted(set(missing) & set(own.excluded)):
        remedy = "Pass gene_embedding=<a table of the same source that holds it>."
        raise KeyError(unusable(f"Gene {dropped[0]!r}", "the request", LEFT_OUT, remedy))
    if missing:
        raise KeyError(unknown("Gene", missing, "the model's gene embedding", known, REMEDY))
    merged = GeneEmbedding.from_table(np.array(genes), np.stack([found[g] for g in genes]), source=own.source)
    return merged.vectors_for(labels, sep)


def nameable_genes(own: GeneEmbedding, *, table: object = None, key: str, extra: object = None) -> list[str]:
    """Return the genes that :func:`resolve_vectors` finds a vector of, given the same tables."""
    names = dict.fromkeys(own.genes.tolist())
    if table is not None:
        of_adata = GeneEmbedding.from_uns(table, key)
        if of_adata.source == own.source and _agree(own, of_adata):
            names |= dict.fromkeys(of_adata.genes.tolist())
    if extra is not None:
        names |= dict.fromkeys(read_embedding(extra).genes.tolist())
    return list(names)


def _take(found: dict[str, np.ndarray], table: GeneEmbedding, genes: list[str]) -> None:
    """Add the vectors of genes that the table has and that are not yet found."""
    position = {gene: i for i, gene in enumerate(table.genes)}
    found.update({g: table.vectors[position[g]] for g in genes if g in position and g not in found})


def _agree(own: GeneEmbedding, other: GeneEmbedding) -> bool:
    """Return whether two tables have one width and the same directions for the genes that both have."""
    if other.vectors.shape[1] != own.vectors.shape[1]:
        return False
    shared, i, j = np.intersect1d(own.genes, other.genes, return_indices=True)
    if not len(shared):
        return True
    cosine = (own.vectors[i] * other.vectors[j]).sum(1)  # (shared,)
    return float(cosine.min()) > SAME_DIRECTION


def _read_extra(extra: object, own: GeneEmbedding, genes: list[str]) -> GeneEmbedding:
    """Return the user's table of the genes that no other table has, checked against the model's table."""
    given = read_embedding(extra, genes=genes, missing="drop", remedy=REMEDY)
    if given.vectors.shape[1] != own.vectors.shape[1]:
        problem = f"has width {given.vectors.shape[1]}, the model's has {own.vectors.shape[1]}"
        raise ValueError(unusable("The table", "gene_embedding", problem, f"Pass vectors of {own.source!r}."))
    try:
        shared = read_embedding(extra, genes=own.genes, missing="drop")
    except KeyError:  # it has none of the model's genes, so there is nothing to compare
        return given
    if not _agree(own, shared):
        problem = "gives genes other vectors than the model knows them by"
        raise ValueError(unusable("The table", "gene_embedding", problem, f"Pass vectors of {own.source!r}."))
    return given
