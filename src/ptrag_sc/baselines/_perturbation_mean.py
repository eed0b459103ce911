"""What if a perturbation did what it does in other cell types?"""

import numpy as np
import pandas as pd

from ptrag_sc.baselines._base import Answer, Baseline
from ptrag_sc.baselines._means import mean_by_cell_type, own_or_sum


class PerturbationMean(Baseline):
    r"""Control cells plus the mean shift of the same perturbation in other cell types.

    :math:`\hat s_{p,t} = \frac{1}{|O|}\sum_{t' \in O} s_{p,t'}`, over the cell types :math:`O` other than :math:`t`
    in which :math:`p` is a training condition. A combination that no other cell type has is the sum of its genes'
    shifts there. Where these lack too, the mean training shift of the cell type is added, as in :class:`MeanShift`.

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
    >>> PerturbationMean(adata).fit().predict(perturbations=name).n_vars
    60
    """

    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        self.of_type_, self.overall_ = mean_by_cell_type(conditions, shifts)
        self.names_, self.types_ = (conditions[c].to_numpy(dtype=str) for c in ("perturbation", "cell_type"))
        self.shifts_ = shifts

    def _shift(self, label, vector, cell_type):
        def elsewhere(name: str) -> np.ndarray | None:
            rows = (self.names_ == name) & (self.types_ != cell_type)
            return self.shifts_[rows].mean(0) if rows.any() else None

        shift = own_or_sum(label, self.keys_.sep, elsewhere)
        return Answer(self.of_type_.get(cell_type, self.overall_) if shift is None else shift)
