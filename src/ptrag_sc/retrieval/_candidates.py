"""Which training perturbations are nearest to a query?

Stage 1 of PT-RAG: exact, once per query, nothing learned.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ptrag_sc.retrieval._response_memory import MemoryView

CHUNK = 512  # queries whose similarities to all candidates are held at once
MARGIN = 8  # candidates beyond K that are ranked exactly


class Candidates(NamedTuple):
    """K retrieved rows of the candidate table for each of Q queries; K slots, fewer may be filled."""

    indices: Int[Tensor, "Q K"]  # 0 where absent
    present: Bool[Tensor, "Q K"]
    similarity: Float[Tensor, "Q K R"]  # cosine in each space; 0 where absent

    def take(self, query: Int[Tensor, " B"]) -> "Candidates":
        """Return the rows of some queries."""
        return Candidates(self.indices[query], self.present[query], self.similarity[query])


def distinct_rows(indices: Int[Tensor, "Q K"]) -> tuple[Int[Tensor, " U"], Int[Tensor, "Q K"]]:
    """Return the distinct rows and the place of every index among them: what is encoded once."""
    return torch.unique(indices, return_inverse=True)


class Queries(NamedTuple):
    """The perturbations of one call; row 0 is the control: a zero vector with nothing retrieved.

    With a memory there are candidates for every query in each of its V cell types: row ``q * V + v``.
    """

    vectors: Float[Tensor, "Q D"]
    candidates: Candidates
    view: MemoryView | None = None
    n_parts: int = 0  # slots of the components of a combination

    @property
    def n_views(self) -> int | None:
        """Number of cell types in the view, V."""
        return None if self.view is None else len(self.view.low)


def condition_row(query: Int[Tensor, " B"], cell_type: Int[Tensor, " B"], n_views: int | None) -> Int[Tensor, " B"]:
    """Return the row of each query in a cell type among the candidates of :class:`Queries`."""
    return query if n_views is None else query * n_views + cell_type


def nearest_candidates(
    vectors: Float[Tensor, "Q D"], table: Float[Tensor, "P D"], own: Int[Tensor, " Q"], n_candidates: int
) -> Candidates:
    """Return the candidates of highest cosine, the query itself excluded by index.

    Parameters
    ----------
    vectors
        Unit rows of the queries; a zero row (the control) retrieves nothing.
    table
        Unit rows of the candidates.
    own
        Row of each query in ``table``, or -1.
    n_candidates
        Number of slots K, at most P.
    """
    parts = [
        _nearest(vectors[i : i + CHUNK], table, own[i : i + CHUNK], n_candidates)
        for i in range(0, max(1, len(vectors)), CHUNK)
    ]
    return Candidates(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _nearest(vectors: Tensor, table: Tensor, own: Tensor, n_candidates: int) -> Candidates:
    cosine = vectors @ table.T
    hidden = (torch.arange(len(table), device=table.device) == own[:, None]) | (vectors == 0).all(1)[:, None]
    short_list = cosine.masked_fill(hidden, -torch.inf).topk(min(len(table), n_candidates + MARGIN), dim=1).indices
    # Ties are common (A and B are equally near to A+B) and float32 breaks them by rounding, differently in every
    # call: the short list is ranked in float64, and of exact equals the one that stands first in the table comes first.
    short_list = short_list.sort(dim=1).values
    exact = (table[short_list].double() @ vectors.double()[..., None]).squeeze(-1)
    exact = exact.masked_fill(hidden.gather(1, short_list), -torch.inf).round(decimals=9)
    similarity, order = exact.sort(dim=1, descending=True, stable=True)
    similarity, indices = similarity[:, :n_candidates], short_list.gather(1, order[:, :n_candidates])
    present = torch.isfinite(similarity)
    similarity = similarity.masked_fill(~present, 0.0).to(table.dtype)
    return Candidates(indices.masked_fill(~present, 0), present, similarity[..., None])
