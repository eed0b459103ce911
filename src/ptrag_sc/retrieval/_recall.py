"""What does the memory hold for the B sets of a mini-batch?"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ptrag_sc.data import ROLES


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
