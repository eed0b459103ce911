"""What if a perturbation did what it does in other cell types?"""

import numpy as np
import pandas as pd

from ptrag_sc.baselines._base import Answer, Baseline
from ptrag_sc.baselines._means import mean_by_cell_type, own_or_sum


class PerturbationMean(Baseline):
    r"""Control cells plus the mean shift of the same perturbation in other cell types.

    :math:`\hat s_{p,t} = \frac{1}{|O|}\sum_{t' \in O} s_{p,t'}`, over the cell types :math:`O` other than :math:`t`
    in which :math:`p` is a training condition. If a combination was measured in no other cell type, its genes' shifts
    there are summed. If a gene is missing too, the mean training shift of the cell type is added, as in
    :class:`MeanShift`.

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
        self.names_ = conditions["perturbation"].to_numpy(dtype=str)  # (C,)
        self.types_ = conditions["cell_type"].to_numpy(dtype=str)  # (C,)
        self.shifts_ = shifts  # (C, G)

    def _shift(self, label: str, vector: np.ndarray | None, cell_type: str) -> Answer:
        def elsewhere(name: str) -> np.ndarray | None:
            # Its shift in this cell type is left out, so that a training condition is predicted like a held-out one.
            rows = (self.names_ == name) & (self.types_ != cell_type)  # (C,)
            if not rows.any():
                return None
            return self.shifts_[rows].mean(0)

        shift = own_or_sum(label, self.keys_.sep, elsewhere)
        if shift is None:
            shift = self.of_type_.get(cell_type, self.overall_)
        return Answer(shift)
