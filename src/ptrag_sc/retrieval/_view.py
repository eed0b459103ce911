"""What does the memory hold for one cell type, and for all others?"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ptrag_sc.retrieval._response_memory import MIN_RESPONSE, ResponseMemory
from ptrag_sc.retrieval._ridge import fit_ridge

MIN_SEEN = 3  # perturbations measured in both places that a map between cell types is learned from


class MemoryView(NamedTuple):
    """The memory as seen from each cell type V of a call, in its L directions.

    A cell type that the memory knows sees its own entries, and as *elsewhere* all others. An unknown cell type sees all
    entries in both roles, averaged with weights that follow the similarity of the mean controls.
    """

    entries: Float[Tensor, "V P L"]  # what each candidate did here
    elsewhere: Float[Tensor, "V P L"]  # what it did in other cell types, on average
    own: Float[Tensor, "V P L"]  # what that predicts for this cell type: used where the candidate itself is the query
    observed: Bool[Tensor, "V P"]  # whether the candidate was measured here
    known: Bool[Tensor, "V P"]  # whether its response elsewhere has a direction
    mean: Float[Tensor, "V G"]  # mean shift of the cell type
    mean_low: Float[Tensor, "V L"]  # the same in the directions of the memory

    def of_cell_type(self, v: int) -> "MemoryView":
        """Return what one cell type sees, without the first axis."""
        return MemoryView(*(field[v] for field in self))

    def components_present(self, cell_type: Int[Tensor, " B"], rows: Int[Tensor, "B M"]) -> Bool[Tensor, "B M"]:
        """Return which components of combinations were measured, here or elsewhere; all of them or none.

        Parameters
        ----------
        cell_type
            Row of the view.
        rows
            Components, padded with -1.
        """
        t = cell_type[:, None]
        filled = rows >= 0
        measured = (self.observed | self.known)[t, rows.clamp(min=0)]
        return filled & (measured | ~filled).all(1, keepdim=True)


def view_memory(
    memory: ResponseMemory,
    cell_type: Int[Tensor, " V"],
    controls: Float[Tensor, "V G"],
    mapped_share: float | Float[Tensor, ""],
) -> MemoryView:
    """Return the memory as seen from some cell types.

    Parameters
    ----------
    memory
        The memory.
    cell_type
        Column of each cell type in the memory, -1 for one that it does not know.
    controls
        Mean control of each; used for unknown ones only.
    mapped_share
        Share of the mapped response in ``own``; the rest is the response elsewhere as it was measured.
    """
    n_types = len(memory.mean)
    here = torch.zeros(len(cell_type), n_types, device=memory.entries.device)  # (V, T) weights
    other = torch.ones_like(here)
    for v, t in enumerate(cell_type.tolist()):
        if t >= 0:
            here[v, t] = 1.0
            other[v, t] = 0.0
        else:
            near = 1 / torch.square(controls[v] - memory.controls).sum(-1).clamp(min=MIN_RESPONSE)  # (T,)
            here[v] = near / near.sum()
            other[v] = here[v]
    is_entry = (memory.n_cells > 0).to(here.dtype)  # (P, T)
    entries, observed = averaged(here, memory.entries, is_entry)
    elsewhere, _ = averaged(other, memory.entries, is_entry)
    known = elsewhere.norm(dim=-1) > MIN_RESPONSE
    in_both = observed & known
    mapped = torch.stack([_mapped(*of_type) for of_type in zip(elsewhere, entries, in_both, strict=True)])
    own = (1 - mapped_share) * elsewhere + mapped_share * mapped
    mean = here @ memory.mean  # (V, G)
    return MemoryView(entries, elsewhere, own, observed, known, mean, mean @ memory.directions.T)


def averaged(
    weights: Float[Tensor, "V T"], entries: Float[Tensor, "P T L"], is_entry: Float[Tensor, "P T"]
) -> tuple[Float[Tensor, "V P L"], Bool[Tensor, "V P"]]:
    """Return the weighted means of each perturbation's entries over cell types, and where there was an entry."""
    mass = weights[:, None] * is_entry  # (V, P, T)
    total = mass.sum(-1)
    mean = torch.einsum("vpt,ptr->vpr", mass, entries) / total.clamp(min=MIN_RESPONSE)[..., None]
    return mean, total > 0


def _mapped(
    elsewhere: Float[Tensor, "P L"], here: Float[Tensor, "P L"], in_both: Bool[Tensor, " P"]
) -> Float[Tensor, "P L"]:
    """Return what responses elsewhere predict for this cell type, by ridge regression over perturbations seen in both.

    Each of these is predicted from the others. Where no map can be learned, the response elsewhere is returned. The
    mean that entries here are deviations from is that of all perturbations of the cell type, so it is not counted in
    the leverage: what that leaves out is .25 % of a prediction with 60 perturbations, 6 % with 12.
    """
    x, y = elsewhere[in_both], here[in_both]
    if len(x) < MIN_SEEN or torch.equal(x, y):  # an unknown cell type sees the same everywhere
        return elsewhere
    ridge = fit_ridge(x, y)
    mapped = elsewhere.double() @ ridge.coefficients
    mapped[in_both] = ridge.left_out(y.double())
    return mapped.to(here.dtype)
