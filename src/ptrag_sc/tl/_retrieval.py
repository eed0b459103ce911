"""Which measured perturbations does the model consult for a query, in which cell type?"""

from collections.abc import Iterable

import scanpy as sc
from anndata import AnnData

from ptrag_sc._constants import DEFAULT_KEY, SETUP_KEY
from ptrag_sc._validation import check_key
from ptrag_sc.model import PTRAG


def retrieval(
    adata: AnnData,
    model: PTRAG,
    *,
    perturbations: str | Iterable[str] | None = None,
    cell_types: str | Iterable[str] | None = None,
    gene_embedding: object = None,
    key_added: str = DEFAULT_KEY,
) -> None:
    """Write the retrieval table of some perturbations without predicting cells.

    Parameters
    ----------
    adata
        Object with control cells.
    model
        Trained model.
    perturbations
        None takes all that the model was set up with.
    cell_types
        None takes all that have control cells.
    gene_embedding
        Table for genes that neither the model nor ``adata`` knows.
    key_added
        ``retrieval`` and ``candidates`` of ``.uns[key_added]`` are replaced, the rest is kept.

    Returns
    -------
    None. Written is ``.uns[key_added]["retrieval"]``: ``perturbation``, ``cell_type``, ``candidate``, ``rank``
    (0 nearest), ``similarity`` (cosine), ``weight`` (mean over cells), ``selected`` (share of cells with an open gate).

    Raises
    ------
    KeyError
        If a cell type does not occur or a gene has no embedding.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> model = ptrag_sc.PTRAG(adata, n_candidates=4, n_hidden=16, n_layers=1)
    >>> ptrag_sc.tl.retrieval(adata, model, perturbations=str(model.candidates_[0]))
    >>> len(adata.uns["ptrag"]["retrieval"])  # 2 cell types x 4 candidates
    8
    """
    check_key(key_added, "tl.retrieval", taken=(model.keys_.embedding_key, SETUP_KEY))
    table = model.get_retrieval(
        adata, perturbations=perturbations, cell_types=cell_types, gene_embedding=gene_embedding
    )
    kept = dict(adata.uns[key_added]) if key_added in adata.uns else {"params": model.params()}
    adata.uns[key_added] = {**kept, "candidates": model.candidates_.astype(object), "retrieval": table}
    sc.logging.info(f"added .uns[{key_added!r}]['retrieval'] ({len(table)} rows)")
