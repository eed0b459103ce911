"""What would a perturbation do to these control cells?"""

from collections.abc import Iterable
from pathlib import Path

import scanpy as sc
from anndata import AnnData

from ptrag_sc._docs import documented
from ptrag_sc.data import Predictor
from ptrag_sc.data._files import check_target
from ptrag_sc.data._stream import STREAMED
from ptrag_sc.tl._model import check_predictor


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
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> AnnData | Path:
    """Perturb control cells virtually.

    Parameters
    ----------
    adata
        Object with control cells; perturbed cells in it are ignored.
    model
        Trained :class:`ptrag_sc.PTRAG` or fitted baseline.
    {perturb_parameters}
    out
        None keeps the result in memory. A path that ends in ``.h5ad`` or ``.zarr``: cells are written there as they are
        generated, and memory does not grow with their number.
    overwrite
        Whether an existing file may be replaced, once the new one is complete.
    progress
        Whether a progress bar is shown while a file is written.

    Returns
    -------
    New AnnData of len(perturbations) x control cells. ``X`` is dense float32 on the scale of the registered
    expression; ``var`` has the genes of the model; ``obs`` the columns of the source cell, with the perturbation
    replaced and ``ptrag_source`` naming the control cell. ``uns["ptrag"]`` and ``obsm["ptrag_retrieval"]`` are as
    written by :func:`predict`. With ``out`` the same is in that file, and its path is returned; string columns with
    gaps are categories there, as no file holds them otherwise.

    Raises
    ------
    KeyError
        If a cell type does not occur, or a gene has no embedding anywhere (the closest symbols are named).
    ValueError
        If a cell type has no controls, fewer than ``n_cells``, a combination names a gene twice, or ``out`` has another
        suffix.
    TypeError
        If ``model`` is none, ``out`` is no path, or a column cannot be written.
    FileExistsError
        If ``out`` is there and ``overwrite`` is False.
    FileNotFoundError
        If the folder of ``out`` does not exist.

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

    What is larger than memory goes to a file, and is read back piece by piece.

    >>> import tempfile, anndata
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = ptrag_sc.tl.perturb(
    ...     adata,
    ...     ptrag_sc.baselines.MeanShift(adata).fit(),
    ...     genes,
    ...     out=f"{folder.name}/virtual.h5ad",
    ...     progress=False,
    ... )
    >>> backed = anndata.read_h5ad(path, backed="r")
    >>> backed[:5].to_memory().shape
    (5, 60)
    >>> backed.file.close()
    >>> folder.cleanup()
    """
    check_predictor(model)
    path = None if out is None else check_target(out, suffixes=STREAMED, overwrite=overwrite)
    virtual = model.virtual_cells(
        adata,
        perturbations=perturbations,
        cell_types=cell_types,
        n_cells=n_cells,
        gene_embedding=gene_embedding,
        seed=seed,
        nonnegative=nonnegative,
    )
    n_cells, n_perturbations = virtual.population.n_obs, virtual.population.n_labels
    if path is None:
        result = virtual.in_memory()
        sc.logging.info(f"generated {n_cells} cells of {n_perturbations} perturbations")
        return result
    virtual.write(path, progress=progress)
    sc.logging.info(f"wrote {n_cells} cells of {n_perturbations} perturbations to {path}")
    return path
