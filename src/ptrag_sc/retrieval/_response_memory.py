r"""What did the experiment observe: in which cell type did which perturbation do what?

Entries are batch-matched mean shifts less the mean shift of their cell type, shrunk by empirical Bayes (Efron & Morris
1973): with squared standard error :math:`s^2` and variance :math:`\tau^2` between perturbations, estimated by moments,
an entry keeps :math:`\tau^2 / (\tau^2 + s^2)` of itself. What is uncertain speaks softly, and nothing is tuned.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ptrag_sc.data import Shifts, Spread
from ptrag_sc.retrieval._ridge import fit_ridge

MIN_RESPONSE = 1e-6  # a response below this norm has no direction
MIN_SEEN = 3  # perturbations in both that a map between cell types is learned from


class ResponseMemory(NamedTuple):
    """Observed responses of P perturbations in T cell types; an entry without cells is 0."""

    low: Float[Tensor, "P T R"]  # deviation from the mean shift, in the leading directions, shrunk in each
    n_cells: Int[Tensor, "P T"]
    between: Float[Tensor, "T R"]  # variance between perturbations
    mean: Float[Tensor, "T G"]  # mean shift of the cell type
    controls: Float[Tensor, "T G"]  # mean control of the cell type
    directions: Float[Tensor, "R G"]


class MemoryView(NamedTuple):
    """The memory as seen from each cell type V of a call.

    A cell type that the memory knows sees its own entries, and as *elsewhere* all others; an unknown one sees all
    entries, averaged with weights that follow the similarity of the mean controls.
    """

    low: Float[Tensor, "V P R"]  # what each perturbation did here
    observed: Bool[Tensor, "V P"]
    elsewhere: Float[Tensor, "V P R"]  # what it did in other cell types, on average
    known: Bool[Tensor, "V P"]  # whether that has a direction
    mapped: Float[Tensor, "V P R"]  # what that means for this cell type, going by all other perturbations
    mean: Float[Tensor, "V G"]
    mean_low: Float[Tensor, "V R"]


class Told(NamedTuple):
    """What the memory tells B sets: deviations from the mean shift of the cell type.

    Slot 0: the query's own response elsewhere; M slots: the components of a combination; the others: candidates.
    """

    low: Float[Tensor, "B K R"]
    mean: Float[Tensor, "B G"]  # 0 for the control
    mean_low: Float[Tensor, "B R"]
    n_parts: int  # M

    def of(self, weights: Float[Tensor, "B S K"]) -> "Spoken":
        """Return what the slots say to each cell under their weights."""
        parts = slice(1, 1 + self.n_parts)
        start = weights[..., parts] @ self.low[:, parts] if self.n_parts else None
        both = weights @ self.low
        return Spoken(self.mean, start, both if start is None else both - start)


class Spoken(NamedTuple):
    """Three parts of the shift of each cell, which add up; two of them in the leading directions."""

    mean: Float[Tensor, "B G"]  # mean shift of the cell type
    parts: Float[Tensor, "B S R"] | None  # the components of a combination; None where there are no such slots
    others: Float[Tensor, "B S R"]  # the query's own response elsewhere, and neighbours

    def start(self, directions: Float[Tensor, "R G"]) -> Float[Tensor, "B S G"] | Float[Tensor, "B 1 G"]:
        """Return the shift that generator and memory share: mean shift and components."""
        mean = self.mean[:, None]
        return mean if self.parts is None else mean + self.parts @ directions

    def average(self, mask: Bool[Tensor, "B S"], directions: Float[Tensor, "R G"]) -> Float[Tensor, "B G"]:
        """Return the mean of the whole shift over the real cells."""
        low = self.others if self.parts is None else self.others + self.parts
        return self.mean + (low * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) @ directions


def between_perturbations(values: np.ndarray, squared_error: np.ndarray, group: np.ndarray, n_groups: int):
    """Return the variance (n_groups, F) of deviations beyond their errors, by moments; 0 in an empty group.

    Parameters
    ----------
    values, squared_error
        Deviations (C, F) and their squared standard errors (C, F).
    group
        Group of each row (C,).
    n_groups
        Number of groups.
    """
    excess = np.zeros((n_groups, values.shape[1]))
    np.add.at(excess, group, np.square(values) - squared_error)
    return np.maximum(excess, 0) / np.maximum(np.bincount(group, minlength=n_groups), 1)[:, None]


def shrink(values: np.ndarray, squared_error: np.ndarray, between: np.ndarray) -> np.ndarray:
    """Return deviations (C, F) times their reliability, given the variance (C, F) between perturbations."""
    total = between + squared_error
    return values * np.divide(between, total, out=np.zeros_like(total), where=total > 0)


def squared_errors(spread: Spread, cell_type: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return the squared standard errors (C, R) of mean shifts along orthonormal directions (R, G)."""
    return (spread.variance @ np.square(directions).T)[cell_type] * spread.scale[:, None]


def build_memory(
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    shape: tuple[int, int],
    *,
    shifts: Shifts,
    spread: Spread,
    controls: np.ndarray,
    directions: np.ndarray,
) -> ResponseMemory:
    """Build the memory from C training conditions.

    Parameters
    ----------
    perturbation, cell_type
        Row and column of each condition (C,).
    shape
        P and T.
    shifts, spread
        Of the conditions; the spread has a row for each of the T cell types.
    controls
        Mean controls (T, G).
    directions
        Orthonormal rows (R, G).
    """
    n_types, n_genes = shape[1], shifts.shift.shape[1]
    mean, count = np.zeros((n_types, n_genes)), np.bincount(cell_type, minlength=n_types)
    np.add.at(mean, cell_type, shifts.shift)
    mean = np.where(count[:, None] > 0, mean / np.maximum(count, 1)[:, None], shifts.shift.mean(0))
    deviation = (shifts.shift - mean[cell_type]) @ directions.T
    squared_error = squared_errors(spread, cell_type, directions)
    between = between_perturbations(deviation, squared_error, cell_type, n_types)
    low, n_cells = np.zeros((*shape, len(directions))), np.zeros(shape, dtype=np.int64)
    low[perturbation, cell_type] = shrink(deviation, squared_error, between[cell_type])
    n_cells[perturbation, cell_type] = shifts.n_cells
    arrays = low, n_cells, between, mean, controls, directions
    return ResponseMemory(*(torch.as_tensor(a if a is n_cells else np.asarray(a, dtype=np.float32)) for a in arrays))


def response_scale(memory: ResponseMemory) -> Float[Tensor, ""]:
    """Return the factor that brings observed shifts in the leading directions to a root mean square of 1."""
    observed = memory.n_cells > 0
    shifts = (memory.low + memory.mean @ memory.directions.T)[observed]
    return 1 / torch.square(shifts).mean().sqrt().clamp(min=1e-6)


def view_memory(memory: ResponseMemory, cell_type: Int[Tensor, " V"], controls: Float[Tensor, "V G"]) -> MemoryView:
    """Return the memory as seen from some cell types.

    Parameters
    ----------
    memory
        The memory.
    cell_type
        Column of each cell type in the memory, -1 for one that it does not know.
    controls
        Mean control of each; used for unknown ones only.
    """
    n_types = len(memory.mean)
    here = torch.zeros(len(cell_type), n_types, device=memory.low.device)
    other = torch.ones_like(here)
    for v, t in enumerate(cell_type.tolist()):
        if t >= 0:
            here[v, t], other[v, t] = 1.0, 0.0
        else:
            near = 1 / torch.square(controls[v] - memory.controls).sum(-1).clamp(min=MIN_RESPONSE)
            here[v] = other[v] = near / near.sum()
    observed = (memory.n_cells > 0).to(here.dtype)

    def averaged(weights):
        mass = weights[:, None] * observed  # (V, P, T)
        total = mass.sum(-1)
        mean = torch.einsum("vpt,ptr->vpr", mass, memory.low) / total.clamp(min=MIN_RESPONSE)[..., None]
        return mean, total > 0

    (low, seen), (elsewhere, _) = averaged(here), averaged(other)
    mean = here @ memory.mean
    known = elsewhere.norm(dim=-1) > MIN_RESPONSE
    mapped = [_mapped(*of_type) for of_type in zip(elsewhere, low, seen & known, strict=True)]
    return MemoryView(low, seen, elsewhere, known, torch.stack(mapped), mean, mean @ memory.directions.T)


def _mapped(
    elsewhere: Float[Tensor, "P R"], here: Float[Tensor, "P R"], in_both: Bool[Tensor, " P"]
) -> Float[Tensor, "P R"]:
    """Return what responses elsewhere predict for this cell type, by ridge regression over perturbations seen in both.

    Each of these is predicted from the others. Where no map can be learned, a response means what it is elsewhere.
    """
    x, y = elsewhere[in_both], here[in_both]
    if len(x) < MIN_SEEN or torch.equal(x, y):  # an unknown cell type sees the same everywhere
        return elsewhere
    ridge = fit_ridge(x, y)
    mapped = elsewhere.double() @ ridge.coefficients
    mapped[in_both] = ridge.left_out(y.double())
    return mapped.to(here.dtype)


def tell(
    view: MemoryView,
    indices: Int[Tensor, "B K"],
    present: Bool[Tensor, "B K"],
    cell_type: Int[Tensor, " B"],
    perturbed: Bool[Tensor, " B"],
    *,
    mapped: float | Float[Tensor, ""],
    n_parts: int,
) -> Told:
    r"""Return what the memory tells sets whose slots were filled.

    Component k of a combination of m says :math:`d_k + \frac{m - 1}{m} \mu`, with :math:`\mu` the mean shift: with
    weight 1 each, the shifts of the components add up beside the one mean shift that every answer holds.

    Parameters
    ----------
    view
        The memory.
    indices, present
        Slots.
    cell_type
        Row of the view.
    perturbed
        False for the control.
    mapped
        Share of the mapped response in what slot 0 says.
    n_parts
        Slots of components, behind slot 0.
    """
    t, last = cell_type[:, None], 1 + n_parts
    flag = perturbed.to(view.low.dtype)[:, None]
    mean_low = view.mean_low[cell_type] * flag
    elsewhere, here = view.elsewhere[t, indices[:, :last]], view.low[t, indices]
    own = (1 - mapped) * elsewhere[:, :1] + mapped * view.mapped[t, indices[:, :1]]
    parts = torch.where(view.observed[t, indices[:, 1:last]][..., None], here[:, 1:last], elsewhere[:, 1:])
    n_present = present[:, 1:last].sum(1).clamp(min=1)[:, None, None]
    parts = parts + mean_low[:, None] * (n_present - 1) / n_present
    low = torch.cat([own, parts, here[:, last:]], dim=1)
    return Told(low * present[..., None], view.mean[cell_type] * flag, mean_low, n_parts)
