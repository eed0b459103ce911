"""Which training perturbations are near in the gene embedding or in what they did, and were measured here?"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ptrag_sc.retrieval._neighbours import CHUNK, Neighbours, nearest_neighbours
from ptrag_sc.retrieval._null import random_neighbours
from ptrag_sc.retrieval._view import MemoryView


def memory_neighbours(
    vectors: Float[Tensor, "Q D"],
    table: Float[Tensor, "P D"],
    own: Int[Tensor, " Q"],
    n_neighbours: int,
    view: MemoryView,
    *,
    components: Int[Tensor, "Q M"],
    hidden: Int[Tensor, "Q E"],
    random_keys: np.ndarray | None = None,
) -> Neighbours:
    """Return neighbours of every query in every cell type of the view, row ``q * V + v``.

    The K places are filled alternately from the rankings in the gene embedding and in the responses elsewhere, among
    other perturbations that were measured in the cell type, until K are distinct; components of the query that are
    evidence of their own are then taken out. ``similarity`` is NaN in a space where query or candidate was not
    measured; in an empty place it is 0 and NaN.

    Parameters
    ----------
    vectors, table, own
        As in :func:`nearest_neighbours`.
    n_neighbours
        K.
    view
        The memory.
    components
        Rows of the components of each query in ``table``, padded with -1; all -1 where one is not in it.
    hidden
        Rows that a query must not retrieve, padded with -1.
    random_keys
        As in :func:`random_neighbours`, which then fills the K places; None: the nearest.
    """
    found = []
    for v in range(len(view.mean)):
        cell_type = own.new_full((len(own),), v)
        is_component = view.components_present(cell_type, components)  # (Q, M)
        taken = components.masked_fill(~is_component, -1)
        of_type = view.of_cell_type(v)
        of_queries = _in_cell_type(
            vectors, table, own, n_neighbours, of_type, taken=taken, hidden=hidden, random_keys=random_keys
        )
        found.append(of_queries)
    return Neighbours(*(torch.stack(field, dim=1).flatten(0, 1) for field in zip(*found, strict=True)))


def _in_cell_type(
    vectors: Float[Tensor, "Q D"],
    table: Float[Tensor, "P D"],
    own: Int[Tensor, " Q"],
    n_neighbours: int,
    view: MemoryView,  # of one cell type
    *,
    taken: Int[Tensor, "Q M"],
    hidden: Int[Tensor, "Q E"],
    random_keys: np.ndarray | None,
) -> Neighbours:
    responses = F.normalize(view.elsewhere, dim=-1) * view.known[:, None]  # (P, L)
    is_known = (own >= 0) & view.known[own.clamp(min=0)]  # (Q,)
    query = responses[own.clamp(min=0)] * is_known[:, None]  # (Q, L)
    if random_keys is None:
        others = torch.cat([own[:, None], hidden], dim=1)  # (Q, 1 + E)
        by_text = _among(view.observed, nearest_neighbours, vectors, table, others, n_neighbours)
        by_response = _among(view.observed & view.known, nearest_neighbours, query, responses, others, n_neighbours)
        rows, present = alternate(by_text, by_response, n_neighbours)
    else:
        draw = partial(random_neighbours, keys=random_keys)
        rows, present, _ = _among(view.observed, draw, vectors, table, own, n_neighbours)
    is_taken = (rows[..., None] == taken[:, None]).any(-1)  # (Q, K)
    present = present & ~is_taken
    in_text = _cosine(vectors, table, rows) * present
    in_response = _cosine(query, responses, rows)
    has_response = is_known[:, None] & view.known[rows] & present
    in_response = in_response.masked_fill(~has_response, torch.nan)
    return Neighbours(rows * present, present, torch.stack([in_text, in_response], dim=-1))


def _among(
    allowed: Bool[Tensor, " P"],
    find: Callable[[Tensor, Tensor, Tensor, int], Neighbours],
    vectors: Float[Tensor, "Q D"],
    table: Float[Tensor, "P D"],
    own: Int[Tensor, "Q ..."],
    n_neighbours: int,
) -> Neighbours:
    """Return what ``find`` finds among the rows that are allowed, padded to K places."""
    rows = allowed.nonzero().squeeze(1)
    if not len(rows):
        empty = torch.zeros(len(vectors), n_neighbours, dtype=torch.long, device=table.device)
        return Neighbours(empty, empty.bool(), empty[..., None].to(table.dtype))
    place = torch.full((len(table) + 1,), -1, device=table.device)  # the last one is that of own = -1
    place[rows] = torch.arange(len(rows), device=table.device)
    found = find(vectors, table[rows], place[own], min(n_neighbours, len(rows)))
    missing = (0, n_neighbours - found.rows.shape[1])
    return Neighbours(
        F.pad(rows[found.rows] * found.present, missing),
        F.pad(found.present, missing),
        F.pad(found.similarity, (0, 0, *missing)),
    )


def alternate(first: Neighbours, second: Neighbours, n: int) -> tuple[Int[Tensor, "Q n"], Bool[Tensor, "Q n"]]:
    """Return the first n distinct rows of two rankings, taken in turns, and which places are filled."""
    rows = torch.stack([first.rows, second.rows], dim=-1).flatten(1)  # (Q, 2K)
    present = torch.stack([first.present, second.present], dim=-1).flatten(1)
    # Absent places get distinct negative numbers, so that none is taken for a repetition.
    code = torch.where(present, rows, -1 - torch.arange(rows.shape[1], device=rows.device))
    ordered, place = code.sort(dim=1, stable=True)
    repeated = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    kept = present & ~torch.zeros_like(present).scatter(1, place, repeated)
    order = (~kept).long().argsort(dim=1, stable=True)[:, :n]
    kept = kept.gather(1, order)
    return rows.gather(1, order) * kept, kept


def _cosine(
    vectors: Float[Tensor, "Q F"], table: Float[Tensor, "P F"], rows: Int[Tensor, "Q K"]
) -> Float[Tensor, "Q K"]:
    """Return the product of each query with the rows retrieved for it."""
    parts = zip(vectors.split(CHUNK), rows.split(CHUNK), strict=True)
    return torch.cat([(table[i] @ v[..., None]).squeeze(-1) for v, i in parts])
