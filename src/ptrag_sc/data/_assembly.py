"""How do predictions leave: how do generated sets become rows, and rows an AnnData?"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ptrag_sc._constants import COUNTS_LAYER, DEFAULT_KEY, RETRIEVAL_SUFFIX, SOURCE_SUFFIX
from ptrag_sc._validation import unusable
from ptrag_sc.data._fields import AnnOrMuData, ScreenKeys
from ptrag_sc.data._requests import Request
from ptrag_sc.data._set_sampler import CellSets
from ptrag_sc.data._user_keys import written

# Kinds of evidence: the query's own response in other cell types, components of a combination, and neighbours.
ROLES = ("own", "component", "neighbour")


class PredictedSets(NamedTuple):
    """Cells that a predictor returns for one mini-batch of B sets, and the evidence behind them.

    There are J places of evidence, each of one of the kinds :data:`ROLES`; J is 0 if nothing is retrieved.
    """

    cells: np.ndarray  # (B, S, G)
    rows: np.ndarray  # (B, J) rows of the predictor's candidates
    present: np.ndarray  # (B, J) False for a place without evidence
    role: np.ndarray  # (J,) index into ROLES
    similarity: np.ndarray  # (B, J, R), one or two spaces
    weights: np.ndarray  # (B, S, J)
    gates: np.ndarray  # (B, S, J)
    strength: np.ndarray  # (B,) norm of the mean deviation that a memory recalls, else 0


class Prediction(NamedTuple):
    """Predicted rows and the evidence behind them."""

    cells: np.ndarray | sp.csr_matrix  # (N, G) float32; dense with NaN where not predicted, CSR where there are counts
    weights: sp.csr_matrix  # (N, C) retrieval weight of each candidate
    counts: sp.csr_matrix | None = None  # (N, G) whole numbers, where predictions were realised as such


class ExpectedShifts(NamedTuple):
    """Mean shifts of B queries in one cell type, found without generating cells, and the evidence behind them."""

    shift: np.ndarray  # (B, G), without what a perturbation does to its own targets
    rows: np.ndarray  # (B, J) rows of the predictor's candidates
    weights: np.ndarray  # (B, J), 0 for a place without evidence
    responses: np.ndarray  # (B, J, G) what the candidates did


def assemble(batches: Iterable[tuple[CellSets, PredictedSets]], *, shape: tuple[int, int, int]) -> Prediction:
    """Put generated sets into row order; ``shape`` is (N, G, C)."""
    n_rows, n_genes, n_candidates = shape
    cells = np.full((n_rows, n_genes), np.nan, dtype=np.float32)
    none = np.zeros(0, dtype=np.int64)
    entries = [(none, none, np.zeros(0))]  # an empty list could not be concatenated
    for sets, predicted in batches:
        cells[sets.target[sets.target_mask]] = predicted.cells[sets.target_mask]
        counts = sets.target_mask[:, :, None] & predicted.present[:, None, :]  # (B, S, J): no padding on either side
        weights = predicted.weights * counts
        b, s, j = np.nonzero(weights)
        entries.append((sets.target[b, s], predicted.rows[b, j], weights[b, s, j]))
    rows, columns, values = map(np.concatenate, zip(*entries, strict=True))
    matrix = sp.csr_matrix((values, (rows, columns)), shape=(n_rows, n_candidates), dtype=np.float32)
    return Prediction(cells, matrix)


def not_finite(perturbation: str, cell_type: str) -> FloatingPointError:
    """Return the error of a prediction that holds NaN or infinite values."""
    problem = "holds values that are not finite"
    remedy = "Fit the predictor anew, and look at the expression of its training cells and of the control cells."
    return FloatingPointError(unusable("The prediction", f"{perturbation!r}, {cell_type!r}", problem, remedy))


def check_shifts(shift: np.ndarray, labels: Sequence[str], cell_type: str) -> np.ndarray:
    """Return predicted shifts (B, G) of the first B labels, after checking that every value is finite.

    Raises
    ------
    FloatingPointError
        If one is not.
    """
    bad = np.flatnonzero(~np.isfinite(shift).all(1))
    if len(bad):
        raise not_finite(labels[bad[0]], cell_type)
    return shift


def source_obs(adata: AnnOrMuData, keys: ScreenKeys) -> pd.DataFrame:
    """Return the columns that predicted cells take over from their source: the user's own and the registered ones.

    The split is left out because it belongs to the source cell's condition. Columns that scvi-tools or earlier
    predictions wrote are left out too.

    Raises
    ------
    ValueError
        If a column of the user has the name of the one that the source of each predicted cell is written into.
    """
    obs = keys.expression_holder(adata).obs.copy(deep=False)
    for argument in ("perturbation_key", "cell_type_key", "batch_key"):
        column = getattr(keys, argument)
        if column is not None and column in keys.container(adata, argument).obs:
            obs[column] = keys.container(adata, argument).obs[column].array
    # scvi-tools and earlier predictions describe the source cell, not the predicted one.
    ours = written(adata, "obs")
    dropped = [c for c in obs if str(c).startswith("_scvi_") or c in ours or c == keys.split_key]
    obs = obs.drop(columns=dropped)
    if (taken := DEFAULT_KEY + SOURCE_SUFFIX) in obs:
        place, remedy = f"adata.obs[{taken!r}]", "Rename it: the name of each source cell is written under this name."
        raise ValueError(unusable("A column that ptrag_sc did not write", place, "would be replaced", remedy))
    return obs


def population_anndata(
    prediction: Prediction,
    request: Request,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    *,
    labels: tuple[str, ...],
    column: str,
    key: str,
) -> AnnData:
    """Return predicted cells as an AnnData.

    Parameters
    ----------
    prediction, request
        The rows (N) and their plan.
    obs
        Columns of every cell of the screen (:func:`source_obs`).
    var
        Genes (G) of the prediction.
    labels
        Perturbations of the call; all are categories, even if a piece holds only a few of them.
    column
        Column of ``obs`` that holds the perturbation.
    key
        Name of the prediction.
    """
    sources = obs.index[request.source].astype(str)  # (N,)
    perturbation = np.array(labels, dtype=object)[request.query - 1]  # (N,), because query q is labels[q - 1]
    obs = obs.iloc[request.source].copy()
    obs[column] = pd.Categorical(perturbation, categories=sorted(labels))
    obs[key + SOURCE_SUFFIX] = sources.to_numpy()
    obs.index = pd.Index([f"{s}-{p}" for s, p in zip(sources, perturbation, strict=True)])
    layers = {}
    if prediction.counts is not None:
        layers[COUNTS_LAYER] = prediction.counts
    weights = {key + RETRIEVAL_SUFFIX: prediction.weights}
    return AnnData(prediction.cells, obs=obs, var=var, obsm=weights, layers=layers)
