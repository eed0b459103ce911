"""Where does the embedding of a perturbation asked for by name come from?"""

import numpy as np

from ptrag_sc._validation import unknown, unusable
from ptrag_sc.data import components
from ptrag_sc.retrieval._gene_embeddings import GeneEmbedding
from ptrag_sc.retrieval._sources import read_embedding


def resolve_vectors(
    labels: tuple[str, ...], own: GeneEmbedding, *, table: object = None, key: str, sep: str, extra: object = None
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
        ``adata.uns[key]`` of the AnnData at hand, if any.
    key
        Its name, for messages.
    extra
        What the user passed as ``gene_embedding``.

    Raises
    ------
    KeyError
        If a gene is in none of them.
    ValueError
        If ``extra`` has another width.
    """
    width = own.vectors.shape[1]
    tables = [own]
    if table is not None:
        at_hand = GeneEmbedding.from_uns(table, key)
        if at_hand.vectors.shape[1] == width and at_hand.source == own.source:
            tables.append(at_hand)
    if extra is not None:
        given = read_embedding(extra)
        if given.vectors.shape[1] != width:
            problem = f"has width {given.vectors.shape[1]}, the model's has {width}"
            raise ValueError(unusable("The table", "gene_embedding", problem, f"Pass vectors of {own.source!r}."))
        tables.append(given)
    genes = list(dict.fromkeys(g for label in labels for g in components(label, sep)))
    if not genes:
        return np.zeros((0, width), dtype=np.float32)
    found = {}
    for each in tables:
        position = {g: i for i, g in enumerate(each.genes)}
        found |= {g: each.vectors[position[g]] for g in genes if g in position and g not in found}
    missing = [g for g in genes if g not in found]
    if missing:
        known = np.concatenate([t.genes for t in tables])
        remedy = "Pass gene_embedding=<a table of the same source that holds it>, or check the symbol."
        raise KeyError(unknown("Gene", missing, "the model's gene embedding", known, remedy))
    merged = GeneEmbedding.from_table(np.array(genes), np.stack([found[g] for g in genes]), source=own.source)
    return merged.vectors_for(labels, sep)
