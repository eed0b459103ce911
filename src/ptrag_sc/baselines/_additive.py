"""What if a perturbation and a cell type each had one effect, and the two added up?"""

import numpy as np
import pandas as pd

from ptrag_sc.baselines._base import Answer, Baseline
from ptrag_sc.baselines._means import mean_by, mean_by_cell_type, own_or_sum


class Additive(Baseline):
    r"""Control cells plus an effect of the cell type and an effect of the perturbation.

    :math:`s_{p,t} = \mu + a_t + b_p`, fitted by least squares to the shifts of the training conditions (the two-way
    layout without interaction, Yates 1934); the :math:`a_t` of cell types that share perturbations sum to zero, and
    that of a cell type without training data is zero. A perturbation that is in no training condition takes the mean
    training shift of the cell type. A combination that is in none is the sum of its genes' predicted shifts, if each
    gene is in one (the additive model of Ahlmann-Eltze et al. 2025).

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
    >>> Additive(adata).fit().predict(perturbations=name).n_vars
    60
    """

    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        self.of_type_, self.overall_ = mean_by_cell_type(conditions, shifts)
        types, type_means = mean_by(conditions["cell_type"], shifts)
        names, name_means = mean_by(conditions["perturbation"], shifts)
        measured = pd.crosstab(conditions["perturbation"].astype(str), conditions["cell_type"].astype(str))
        measured = measured.loc[names, types].to_numpy(dtype=float)
        # The perturbations are eliminated from the normal equations: what is left has one row per cell type, whatever
        # the number of perturbations. Its minimum-norm solution is the one whose effects sum to zero.
        share = measured / measured.sum(1, keepdims=True)
        system = np.diag(measured.sum(0)) - measured.T @ share
        effects = np.linalg.pinv(system, hermitian=True) @ (
            measured.sum(0)[:, None] * type_means - measured.T @ name_means
        )
        self.type_effects_ = dict(zip(types, effects, strict=True))
        self.perturbation_effects_ = dict(zip(names, name_means - share @ effects, strict=True))

    def _shift(self, label, vector, cell_type):
        of_type = self.type_effects_.get(cell_type, 0.0)

        def single(name: str) -> np.ndarray | None:
            return self.perturbation_effects_[name] + of_type if name in self.perturbation_effects_ else None

        shift = own_or_sum(label, self.keys_.sep, single)
        return Answer(self.of_type_.get(cell_type, self.overall_) if shift is None else shift)
