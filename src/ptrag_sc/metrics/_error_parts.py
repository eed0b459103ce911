r"""Where does the squared error of predicted shifts come from, part by part and without bias?

For the C conditions of one cell type let :math:`e = p - \hat\delta` be predicted minus observed shift, gene by gene.
The parts add up to :math:`e^2` exactly, whatever the noise, because the last of them is what is left:

1. *noise*: variances of the means that :math:`\hat\delta` is made of; batches that are not matched are noise too.
2. *own gene*: the remainder at genes that the perturbation targets. All further parts are of the other genes.
3. *composition* :math:`-e s`, with s the shift that a change of the composition of the cells brings.
4. *common shift* :math:`e\, \bar e_{-c}`, with :math:`\bar e_{-c}` the mean of :math:`e + s` over the other conditions.
5. *neighbours*: what remains of the squared error of the evidence alone, after the same parts 1, 3 and 4 of its own.
   Its scatter, variance between neighbours times :math:`\sum_k w_k^2`, is their disagreement; the rest is what they are
   wrong about on average.
6. *generator*: what is left. It is what the model adds to, or takes from, the error of its neighbours.

A product of two noisy means is too large by the covariance of their noise, which is subtracted. So each part has the
expectation that it would have with endless cells, and can be below 0 by chance.
"""

from typing import NamedTuple

import numpy as np

CAUSES = (
    "observed cells",
    "control cells",
    "predicted cells",
    "batches",
    "composition",
    "own gene",
    "common shift",
    "neighbours wrong",
    "neighbours disagree",
    "generator",
)


class Kernel(NamedTuple):
    """Covariance of noise between C conditions: that of c and d at gene g is ``weight[c, d] * variance[g]``."""

    weight: np.ndarray  # (C, C)
    variance: np.ndarray  # (G,)

    def diagonal(self) -> np.ndarray:
        """Return the variance of the noise of each condition (C, G)."""
        return _times(np.diag(self.weight)[:, None], self.variance)


class ErrorTerms(NamedTuple):
    """Errors of C conditions of one cell type, all (C, G) but the last."""

    error: np.ndarray  # predicted minus observed shift
    own: np.ndarray  # whether the gene is a target of the perturbation
    composition: np.ndarray  # shift that the composition of the observed cells brings
    evidence: np.ndarray  # what the neighbours say, minus observed shift
    scatter: np.ndarray  # variance between neighbours, times the sum of the squares of their weights
    has_evidence: np.ndarray  # (C,); where it is False, evidence and scatter are not read


class ErrorNoise(NamedTuple):
    """Variances of the noise in the errors; NaN where one is unknown, and then nothing is subtracted."""

    cells: np.ndarray  # (C, G) squared standard error of the mean of the observed cells
    predicted: np.ndarray  # (C, G) the same of the predicted cells
    controls: Kernel  # of the control means
    batches: Kernel  # of batches that are not matched
    cells_composition: np.ndarray  # (C, G) covariance of mean observed cells and the shift by composition
    controls_composition: tuple[Kernel, ...]  # covariances of the error of c and the shift by composition of d


def error_parts(terms: ErrorTerms, noise: ErrorNoise) -> dict[str, np.ndarray]:
    """Return the part (C, G) of the squared error of every cause in :data:`CAUSES`.

    Unknown noise is a part of NaN; what it is stays in the parts of the prediction, and the others still add up.

    Parameters
    ----------
    terms, noise
        Errors of the conditions of one cell type, and the variances of their noise.

    Examples
    --------
    One condition, two genes, of which the first is its target; nothing is noisy and nothing is retrieved:

    >>> import numpy as np
    >>> error = np.array([[3.0, 1.0]])
    >>> zero, none = np.zeros((1, 2)), Kernel(np.zeros((1, 1)), np.zeros(2))
    >>> terms = ErrorTerms(error, np.array([[True, False]]), zero, zero, zero, np.array([False]))
    >>> parts = error_parts(terms, ErrorNoise(zero, zero, none, none, zero, ()))
    >>> {cause: part.sum().item() for cause, part in parts.items() if part.any()}
    {'own gene': 9.0, 'generator': 1.0}
    """
    of_controls = noise.controls.diagonal()  # (C, G)
    of_batches = noise.batches.diagonal()  # (C, G)
    known = sum(np.nan_to_num(part) for part in (noise.cells, of_controls, of_batches))  # (C, G)
    others = ~terms.own
    predicted = noise.predicted * others
    composition, common, rest = _split(terms.error, terms, noise, known)
    # Without neighbours the evidence is the prediction itself, and neighbours have no part.
    has = terms.has_evidence[:, None]
    _, _, of_evidence = _split(np.where(has, terms.evidence, terms.error), terms, noise, known)
    disagree = np.where(has, terms.scatter * others, 0.0)
    wrong = np.where(has, of_evidence, 0.0) - disagree
    parts = (
        noise.cells,
        of_controls,
        noise.predicted,
        of_batches,
        composition,
        (np.square(terms.error) - known - noise.predicted) * terms.own,
        common,
        wrong,
        disagree,
        rest - predicted - wrong - disagree,
    )
    return dict(zip(CAUSES, parts, strict=True))


def _split(
    error: np.ndarray, terms: ErrorTerms, noise: ErrorNoise, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what composition, common shift and all else have in the squared error (C, G), without noise.

    Parameters
    ----------
    error
        Error (C, G) of the prediction or of the evidence.
    terms, noise
        Targets and composition; covariances.
    known
        Variance of the noise of the error (C, G).
    """
    others = ~terms.own
    composition = -error * terms.composition - noise.cells_composition
    for kernel in noise.controls_composition:
        composition += np.nan_to_num(kernel.diagonal())
    moved = error + terms.composition  # the error if the cells had the composition of the controls
    n_others = others.sum(0) - others  # (C, G) other conditions that do not target the gene
    mean = (moved * others).sum(0) - moved * others  # their sum, then their mean
    mean /= np.maximum(n_others, 1)
    common = error * mean
    for kernel in (noise.controls, noise.batches, *noise.controls_composition):
        between = kernel.weight - np.diag(np.diag(kernel.weight))  # (C, C)
        common -= _times(between @ others / np.maximum(n_others, 1), np.nan_to_num(kernel.variance))
    composition *= others
    common *= others
    return composition, common, (np.square(error) - known) * others - composition - common


def _times(weight: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return the product, in which an unknown variance (NaN) with weight 0 is 0."""
    return np.where(weight == 0, 0.0, weight * variance)
