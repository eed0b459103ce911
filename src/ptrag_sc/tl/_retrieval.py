"""Which measured perturbations does the model consult for a query, in which cell type?"""

from collections.abc import Iterable
from typing import Literal

import scanpy as sc
from anndata import AnnData

from ptrag_sc._constants import DEFAULT_KEY, SETUP_KEY
from ptrag_sc._validation import check_key
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
    """Write the retrieval table of some perturbations without predicting cells, and what chance would give.

    A retrieval can be read only beside one that knows nothing. ``null="random"`` shows the model candidates drawn at
    random: if it selects these as often as the nearest ones, its selection says nothing about relevance.
    ``null="shuffled"`` keeps all numbers and deals the names of the candidates anew: the null of any statement about
    *which* perturbations were selected, such as an enrichment.

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
    null
        Chance retrieval that is written too; None writes none.
    seed
        Of the chance retrieval.
    key_added
        What is written replaces entries of ``.uns[key_added]``; the rest of it is kept.

    Returns
    -------
    None. Written are, in ``.uns[key_added]``,

    - ``retrieval``: ``perturbation``, ``cell_type``, ``candidate``, ``rank`` (0 nearest), ``similarity`` (cosine),
      ``weight`` (mean over cells), ``selected`` (share of cells with an open gate),
    - ``retrieval_null``: the same columns, with ``null`` only,
    - ``specificity``: for each perturbation and pair of cell types the Jaccard index of what at least half of the cells
      select, and ``chance``, its exact expectation for random draws of the same sizes,
    - ``candidates``: names of the columns of ``.obsm[key_added + "_retrieval"]``.

    Raises
    ------
    KeyError
        If a cell type does not occur or a gene has no embedding.
    TypeError
        If ``model`` is none.
    ValueError
        If ``null`` is something else.

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
    asked = {"perturbations": perturbations, "cell_types": cell_types, "gene_embedding": gene_embedding}
    table = model.get_retrieval(adata, **asked)
    written = {"candidates": model.candidates_.astype(object), "retrieval": table}
    written["specificity"] = cell_type_specificity(table)
    if null is not None:
        written["retrieval_null"] = model.get_retrieval(adata, **asked, null=null, seed=seed)
    kept = dict(adata.uns[key_added]) if key_added in adata.uns else {"params": model.params()}
    kept.pop("retrieval_null", None)  # of another call
    adata.uns[key_added] = {**kept, **written}
    sc.logging.info(f"added .uns[{key_added!r}]['retrieval'] ({len(table)} rows)")
