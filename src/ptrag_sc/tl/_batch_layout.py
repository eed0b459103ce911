"""How many controls does each batch need, and which perturbations cannot be told from their batch?"""

import numpy as np
import pandas as pd

from ptrag_sc.data import ScreenKeys, read_labels, read_screen
from ptrag_sc.data._fields import AnnOrMuData
from ptrag_sc.data._matching import batch_variances
from ptrag_sc.data._shifts import types_of_batches


def batch_layout(adata: AnnOrMuData) -> pd.DataFrame:
    r"""Report for every batch how many controls it has and needs, and which perturbations are in no other batch.

    An effect is measured from n perturbed cells of a batch and its :math:`n_k` controls with the squared error
    :math:`\sigma^2 (1/n + 1/n_k)`; from N controls of all batches with
    :math:`\tau^2 + \sigma^2 (1/n + 1/N)` or more, because the batch's own shift stays in it. The variances
    :math:`\tau^2` between batches and :math:`\sigma^2` between cells (summed over genes) are those of the control cells
    (one-way analysis of variance). A batch that shares its controls between J perturbations of n cells spends its cells
    best if :math:`n_k = n \sqrt J` of them are controls (Dunnett 1955).

    Parameters
    ----------
    adata
        Registered object.

    Returns
    -------
    DataFrame
        One row per cell type and batch:

        - ``cell_type``, ``batch``, ``n_controls``, ``n_perturbed``, ``n_perturbations``: what it holds;
        - ``n_needed``: controls that it should have, :math:`n \sqrt J` with the mean n;
        - ``n_break_even``: from this number of controls on, those of the batch are better than those of all batches
          (:math:`\sigma^2 / \tau^2`; infinite if batches do not differ, NaN if the cell type has a single one);
        - ``matching_weight``: the share of its controls that ``control_matching="auto"`` takes from the batch itself;
        - ``error_from_controls``: the share of the squared error of an effect measured in this batch that its controls
          make (.5: as much as the perturbed cells);
        - ``confounded``: the perturbations of the cell type that no other batch holds, joined by commas. What the batch
          does to them can be told from what they do only by the batch's controls.

    Raises
    ------
    ValueError
        If the object is not registered or cannot be read.

    See Also
    --------
    ptrag_sc.tl.diagnose : whether these and other assumptions hold.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=1)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata,
    ...     perturbation_key="perturbation",
    ...     control="non-targeting",
    ...     cell_type_key="cell_type",
    ...     batch_key="batch",
    ... )
    >>> ptrag_sc.tl.batch_layout(adata)[["batch", "n_controls", "n_needed"]].values.tolist()
    [['type_0_batch_0', 25, 56], ['type_0_batch_1', 25, 56], ['type_0_batch_2', 25, 56]]
    """
    keys = ScreenKeys.of(adata)
    screen = read_screen(adata, keys)
    index = screen.index
    names = np.full(index.n_obs, "all", dtype=object)  # (n,)
    if keys.batch_key is not None:
        names = read_labels(keys.container(adata, "batch_key").obs, keys.batch_key)
    cells = pd.DataFrame({"batch": index.batch, "perturbation": index.perturbation})[~index.is_control]
    counts = cells.value_counts(["batch", "perturbation"]).sort_index().reset_index(name="n")
    variances = batch_variances(screen.reader, index)
    of_type = types_of_batches(index)  # (n_batches,)
    counts["cell_type"] = of_type[counts["batch"]]
    alone = ~counts.duplicated(["cell_type", "perturbation"], keep=False)
    n_controls = np.bincount(index.batch[index.is_control], minlength=len(of_type))
    first = np.unique(index.batch, return_index=True)[1]  # a cell of each batch
    rows = []
    for k, t in enumerate(of_type):
        here = counts[counts["batch"] == k]
        tau, sigma = variances.between[t], variances.within[t]
        confounded, break_even = [], np.nan
        if (of_type == t).sum() > 1:
            confounded = index.perturbations[here.loc[alone, "perturbation"]].tolist()
            break_even = np.inf if tau == 0 else np.ceil(sigma / tau)
        mean = here["n"].mean() if len(here) else 0.0
        rows.append(
            {
                "cell_type": str(index.cell_types[t]),
                "batch": str(names[first[k]]),
                "n_controls": int(n_controls[k]),
                "n_perturbed": int(here["n"].sum()),
                "n_perturbations": len(here),
                "n_needed": int(np.ceil(mean * np.sqrt(len(here)))),
                "n_break_even": float(break_even),
                "matching_weight": float(variances.own_share[k]),
                "error_from_controls": _share(mean, int(n_controls[k]), len(index.controls(t)), tau, sigma),
                "confounded": ", ".join(confounded),
            }
        )
    return pd.DataFrame(rows)


def _share(n: float, own: int, every: int, tau: float, sigma: float) -> float:
    """Return the controls' share of the squared error of an effect; without own controls those of the type serve."""
    if n == 0 or every == 0 or sigma == 0:
        return np.nan
    of_controls = sigma / own if own else tau + sigma / every
    return float(of_controls / (of_controls + sigma / n))
