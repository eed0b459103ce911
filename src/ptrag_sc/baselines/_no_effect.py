"""What if nothing happened?"""

import numpy as np
import pandas as pd

from ptrag_sc.baselines._base import Answer, Baseline


class NoEffect(Baseline):
    """Unchanged control cells: the floor that every model should beat.

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
    >>> predicted = NoEffect(adata).fit().predict(perturbations=name)
    >>> (predicted.X != adata[predicted.obs["ptrag_source"]].X).nnz
    0
    """

    _changes_targets = False

    def _learn(self, conditions: pd.DataFrame, shifts: np.ndarray) -> None:
        pass  # a shift of zero needs no training data

    def _shift(self, label: str, vector: np.ndarray | None, cell_type: str) -> Answer:
        return Answer(np.zeros(len(self.genes_)))
