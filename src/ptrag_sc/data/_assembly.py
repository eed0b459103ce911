"""How do predictions leave: how do generated sets become rows, and rows an AnnData?"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ptrag_sc._constants import PREDICTED_SUFFIX, RETRIEVAL_SUFFIX, SOURCE_SUFFIX
from ptrag_sc.data._fields import ScreenKeys
from ptrag_sc.data._requests import Request
from ptrag_sc.data._set_sampler import CellSets

# Kinds of evidence: the query's own response in other cell types, components of a combination, and neighbours.
ROLES = ("own", "component", "neighbour")


class PredictedSets(NamedTuple):
    """Cells that a predictor returns for one mini-batch of B sets, and what they rest on.

    J places of evidence: :data:`ROLES` says of which kinds. J is 0 where nothing is retrieved.
    """

    cells: np.ndarray  # (B, S, G)
    rows: np.ndarray  # (B, J) of the predictor's candidates
    present: np.ndarray  # (B, J)
    role: np.ndarray  # (J,) index into ROLES
    similarity: np.ndarray  # (B, J, R), one or two spaces
    weights: np.ndarray  # (B, S, J)
    gates: np.ndarray  # (B, S, J)
    strength: np.ndarray  # (B,) norm of the mean deviation that a memory recalls, else 0


class Prediction(NamedTuple):
    """Predicted rows and what they rest on."""

    cells: np.ndarray  # (N, G) float32, NaN where not predicted
    weights: sp.csr_matrix  # (N, C)


def assemble(batches: Iterable[tuple[CellSets, PredictedSets]], *, shape: tuple[int, int, int]) -> Prediction:
    """Put generated sets into row order; ``shape`` is (N, G, C)."""
    n_rows, n_genes, n_candidates = shape
    cells = np.full((n_rows, n_genes), np.nan, dtype=np.float32)
    entries = []
    for sets, predicted in batches:
        cells[sets.target[sets.target_mask]] = predicted.cells[sets.target_mask]
        weights = predicted.weights * (sets.target_mask[:, :, None] & predicted.present[:, None, :])
        b, s, k = np.nonzero(weights)
        entries.append((sets.target[b, s], predicted.rows[b, k], weights[b, s, k]))
    rows, columns, values = (np.concatenate(e) for e in zip(*entries, strict=True)) if entries else ([], [], [])
    weights = sp.csr_matrix((values, (rows, columns)), shape=(n_rows, n_candidates), dtype=np.float32)
    return Prediction(cells, weights)


def source_obs(adata, keys: ScreenKeys) -> pd.DataFrame:
    """Return what predicted cells take over from their source: the user's own obs columns and the registered ones.

    The split is left out, as it speaks of the source cell's condition, and so is what earlier predictions wrote.
    """
    obs = keys.expression_holder(adata).obs.copy(deep=False)
    for argument in ("perturbation_key", "cell_type_key", "batch_key"):
        column = getattr(keys, argument)
        if column is not None:
            obs[column] = keys.container(adata, argument).obs[column].array
    written = {name + suffix for name in adata.uns for suffix in (SOURCE_SUFFIX, PREDICTED_SUFFIX)}
    dropped = [c for c in obs if str(c).startswith("_scvi_") or c in written or c == keys.split_key]
    return obs.drop(columns=dropped)


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
        The rows (N) and where they come from.
    obs
        Columns of every cell of the screen (:func:`source_obs`).
    var
        Genes (G) of the prediction.
    labels
        Perturbations of the call; all are categories, also of a piece that holds a few.
    column
        Where the perturbation stands in ``obs``.
    key
        Name of the prediction.
    """
    sources = obs.index[request.source].astype(str)
    obs = obs.iloc[request.source].copy()
    obs[column] = pd.Categorical(np.array(labels, dtype=object)[request.query - 1], categories=sorted(labels))
    obs[key + SOURCE_SUFFIX] = sources.to_numpy()
    obs.index = pd.Index([f"{s}-{p}" for s, p in zip(sources, obs[column], strict=True)])
    return AnnData(prediction.cells, obs=obs, var=var, obsm={key + RETRIEVAL_SUFFIX: prediction.weights})
