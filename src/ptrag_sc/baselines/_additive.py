"""What if a perturbation and a cell type each had one effect, and the two added up?"""

import numpy as np
import pandas as pd

from ptrag_sc.baselines._base import Answer, Baseline
from ptrag_sc.baselines._means import mean_by, mean_by_cell_type, own_or_sum


class Additive(Baseline):
    r"""Control cells plus an effect of the cell type and an effect of the perturbation.

    :math:`s_{p,t} = \mu + a_t + b_p`, fitted by least squares to the shifts of the training conditions (the two-way
    layout without interaction, Yates 1934). The :math:`a_t` of cell types that share perturbations sum to zero, and
    the :math:`a_t` of a cell type without training data is zero. If a perturbation occurs in no training condition,
    the mean training shift of the cell type is predicted instead. If a combination occurs in none but each of its
    genes does, the sum of the genes' predicted shifts is predicted (the additive model of Ahlmann-Eltze et al. 2025).

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
        types, type_means = mean_by(conditions["cell_type"], shifts)  # (T,), (T, G)
        names, name_means = mean_by(conditions["perturbation"], shifts)  # (P,), (P, G)
        counts = pd.crosstab(conditions["perturbation"].astype(str), conditions["cell_type"].astype(str))
        measured = counts.loc[names, types].to_numpy(dtype=float)  # (P, T), 1 if the condition is in training
        # The perturbations are eliminated from the normal equations: what is left has one row per cell type, whatever
        # the number of perturbations. Its minimum-norm solution is the one whose effects sum to zero.
        share = measured / measured.sum(1, keepdims=True)  # (P, T)
        system = np.diag(measured.sum(0)) - measured.T @ share  # (T, T)
        constants = measured.sum(0)[:, None] * type_means - measured.T @ name_means  # (T, G)
        effects = np.linalg.pinv(system, hermitian=True) @ constants  # (T, G)
        self.type_effects_ = dict(zip(types, effects, strict=True))
        self.perturbation_effects_ = dict(zip(names, name_means - share @ effects, strict=True))

    def _shift(self, label: str, vector: np.ndarray | None, cell_type: str) -> Answer:
        no_effect = np.zeros_like(self.overall_)
        of_type = self.type_effects_.get(cell_type, no_effect)  # (G,)

        def single(name: str) -> np.ndarray | None:
            if name not in self.perturbation_effects_:
                return None
            return self.perturbation_effects_[name] + of_type

        shift = own_or_sum(label, self.keys_.sep, single)
        if shift is None:
            shift = self.of_type_.get(cell_type, self.overall_)
        return Answer(shift)
