"""What if every perturbation did what perturbations do on average?"""

import numpy as np
import pandas as pd

from ptrag_sc.baselines._base import Answer, Baseline
from ptrag_sc.baselines._means import mean_by_cell_type


class MeanShift(Baseline):
    """Control cells plus the mean training shift of the cell type, which is the same for all perturbations.

    For a cell type without training data, it is the mean shift of all training conditions.

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> name = str(adata.uns["gene_embedding"]["genes"][0])
    >>> MeanShift(adata).fit().predict(perturbations=name).n_vars
    60
    """

    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        self.of_type_, self.overall_ = mean_by_cell_type(conditions, shifts)

    def _shift(self, label: str, vector: np.ndarray | None, cell_type: str) -> Answer:
        return Answer(self.of_type_.get(cell_type, self.overall_))
