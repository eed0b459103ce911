"""Does a predictor leave alone what nothing was done to?"""

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc.data import Predictor
from ptrag_sc.data._requests import request_cells
from ptrag_sc.data._set_sampler import name_hash
from ptrag_sc.metrics import Reference, energy_distance

LEAST = 4  # control cells of a cell type: two for each sample


def null_error(adata: AnnData, model: Predictor, *, reference: Reference, seed: int = 0) -> pd.DataFrame:
    """Energy distance between control cells that were predicted under no perturbation and other control cells.

    The control cells of each cell type are halved by name: one half passes through the model as the control, the other
    is what they should still look like. The distance is that of :func:`ptrag_sc.metrics.energy_distance`
    (2E-E-E, U-statistic, in the principal components of the reference): 0 in expectation for a model that changes
    nothing.

    Parameters
    ----------
    adata
        Object with control cells.
    model
        Trained :class:`ptrag_sc.PTRAG` or fitted baseline.
    reference
        Principal components from training cells.
    seed
        Of the halves.

    Returns
    -------
    Columns ``cell_type``, ``value``, ``floor`` (the same with the first half as it is), ``n_cells``; cell types
    with fewer than four control cells are left out.

    Raises
    ------
    ValueError
        If the expression cannot be used or the model is not fitted.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> reference = ptrag_sc.metrics.Reference.from_adata(adata)
    >>> table = null_error(adata, ptrag_sc.baselines.MeanShift(adata).fit(), reference=reference)
    >>> bool((table["value"] == table["floor"]).all())  # baselines shift perturbed conditions only
    True
    """
    screen = model.read(adata)
    index, order = screen.index, name_hash(screen.names, seed)
    run, rows = model.run(adata, screen, (), seed=None), []
    for t, name in enumerate(index.cell_types):
        controls = index.controls(t)
        if len(controls) < LEAST:
            continue
        controls = controls[np.argsort(order[controls], kind="stable")]
        through, other = np.sort(controls[::2]), np.sort(controls[1::2])
        assigned = np.full(index.n_obs, -1)
        assigned[through] = 0
        predicted = run.answer(request_cells(screen, assigned, set_size=model.set_size_, seed=None)).cells[through]
        real, before = (reference.project(screen.reader.rows(half)) for half in (other, through))
        value, floor = (energy_distance(real, cells) for cells in (reference.project(predicted), before))
        rows.append((name, value, floor, len(through)))
    return pd.DataFrame(rows, columns=["cell_type", "value", "floor", "n_cells"])
