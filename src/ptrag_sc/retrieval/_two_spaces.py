"""Which training perturbations are near in the gene embedding or in what they did, and were measured here?"""

from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ptrag_sc.retrieval._candidates import CHUNK, Candidates, nearest_candidates
from ptrag_sc.retrieval._null import random_candidates
from ptrag_sc.retrieval._response_memory import MemoryView


def memory_candidates(
    vectors: Float[Tensor, "Q D"],
    table: Float[Tensor, "P D"],
    own: Int[Tensor, " Q"],
    n_candidates: int,
    view: MemoryView,
    *,
    parts: Int[Tensor, "Q M"],
    random_keys: np.ndarray | None = None,
) -> Candidates:
    """Return slots for every query in every cell type of the view, row ``q * V + v``.

    Slot 0 is the query itself, where other cell types observed it. The next M are the components of a combination, if
    all of them were observed, here or elsewhere. K further ones are filled alternately from the
    rankings in the gene embedding and in the responses elsewhere, among other perturbations that were observed in the
    cell type, until K are distinct (less those that are components). ``similarity`` is NaN in a space where query or
    candidate was not observed, and in both for slot 0 and components; in an empty slot it is 0 and NaN.

    Parameters
    ----------
    vectors, table, own
        As in :func:`nearest_candidates`.
    n_candidates
        K.
    view
        The memory.
    parts
        Rows of the components of each query in ``table``, padded with -1; all -1 where one is not in it.
    random_keys
        As in :func:`random_candidates`, which then fills the K slots; None: the nearest.
    """
    asked = vectors, table, own, n_candidates
    found = [_in_cell_type(*asked, MemoryView(*(x[v] for x in view)), parts, random_keys) for v in range(len(view.low))]
    return Candidates(*(torch.stack(field, dim=1).flatten(0, 1) for field in zip(*found, strict=True)))


def _in_cell_type(vectors, table, own, n_candidates, view, parts, random_keys) -> Candidates:
    responses = F.normalize(view.elsewhere, dim=-1) * view.known[:, None]
    is_known = (own >= 0) & view.known[own.clamp(min=0)] & (n_candidates > 0)
    query = responses[own.clamp(min=0)] * is_known[:, None]
    if random_keys is None:
        by_text = _among(view.observed, nearest_candidates, vectors, table, own, n_candidates)
        by_response = _among(view.observed & view.known, nearest_candidates, query, responses, own, n_candidates)
        indices, present = alternate(by_text, by_response, n_candidates)
    else:
        draw = partial(random_candidates, keys=random_keys)
        indices, present, _ = _among(view.observed, draw, vectors, table, own, n_candidates)
    is_part = ((view.observed | view.known)[parts.clamp(min=0)] | (parts < 0)).all(1, keepdim=True) & (parts >= 0)
    is_part = is_part & (n_candidates > 0)
    present = present & ~((indices[..., None] == parts[:, None]) & is_part[:, None]).any(-1)
    response = _cosine(query, responses, indices)
    response = response.masked_fill(~(is_known[:, None] & view.known[indices] & present), torch.nan)
    similarity = torch.stack([_cosine(vectors, table, indices) * present, response], dim=-1)
    unlike = similarity.new_full((len(own), 1 + parts.shape[1], 2), torch.nan)
    return Candidates(
        torch.cat([torch.where(is_known, own, 0)[:, None], parts * is_part, indices * present], dim=1),
        torch.cat([is_known[:, None], is_part, present], dim=1),
        torch.cat([unlike, similarity], dim=1),
    )


def _among(allowed, find, vectors, table, own, n_candidates) -> Candidates:
    """Return what ``find`` finds among the rows that are allowed, padded to K slots."""
    rows = allowed.nonzero().squeeze(1)
    if not len(rows):
        empty = torch.zeros(len(vectors), n_candidates, dtype=torch.long, device=table.device)
        return Candidates(empty, empty.bool(), empty[..., None].to(table.dtype))
    place = torch.full((len(table) + 1,), -1, device=table.device)  # the last one is that of own = -1
    place[rows] = torch.arange(len(rows), device=table.device)
    found = find(vectors, table[rows], place[own], min(n_candidates, len(rows)))
    missing = (0, n_candidates - found.indices.shape[1])
    return Candidates(
        F.pad(rows[found.indices] * found.present, missing),
        F.pad(found.present, missing),
        F.pad(found.similarity, (0, 0, *missing)),
    )


def alternate(first: Candidates, second: Candidates, n: int) -> tuple[Tensor, Tensor]:
    """Return the first n distinct candidates (Q, n) of two rankings, taken in turns, and which slots are filled."""
    indices = torch.stack([first.indices, second.indices], dim=-1).flatten(1)
    present = torch.stack([first.present, second.present], dim=-1).flatten(1)
    # Absent places get distinct negative numbers, so that none is taken for a repetition.
    code = torch.where(present, indices, -1 - torch.arange(indices.shape[1], device=indices.device))
    ordered, place = code.sort(dim=1, stable=True)
    repeated = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    kept = present & ~torch.zeros_like(present).scatter(1, place, repeated)
    order = (~kept).long().argsort(dim=1, stable=True)[:, :n]
    kept = kept.gather(1, order)
    return indices.gather(1, order) * kept, kept


def _cosine(vectors: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """Return the product of each query with the rows of its slots (Q, K)."""
    parts = zip(vectors.split(CHUNK), indices.split(CHUNK), strict=True)
    return torch.cat([(table[i] @ v[..., None]).squeeze(-1) for v, i in parts])
