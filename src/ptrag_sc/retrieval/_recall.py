"""What does the memory hold for the B sets of a mini-batch?"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ptrag_sc.data import ROLES
from ptrag_sc.retrieval._neighbours import Neighbours
from ptrag_sc.retrieval._view import MemoryView


class Evidence(NamedTuple):
    """Measured perturbations of one kind that bear on each of B queries: k places, fewer may be filled.

    ``similarity`` is NaN in a space where query or candidate was not measured, and 0 in the first space where absent.
    """

    rows: Int[Tensor, "B k"]  # of the candidate table; 0 where absent
    present: Bool[Tensor, "B k"]
    similarity: Float[Tensor, "B k R"]
    response: Float[Tensor, "B k L"]  # deviation from the mean shift, in the directions of the memory; 0 where absent


class Recall(NamedTuple):
    """All that is recalled for B sets; nothing in it is learned.

    Three kinds of evidence, named as in ``ROLES``: the query's own response in other cell types (one place), the
    components of a combination (M places), and neighbours (K places). Without a memory there are neighbours only, L is
    0 and so is the width of ``mean``.
    """

    vectors: Float[Tensor, "B D"]  # gene embedding of the query, 0 for the control
    mean: Float[Tensor, "B G"]  # mean shift of the cell type, 0 for the control
    own: Evidence
    components: Evidence
    neighbours: Evidence

    @property
    def kinds(self) -> tuple[Evidence, Evidence, Evidence]:
        """The three kinds of evidence, in the order of ``ROLES``."""
        return self.own, self.components, self.neighbours

    @property
    def sizes(self) -> list[int]:
        """Number of places of each kind: 1, M and K, or 0, 0 and K."""
        return [kind.rows.shape[1] for kind in self.kinds]

    @property
    def joined(self) -> Evidence:
        """All evidence side by side: J = 1 + M + K places."""
        return Evidence(*(torch.cat(field, dim=1) for field in zip(*self.kinds, strict=True)))

    @property
    def role(self) -> Int[Tensor, " J"]:
        """Kind of every place of :attr:`joined`, as an index into ``ROLES``."""
        device = self.vectors.device
        kinds = torch.arange(len(ROLES), device=device)
        return torch.cat([kind.expand(size) for kind, size in zip(kinds, self.sizes, strict=True)])

    def weighted(self, weights: Float[Tensor, "B S J"]) -> tuple[Float[Tensor, "B S L"], Float[Tensor, "B S L"]]:
        """Return two parts of the deviation recalled for each cell: of the components, and of all other evidence."""
        own, components, neighbours = weights.split(self.sizes, dim=-1)
        of_components = components @ self.components.response
        rest = own @ self.own.response + neighbours @ self.neighbours.response
        return of_components, rest


def own_evidence(view: MemoryView, rows: Int[Tensor, " B"], cell_type: Int[Tensor, " B"]) -> Evidence:
    """Return each query's own response in other cell types, where it was measured there.

    Parameters
    ----------
    view
        The memory.
    rows
        Row of each query among the candidates, or -1.
    cell_type
        Row of the view.
    """
    row = rows.clamp(min=0)[:, None]  # (B, 1)
    t = cell_type[:, None]
    present = (rows >= 0)[:, None] & view.known[t, row]
    return _without_similarity(row, present, view.own[t, row])


def component_evidence(view: MemoryView, rows: Int[Tensor, "B M"], cell_type: Int[Tensor, " B"]) -> Evidence:
    r"""Return the components of combinations, where all of them were measured, here or elsewhere.

    The response of a component of m is :math:`d_k + \frac{m - 1}{m} \mu`, with :math:`\mu` the mean shift: with weight
    1 each, the shifts of the components add up, because every answer holds :math:`\mu` once.

    Parameters
    ----------
    view
        The memory.
    rows
        Rows of the components among the candidates, padded with -1.
    cell_type
        Row of the view.
    """
    present = view.components_present(cell_type, rows)
    rows = rows.clamp(min=0)
    t = cell_type[:, None]
    is_here = view.observed[t, rows][..., None]
    response = torch.where(is_here, view.entries[t, rows], view.elsewhere[t, rows])  # (B, M, L)
    n_present = present.sum(1).clamp(min=1)[:, None, None]
    response = response + view.mean_low[cell_type][:, None] * (n_present - 1) / n_present
    return _without_similarity(rows, present, response)


def neighbour_evidence(view: MemoryView, found: Neighbours, cell_type: Int[Tensor, " B"]) -> Evidence:
    """Return what the neighbours of each query did in its cell type."""
    entries = view.entries[cell_type[:, None], found.rows]  # (B, K, L)
    return Evidence(found.rows, found.present, found.similarity, entries * found.present[..., None])


def text_evidence(found: Neighbours) -> Evidence:
    """Return neighbours of which only the gene embedding is known: the response has width 0."""
    response = found.similarity.new_zeros(*found.rows.shape, 0)
    return Evidence(found.rows, found.present, found.similarity, response)


def _without_similarity(
    rows: Int[Tensor, "B k"], present: Bool[Tensor, "B k"], response: Float[Tensor, "B k L"]
) -> Evidence:
    """Return evidence that is not compared with the query: its similarity is NaN in both spaces."""
    similarity = response.new_full((*rows.shape, 2), torch.nan)
    return Evidence(rows * present, present, similarity, response * present[..., None])
