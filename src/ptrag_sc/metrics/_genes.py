"""Which genes respond to a perturbation, and is that predicted?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from ptrag_sc._validation import unusable
from ptrag_sc.metrics._dense import dense

ALPHA = 0.05  # false discovery rate
MIN_GENES = 10  # below this a ratio over significant genes is noise
PSEUDOCOUNT = 1e-9
TINY = 1e-12


class DifferentialExpression(NamedTuple):
    """Test of every gene of one condition against controls, in one order of genes."""

    p_adjusted: np.ndarray  # (G,)
    log2_fold_change: np.ndarray  # (G,), not finite where a mean is not positive

    @property
    def significant(self) -> np.ndarray:
        """Whether each gene responds (G,)."""
        return self.p_adjusted < ALPHA


def differential_expression(cells: np.ndarray, control: np.ndarray) -> DifferentialExpression:
    r"""Test every gene of some cells against control cells.

    Wilcoxon rank sum test with tie correction (scanpy), p-values after Benjamini and Hochberg, and
    :math:`\log_2((a + 10^{-9}) / (b + 10^{-9}))` of the mean normalised counts a of the cells and b of the controls:
    the conventions of cell-eval2 on log-normalised input.

    Parameters
    ----------
    cells, control
        log1p of normalised counts (n, G) and (m, G), dense or sparse.

    Returns
    -------
    DifferentialExpression
        Adjusted p-values and log2 fold changes, genes in the order given.

    Raises
    ------
    ValueError
        If either has fewer than two cells.

    Examples
    --------
    >>> import numpy as np
    >>> control = np.random.default_rng(0).gamma(2.0, size=(50, 3))
    >>> differential_expression(control[:25] + np.array([0.0, 0.0, 2.0]), control).significant
    array([False, False,  True])
    """
    return wilcoxon_tests([cells], control)[0]


def wilcoxon_tests(conditions: Sequence[np.ndarray], control: np.ndarray) -> list[DifferentialExpression]:
    """Return :func:`differential_expression` of several conditions, which share one preparation of the controls."""
    sizes = [group.shape[0] for group in (control, *conditions)]
    for size, name in zip(sizes, ["the controls", *["the condition"] * len(conditions)], strict=True):
        if size < 2:
            raise ValueError(unusable("Cells", name, f"number {size}, a test needs two", "Leave such conditions out."))
    names = ["control", *(str(i) for i in range(len(conditions)))]
    stack = np.concatenate([dense(group) for group in (control, *conditions)])  # (all cells, G), controls first
    group = pd.Categorical.from_codes(np.repeat(np.arange(len(sizes)), sizes), names)
    # Without var, genes are named "0", "1", ... so that scanpy's order can be undone below.
    adata = AnnData(stack, obs=pd.DataFrame({"group": group}, index=np.arange(len(stack)).astype(str)))
    options = {"groups": names[1:], "reference": "control", "method": "wilcoxon", "tie_correct": True}
    # Means of zero or below (predictions are not clipped) would warn in the fold changes, scanpy's and ours.
    with np.errstate(divide="ignore", invalid="ignore"):
        sc.tl.rank_genes_groups(adata, "group", use_raw=False, **options)
        means = [np.expm1(x, dtype=np.float64).mean(0) for x in np.split(stack, np.cumsum(sizes)[:-1])]  # (G,) each
        fold_changes = [np.log2((mean + PSEUDOCOUNT) / (means[0] + PSEUDOCOUNT)) for mean in means[1:]]
    found = adata.uns["rank_genes_groups"]
    tests = []
    for name, fold_change in zip(names[1:], fold_changes, strict=True):
        p_adjusted = np.empty(stack.shape[1])  # (G,)
        p_adjusted[found["names"][name].astype(int)] = found["pvals_adj"][name]
        tests.append(DifferentialExpression(p_adjusted, fold_change))
    return tests


def de_overlap(real: DifferentialExpression, predicted: DifferentialExpression) -> float:
    """Share of the N significant real genes among the N predicted ones with the largest fold changes.

    Predicted genes are taken from the significant ones, by absolute fold change (cell-eval's overlap at N).

    Parameters
    ----------
    real, predicted
        Tests of one condition against the same controls.

    Returns
    -------
    float
        Between 0 and 1; NaN if no gene is significant in the real cells (cell-eval2 counts 0).

    Examples
    --------
    >>> import numpy as np
    >>> test = DifferentialExpression(np.array([0.01, 0.01, 0.9]), np.array([2.0, -1.0, 0.0]))
    >>> de_overlap(test, DifferentialExpression(np.array([0.01, 0.9, 0.01]), np.array([1.0, 0.0, 3.0])))
    0.5
    """
    n = int(real.significant.sum())
    if n == 0:
        return float("nan")
    size = np.where(predicted.significant, np.abs(_finite(predicted)), -1.0)  # (G,); -1 sorts after every real size
    # No more than are significant, so that genes without a predicted response never count.
    top = np.argsort(-size, kind="stable")[: min(n, int(predicted.significant.sum()))]
    return float(real.significant[top].sum() / n)


def de_direction(real: DifferentialExpression, predicted: DifferentialExpression) -> float:
    """Share of the significant real genes whose predicted fold change has the same sign.

    Parameters
    ----------
    real, predicted
        Tests of one condition against the same controls.

    Returns
    -------
    float
        Between 0 and 1, .5 for random signs; a fold change that is 0 or not finite agrees only with another such one.
        NaN if no gene is significant in the real cells.

    Examples
    --------
    >>> import numpy as np
    >>> test = DifferentialExpression(np.array([0.01, 0.01, 0.9]), np.array([2.0, -1.0, 0.0]))
    >>> de_direction(test, DifferentialExpression(np.array([0.9, 0.9, 0.9]), np.array([1.0, 1.0, 1.0])))
    0.5
    """
    chosen = real.significant
    if not chosen.any():
        return float("nan")
    agree = np.sign(_finite(real)) == np.sign(_finite(predicted))  # (G,)
    return float(agree[chosen].mean())


def de_jaccard(real: DifferentialExpression, predicted: DifferentialExpression) -> float:
    """Jaccard index of the sets of significant genes.

    Two empty sets have no index. Counted as agreement they would give a prediction of no change a high mean wherever
    many perturbations do nothing.

    Parameters
    ----------
    real, predicted
        Tests of one condition against the same controls.

    Returns
    -------
    float
        Between 0 and 1; NaN if no gene is significant on either side (cell-eval2 counts 1).

    Examples
    --------
    >>> import numpy as np
    >>> test = DifferentialExpression(np.array([0.01, 0.01, 0.9]), np.array([2.0, -1.0, 0.0]))
    >>> de_jaccard(test, test._replace(p_adjusted=np.array([0.01, 0.9, 0.9])))
    0.5
    """
    either = int((real.significant | predicted.significant).sum())
    if either == 0:
        return float("nan")
    return float((real.significant & predicted.significant).sum() / either)


def lfc_nmae(real: DifferentialExpression, predicted: DifferentialExpression) -> float:
    """Absolute error of the fold changes of the significant real genes, divided by their absolute size.

    Parameters
    ----------
    real, predicted
        Tests of one condition against the same controls.

    Returns
    -------
    float
        0 is best, a prediction of no change scores 1, and there is no upper bound. A predicted fold change that is not
        finite counts as no change. NaN with fewer than ten significant real genes, as in cell-eval2.

    Examples
    --------
    >>> import numpy as np
    >>> test = DifferentialExpression(np.full(10, 0.01), np.linspace(1, 2, 10))
    >>> lfc_nmae(test, DifferentialExpression(np.ones(10), np.zeros(10)))
    1.0
    """
    chosen = real.significant & np.isfinite(real.log2_fold_change)  # (G,)
    size = np.abs(real.log2_fold_change[chosen]).sum()
    if chosen.sum() < MIN_GENES or size == 0:
        return float("nan")
    return float(np.abs((_finite(predicted) - _finite(real))[chosen]).sum() / size)


def t_weights(sums: np.ndarray, squares: np.ndarray, n_cells: np.ndarray) -> np.ndarray:
    r"""Weight of every gene by how well it distinguishes one perturbation from the rest (Mejia et al. 2025).

    :math:`w \propto ((|t| - \min |t|) / (\max |t| - \min |t|))^2`, where t is Welch's statistic of the cells of the
    perturbation against the cells of all others of the cell type.

    Parameters
    ----------
    sums, squares
        Sums of the expression of the cells of every perturbation (P, G), and of its squares.
    n_cells
        Number of cells (P,).

    Returns
    -------
    numpy.ndarray
        Weights (P, G), rows summing to 1; equal weights if every t is the same; NaN if a perturbation or the rest of
        them has fewer than two cells.

    Examples
    --------
    >>> import numpy as np
    >>> sums, squares = np.array([[0.0, 9.0], [0.0, 0.0]]), np.array([[3.0, 30.0], [3.0, 3.0]])
    >>> t_weights(sums, squares, np.array([3, 3]))
    array([[0., 1.], [0., 1.]])
    """
    rest = n_cells.sum() - n_cells
    usable = (n_cells > 1) & (rest > 1)  # (P,), of which P' are
    n = n_cells[usable, None].astype(np.float64)  # (P', 1)
    m = rest[usable, None].astype(np.float64)
    own = sums[usable]  # (P', G)
    own_squares = squares[usable]
    # The others' sums are the total less the own ones, so the cost does not grow with the square of P.
    other = sums.sum(0) - own
    other_squares = squares.sum(0) - own_squares
    error = np.sqrt(_squared_error(own, own_squares, n) + _squared_error(other, other_squares, m))
    t = np.abs(own / n - other / m) / np.maximum(error, TINY)
    low = t.min(1, keepdims=True)  # (P', 1)
    high = t.max(1, keepdims=True)
    spread = np.where(high > low, high - low, 1.0)
    found = np.where(high > low, np.square((t - low) / spread), 1.0)
    weights = np.full(sums.shape, np.nan)  # (P, G)
    weights[usable] = found / found.sum(1, keepdims=True)
    return weights


def _squared_error(sums: np.ndarray, squares: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the squared standard error of the means (P, G)."""
    return np.maximum(squares - sums**2 / n, 0) / (n - 1) / n


def _finite(test: DifferentialExpression) -> np.ndarray:
    """Return the fold changes (G,), 0 instead of what is not finite."""
    return np.where(np.isfinite(test.log2_fold_change), test.log2_fold_change, 0.0)
