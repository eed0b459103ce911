"""What would a perturbation do to these control cells?"""

from collections.abc import Iterable

import scanpy as sc
from anndata import AnnData

from ptrag_sc._docs import documented
from ptrag_sc.data import Predictor


@documented
def perturb(
    adata: AnnData,
    model: Predictor,
    perturbations: str | Iterable[str],
    *,
    cell_types: str | Iterable[str] | None = None,
    n_cells: int | None = None,
    gene_embedding: object = None,
    seed: int | None = None,
    nonnegative: bool = False,
) -> AnnData:
    """Perturb control cells virtually.

    Parameters
    ----------
    adata
        Object with control cells; perturbed cells in it are ignored.
    model
        Trained :class:`ptrag_sc.PTRAG` or fitted baseline.
    {perturb_parameters}

    Returns
    -------
    New AnnData of len(perturbations) x control cells. ``X`` is dense float32 on the scale of the registered
    expression; ``var`` has the genes of the model; ``obs`` the columns of the source cell, with the perturbation
    replaced and ``ptrag_source`` naming the control cell. ``uns["ptrag"]`` and ``obsm["ptrag_retrieval"]`` are as
    written by :func:`predict`.

    Raises
    ------
    KeyError
        If a cell type does not occur, or a gene has no embedding anywhere (the closest symbols are named).
    ValueError
        If a cell type has no controls, fewer than ``n_cells``, or a combination names a gene twice.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> genes = adata.uns["gene_embedding"]["genes"][:3]
    >>> virtual = ptrag_sc.tl.perturb(adata, ptrag_sc.baselines.MeanShift(adata).fit(), genes, n_cells=20)
    >>> virtual.shape  # 3 perturbations x 2 cell types x 20 control cells
    (120, 60)
    """
    result = model.predict(
        adata,
        perturbations=perturbations,
        cell_types=cell_types,
        n_cells=n_cells,
        gene_embedding=gene_embedding,
        seed=seed,
        nonnegative=nonnegative,
    )
    sc.logging.info(
        f"generated {result.n_obs} cells of {result.obs[model.keys_.perturbation_key].nunique()} perturbations"
    )
    return result
