"""Which perturbations are asked about, and what is known of each before its effect is predicted?"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc.data import Predictor

EVIDENCE = ("measured", "other cell type", "embedding", "none")
ROWS_AT_ONCE = 1024


class Candidates(NamedTuple):
    """Q candidates, and what is known of them before a signature is looked at."""

    labels: tuple[str, ...]
    vectors: np.ndarray | None  # (Q, D)
    evidence: np.ndarray  # (Q,) position in EVIDENCE
    similarity: np.ndarray  # (Q,) with the nearest measured perturbation, NaN without vectors
    nearest: np.ndarray  # (Q,) its name, "" without one


def known_candidates(
    model: Predictor, labels: tuple[str, ...], adata: AnnData, cell_type: str, gene_embedding: object
) -> Candidates:
    """Return candidates with the evidence for each."""
    vectors = model.resolve(labels, adata, gene_embedding)
    known = model.known_conditions_
    here = known["cell_type"] == cell_type
    measured = np.unique(known.loc[here, "perturbation"].to_numpy(dtype=str))
    elsewhere = set(known.loc[~here, "perturbation"])
    otherwise = EVIDENCE.index("none" if vectors is None else "embedding")
    is_here = np.isin(labels, measured)  # (Q,)
    evidence = np.where([label in elsewhere for label in labels], EVIDENCE.index("other cell type"), otherwise)
    evidence[is_here] = EVIDENCE.index("measured")
    if not len(measured):  # then all that is known comes from elsewhere
        measured = np.unique(known["perturbation"].to_numpy(dtype=str))
    similarity, nearest = np.full(len(labels), np.nan), np.full(len(labels), "", dtype=object)
    if vectors is not None:
        table = model.resolve(tuple(measured), adata, gene_embedding)
        assert table is not None
        own = pd.Index(measured).get_indexer(list(labels))  # (Q,)
        for start in range(0, len(labels), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            cosines = vectors[part] @ table.T  # (rows, P)
            itself = np.flatnonzero(own[part] >= 0)
            cosines[itself, own[part][itself]] = -np.inf
            best = cosines.argmax(1)
            similarity[part] = cosines[np.arange(len(best)), best].clip(-1, 1)
            nearest[part] = measured[best]
    return Candidates(labels, vectors, evidence, similarity, nearest)
