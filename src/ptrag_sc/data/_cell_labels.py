"""Which perturbation, cell type, batch and time has each cell of a screen, or of a query that lacks some columns?"""

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ptrag_sc._validation import absent
from ptrag_sc.data._conditions import ConditionIndex
from ptrag_sc.data._labels import read_labels, read_perturbations
from ptrag_sc.data._times import read_start

if TYPE_CHECKING:
    from ptrag_sc.data._fields import AnnOrMuData, ScreenKeys

logger = logging.getLogger(__name__)


def read_index(adata: "AnnOrMuData", keys: "ScreenKeys", *, query: bool = False) -> ConditionIndex:
    """Return the cells of an object as integers.

    Parameters
    ----------
    adata
        The object.
    keys
        Where everything is in it.
    query
        Whether predictions start from it. Then it needs neither perturbations (all cells are controls) nor batches
        (all cells are in one).

    Raises
    ------
    KeyError
        If a column does not exist.
    ValueError
        If the control label does not occur, or labels or times cannot be used.
    """
    labels = _perturbations(adata, keys, query=query)
    times = keys.container(adata, "time_key").obs
    return ConditionIndex.from_labels(
        labels,
        _cell_types(keys.container(adata, "cell_type_key").obs, keys, query=query),
        read_batches(adata, keys, query=query),
        control=keys.control,
        start=read_start(times, keys.time_key, keys.start, is_control=labels == keys.control),
    )


def _perturbations(adata: "AnnOrMuData", keys: "ScreenKeys", *, query: bool) -> np.ndarray:
    obs = keys.container(adata, "perturbation_key").obs
    key = keys.perturbation_key
    remedy = None
    if query:
        if isinstance(obs, pd.DataFrame) and key not in obs:
            logger.info("The object has no column %r: all its %d cells are taken for control cells.", key, len(obs))
            return np.full(len(obs), keys.control, dtype=object)
        remedy = f"Label control cells {keys.control!r}, or remove the column: then all cells count as control cells."
    labels = {"control": keys.controls, "sep": keys.sep}
    return read_perturbations(obs, key, **labels, remedy=remedy, every_control=False)


def _cell_types(obs: pd.DataFrame, keys: "ScreenKeys", *, query: bool) -> np.ndarray:
    key = keys.cell_type_key
    if query and isinstance(obs, pd.DataFrame) and key not in obs:
        remedy = f"Write the cell type of each cell into adata.obs[{key!r}], which the model reads."
        raise KeyError(absent("Column", key, "adata.obs", obs.columns, remedy))
    return read_labels(obs, key)


def read_batches(adata: "AnnOrMuData", keys: "ScreenKeys", *, query: bool = False) -> np.ndarray | None:
    """Return the batch of every cell (n,), None if none is registered or a query has no such column.

    Raises
    ------
    KeyError
        If the column does not exist.
    """
    if keys.batch_key is None:
        return None
    obs = keys.container(adata, "batch_key").obs
    if query and isinstance(obs, pd.DataFrame) and keys.batch_key not in obs:
        logger.info("The object has no column %r: all its cells are taken for one batch.", keys.batch_key)
        return None
    return read_labels(obs, keys.batch_key)
