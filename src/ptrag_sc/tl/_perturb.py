"""What would a perturbation do to these control cells?"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import scanpy as sc
from anndata import AnnData

from ptrag_sc._docs import documented
from ptrag_sc.data import Predictor
from ptrag_sc.data._cluster import check_client, write_by_workers
from ptrag_sc.data._files import check_target
from ptrag_sc.data._gene_names import MissingGenes
from ptrag_sc.data._run import Counts
from ptrag_sc.data._sizes import NCells
from ptrag_sc.data._stream import STREAMED
from ptrag_sc.tl._effects import effects_of
from ptrag_sc.tl._model import check_predictor


@documented
def perturb(
    adata: AnnData,
    model: Predictor,
    perturbations: str | Iterable[str],
    *,
    cell_types: str | Iterable[str] | None = None,
    n_cells: NCells = None,
    gene_embedding: object = None,
    seed: int | None = None,
    counts: Counts = "auto",
    nonnegative: bool = False,
    missing_genes: MissingGenes = "error",
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    client: object = None,
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
        None: the result is kept in memory. A path that ends in ``.h5ad`` or ``.zarr``: cells are written to it as they
        are generated, so memory does not grow with their number.
    overwrite
        Whether an existing file may be replaced. It is replaced only when the new one is complete.
    progress
        Whether to show a progress bar while a file is written.
    client
        None: this process generates all cells. A :class:`dask.distributed.Client` of the extra ``dask``: the workers of
        its cluster do, and write ``out``, a zarr store that all of them see under the same path
        (:doc:`/beyond_one_machine`).

    Returns
    -------
    AnnData or Path
        A new AnnData of len(perturbations) x control cells. ``X`` is on the scale of the registered expression: CSR
        with the zeros of real cells where counts are known, beside ``layers["counts"]``, else dense float32. ``var``
        has the genes of the model, and ``obs`` has the columns of the source cell, with the perturbation replaced and
        the name of the control cell in ``ptrag_source``. ``uns["ptrag"]`` and ``obsm["ptrag_retrieval"]`` are those
        that :func:`predict` writes. ``uns["ptrag"]["effects"]`` holds the predicted effects on every gene, with
        intervals, for :func:`effect` and :func:`effect_table`. If ``out`` is given, the same object is in that file and
        its path is returned; string columns with gaps become categories there, because a file cannot hold them
        otherwise.

    Warnings
    --------
    Do not test virtual cells against control cells: their number is chosen by you, so any difference becomes
    significant. Rank genes by their shift and read the interval (:doc:`/which_genes`).

    Raises
    ------
    KeyError
        If a cell type does not occur, or a gene has no embedding anywhere (the closest symbols are named).
    ValueError
        If a cell type has no control cells or fewer than ``n_cells``, a combination names a gene twice, ``out`` has
        another suffix, or ``client`` is given without an ``out`` that ends in ``.zarr``.
    ImportError
        If ``client`` is given and dask.distributed is not installed.
    TypeError
        If ``model`` is not a fitted model, ``out`` is no path, ``client`` is no client, or a column cannot be written.
    FileExistsError
        If ``out`` exists and ``overwrite`` is False, or is a folder that holds more than the store of an AnnData.
    FileNotFoundError
        If the folder of ``out`` does not exist.
    OSError
        If the disk is full or has too little space.

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

    A result that is larger than memory can be written to a file, and read back piece by piece.

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
    path = None
    if out is not None:  # checked first, because cells can take hours to generate
        path = check_target(out, suffixes=STREAMED, overwrite=overwrite)
    if client is not None:
        check_client(client, path)
    virtual = model.virtual_cells(
        adata,
        perturbations=perturbations,
        cell_types=cell_types,
        n_cells=n_cells,
        gene_embedding=gene_embedding,
        seed=seed,
        counts=counts,
        nonnegative=nonnegative,
        missing_genes=missing_genes,
    )
    effects = effects_of(model, virtual.run, virtual.population.cell_types, asked=virtual.population.asks)
    if effects is not None:
        virtual = replace(virtual, further={"effects": effects})
    planned = f"{virtual.population.n_obs} cells of {virtual.population.n_labels} perturbations"
    if path is None:
        result = virtual.in_memory()
        sc.logging.info(f"generated {planned}")
        return result
    if client is None:
        virtual.write(path, progress=progress, overwrite=overwrite)
    else:
        write_by_workers(virtual, path, client, progress=progress, overwrite=overwrite)
    sc.logging.info(f"wrote {planned} to {path}")
    return path
