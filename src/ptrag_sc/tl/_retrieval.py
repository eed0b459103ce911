"""Which measured perturbations does the model retrieve for a query, in which cell type?"""

from collections.abc import Iterable
from functools import partial
from typing import Literal

import scanpy as sc
from anndata import AnnData

from ptrag_sc._constants import DEFAULT_KEY, SETUP_KEY
from ptrag_sc._validation import check_key
from ptrag_sc.data._user_keys import check_free
from ptrag_sc.model import PTRAG
from ptrag_sc.retrieval import cell_type_specificity
from ptrag_sc.tl._model import check_predictor


def retrieval(
    adata: AnnData,
    model: PTRAG,
    *,
    perturbations: str | Iterable[str] | None = None,
    cell_types: str | Iterable[str] | None = None,
    gene_embedding: object = None,
    null: Literal["random", "shuffled"] | None = None,
    seed: int = 0,
    key_added: str = DEFAULT_KEY,
) -> None:
    """Write the retrieval table of some perturbations without predicting cells, and on demand a null table.

    A retrieval must be compared with one that has no information. With ``null="random"`` the model receives candidates
    drawn at random: if it selects these as often as the nearest ones, its selection does not depend on relevance.
    ``null="shuffled"`` keeps all numbers and permutes the names of the candidates: the null of any statement about
    *which* perturbations were selected, such as an enrichment.

    Parameters
    ----------
    adata
        Object with control cells.
    model
        Trained model.
    perturbations
        None: all that the model was set up with.
    cell_types
        None: all that have control cells.
    gene_embedding
        Table for genes that are neither in the model nor in ``adata``.
    null
        Which null table to write too. None: no such table.
    seed
        Seed of the null table.
    key_added
        Key in ``.uns``; its other entries are kept.

    Returns
    -------
    None
        Written are, in ``.uns[key_added]``,

        - ``retrieval``: ``perturbation``, ``cell_type``, ``candidate``, ``role`` (neighbour, own or component),
          ``rank`` (0 nearest), ``similarity`` (cosine), ``weight`` (mean over cells), ``selected`` (share of cells with
          an open gate),
        - ``retrieval_null``: the same columns, only if ``null`` is given,
        - ``specificity``: for each perturbation and pair of cell types the Jaccard index of the candidates that at
          least half of the cells select, and ``chance``, its exact expectation for random draws of the same sizes,
        - ``candidates``: names of the columns of ``.obsm[key_added + "_retrieval"]``.

    Raises
    ------
    KeyError
        If a cell type does not occur or a gene has no embedding.
    TypeError
        If ``model`` is not a fitted model.
    ValueError
        If ``null`` is another value.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> model = ptrag_sc.PTRAG(adata, n_candidates=4, n_hidden=16, n_layers=1)
    >>> ptrag_sc.tl.retrieval(adata, model, perturbations=str(model.candidates_[0]))
    >>> len(adata.uns["ptrag"]["retrieval"])  # 2 cell types x 4 candidates and the query's own response elsewhere
    10
    """
    check_predictor(model, PTRAG)
    check_key(key_added, "tl.retrieval", taken=(model.keys_.embedding_key, SETUP_KEY))
    check_free(adata, uns=[key_added])
    retrieve = partial(
        model.get_retrieval,
        adata,
        perturbations=perturbations,
        cell_types=cell_types,
        gene_embedding=gene_embedding,
    )
    table = retrieve()
    written = {
        "candidates": model.candidates_.astype(object),
        "retrieval": table,
        "specificity": cell_type_specificity(table),
    }
    if null is not None:
        written["retrieval_null"] = retrieve(null=null, seed=seed)
    kept = {"params": model.params()}
    if key_added in adata.uns:
        kept = dict(adata.uns[key_added])
        kept.pop("retrieval_null", None)  # of an earlier call: it would not belong to this retrieval
    adata.uns[key_added] = {**kept, **written}
    sc.logging.info(f"added .uns[{key_added!r}]['retrieval'] ({len(table)} rows)")
