"""Which training perturbations are nearest to a query?

Stage 1 of PT-RAG: exact, once per query, nothing learned.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK = 512  # queries whose similarities to all candidates are held at once
MARGIN = 8  # candidates beyond K that are ranked exactly


class Neighbours(NamedTuple):
    """K candidates retrieved for each of C conditions (a query, or with a memory a query in a cell type).

    K places; fewer may be filled. Without a memory there is one similarity space, with one there are two.
    """

    rows: Int[Tensor, "C K"]  # of the candidate table; 0 where absent
    present: Bool[Tensor, "C K"]
    similarity: Float[Tensor, "C K R"]  # cosine in each space; 0 where absent

    def take(self, condition: Int[Tensor, " B"]) -> "Neighbours":
        """Return the neighbours of some conditions."""
        return Neighbours(self.rows[condition], self.present[condition], self.similarity[condition])


def nearest_neighbours(
    vectors: Float[Tensor, "Q D"], table: Float[Tensor, "P D"], own: Int[Tensor, "Q ..."], n_neighbours: int
) -> Neighbours:
    """Return the candidates of highest cosine, the query itself excluded by index.

    Parameters
    ----------
    vectors
        Unit rows of the queries; a zero row (the control) retrieves nothing.
    table
        Unit rows of the candidates.
    own
        Row of each query in ``table``, or -1; with a second axis, also the rows of others that it must not retrieve.
    n_neighbours
        Number of places K, at most P.
    """
    chunks = [
        _nearest(vectors[i : i + CHUNK], table, own[i : i + CHUNK], n_neighbours)
        for i in range(0, max(1, len(vectors)), CHUNK)
    ]
    return Neighbours(*(torch.cat(field) for field in zip(*chunks, strict=True)))


def _nearest(
    vectors: Float[Tensor, "Q D"], table: Float[Tensor, "P D"], own: Int[Tensor, "Q ..."], n_neighbours: int
) -> Neighbours:
    cosine = vectors @ table.T  # (Q, P)
    is_own = torch.zeros(len(vectors), len(table) + 1, dtype=torch.bool, device=table.device)
    # -1 marks the last column, which is then cut off.
    is_own = is_own.scatter(1, own[:, None].flatten(1) % is_own.shape[1], value=True)[:, :-1]  # (Q, P)
    is_control = (vectors == 0).all(1)[:, None]  # (Q, 1)
    hidden = is_own | is_control
    n_short = min(len(table), n_neighbours + MARGIN)
    short_list = cosine.masked_fill(hidden, -torch.inf).topk(n_short, dim=1).indices  # (Q, n_short)
    # Ties are common (A and B are equally near to A+B) and float32 breaks them by rounding, differently in every
    # call: the short list is ranked in float64, and of exact equals the one that stands first in the table comes first.
    short_list = short_list.sort(dim=1).values
    exact = (table[short_list].double() @ vectors.double()[..., None]).squeeze(-1)
    exact = exact.masked_fill(hidden.gather(1, short_list), -torch.inf).round(decimals=9)
    ranked, order = exact.sort(dim=1, descending=True, stable=True)
    similarity = ranked[:, :n_neighbours]  # (Q, K)
    rows = short_list.gather(1, order[:, :n_neighbours])
    present = torch.isfinite(similarity)
    similarity = similarity.masked_fill(~present, 0.0).to(table.dtype)
    return Neighbours(rows.masked_fill(~present, 0), present, similarity[..., None])
