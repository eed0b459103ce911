"""What is asked in one call, and which candidates answer each question?"""

from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ptrag_sc.retrieval._candidates import Candidates, Queries, nearest_candidates
from ptrag_sc.retrieval._null import random_candidates
from ptrag_sc.retrieval._response_memory import MemoryView
from ptrag_sc.retrieval._two_spaces import memory_candidates


def make_queries(
    vectors: Float[Tensor, "Q D"],
    table: Float[Tensor, "P D"],
    own: Int[Tensor, " Q"],
    n_candidates: int,
    *,
    view: MemoryView | None = None,
    parts: Int[Tensor, "Q M"] | None = None,
    random_keys: np.ndarray | None = None,
) -> Queries:
    """Return the query table of one call: the control in row 0, then the given queries with their candidates.

    Parameters
    ----------
    vectors, table, own, n_candidates
        As in :func:`nearest_candidates`.
    view
        The memory, if there is one.
    parts
        As in :func:`memory_candidates`; needed with a memory.
    random_keys
        One number per query (Q,): candidates are drawn at random, fixed by it. None: the nearest.
    """
    find = nearest_candidates if random_keys is None else partial(random_candidates, keys=random_keys)
    vectors_ = torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])
    if view is None:
        return Queries(vectors_, _below(1, find(vectors, table, own, n_candidates)))
    candidates = memory_candidates(vectors, table, own, n_candidates, view, parts=parts, random_keys=random_keys)
    return Queries(vectors_, _below(len(view.low), candidates), view, parts.shape[1])


def _below(n_rows: int, candidates: Candidates) -> Candidates:
    """Return candidates below rows of nothing: those of the control."""
    return Candidates(*(torch.cat([x.new_zeros(n_rows, *x.shape[1:]), x]) for x in candidates))
