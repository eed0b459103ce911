"""Which control cells is each of two shifts measured from, so that they share no noise?"""

from dataclasses import replace

import numpy as np

from ptrag_sc.data import ConditionIndex, ControlMeans, Screen, control_means
from ptrag_sc.data._set_sampler import name_hash

SEED = 0  # of the halves: every comparison of a screen has the same ones


def control_halves(screen: Screen) -> tuple[ControlMeans, ControlMeans]:
    r"""Return the mean controls of two disjoint halves of the control cells of every cell type.

    Shifts :math:`x - c` of a prediction and of the truth that are measured from the same n controls share the noise of
    c, which correlates them even if nothing responds. A prediction starts from control cells, and a shift that was
    learned from these n controls holds the noise of their mean once more, with the other sign:
    :math:`c_\text{source} - c`. Its covariance with the mean of one half is 0 on average over both ways to assign the
    halves, whichever cells are the source: :math:`\operatorname{cov}(c_\text{source}, c) = \operatorname{var}(c)`. So
    learned predictions measured from one half do not share noise with a truth measured from the other one. A shift
    that does not come from these controls (no effect, or knowledge from elsewhere) leaves the noise of the source in
    the prediction, and is scored too low by as much as learned ones were too high.

    Parameters
    ----------
    screen
        The screen. Each batch is halved by a hash of the cell names, so that the order of the cells does not matter.

    Returns
    -------
    tuple of two ControlMeans
        A batch without controls in a half has the mean of its cell type in that half; NaN where a cell type has fewer
        than two controls.
    """
    index = screen.index
    rows = np.flatnonzero(index.is_control)
    # By batch, and within it by hash, or by name if two hashes are equal. The batches of a cell type follow each other.
    keys = screen.names[rows].astype(str), name_hash(screen.names[rows], SEED), index.batch[rows]
    rows = rows[np.lexsort(keys)]
    cell_type = index.cell_type[rows]  # ascending
    # Every other cell, counted within the cell type: batches of odd size then take turns in which half is the larger.
    place = np.arange(len(rows)) - np.searchsorted(cell_type, cell_type)
    first, second = (_only(index, rows[place % 2 == half]) for half in (0, 1))
    means = control_means(screen.reader, first), control_means(screen.reader, second)
    means[0].cell_type[np.isnan(means[1].cell_type)] = np.nan  # a single control is in the first half
    return means


def _only(index: ConditionIndex, controls: np.ndarray) -> ConditionIndex:
    """Return an index in which only these rows are control cells; the perturbation of the others is unknown."""
    perturbation = np.where(index.is_control, -1, index.perturbation)  # (n,)
    perturbation[controls] = index.control
    return replace(index, perturbation=perturbation)
