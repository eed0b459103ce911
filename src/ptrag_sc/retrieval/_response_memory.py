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

MIN_RESPONSE = 1e-6  # a response below this norm has no direction


class ResponseMemory(NamedTuple):
    """Observed responses of P perturbations in T cell types; an entry without cells is 0."""

    shift: Float[Tensor, "P T G"]  # shrunk gene by gene
    low: Float[Tensor, "P T R"]  # in the leading directions, shrunk direction by direction
    n_cells: Int[Tensor, "P T"]
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
    other: Float[Tensor, "V T"]  # weights of the cell types in ``elsewhere``
    mean: Float[Tensor, "V G"]
    mean_low: Float[Tensor, "V R"]


class Told(NamedTuple):
    """What the memory tells B sets."""

    low: Float[Tensor, "B K R"]  # slot 0: the query's own response elsewhere; the others: the candidates' here
    own: Float[Tensor, "B G"]  # slot 0 in full
    mean: Float[Tensor, "B G"]  # 0 for the control
    mean_low: Float[Tensor, "B R"]

    def of(self, weights: Float[Tensor, "B S K"], directions: Float[Tensor, "R G"]) -> Float[Tensor, "B S G"]:
        """Return the shift of each cell: mean shift, candidates and own response under their weights."""
        neighbours = (weights[..., 1:] @ self.low[:, 1:]) @ directions
        return self.mean[:, None] + neighbours + weights[..., :1] * self.own[:, None]


def shrink(values: np.ndarray, squared_error: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return values (C, F) around 0 times their reliability, estimated in each group and feature.

    Parameters
    ----------
    values
        Deviations (C, F).
    squared_error
        Squared standard errors (C, F).
    group
        Group of each row (C,).
    """
    shrunk = np.zeros_like(values)
    for g in np.unique(group):
        rows = group == g
        between = np.maximum(np.square(values[rows]).mean(0) - squared_error[rows].mean(0), 0)
        total = between + squared_error[rows]
        shrunk[rows] = values[rows] * np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    return shrunk


def build_memory(
    perturbation: np.ndarray,
    cell_type: np.ndarray,
    shape: tuple[int, int],
    *,
    shifts: np.ndarray,
    n_cells: np.ndarray,
    squared_error: np.ndarray,
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
    shifts, n_cells, squared_error
        Mean shifts (C, G), cells (C,), squared standard errors (C, G).
    controls
        Mean controls (T, G).
    directions
        Orthonormal rows (R, G).
    """
    n_types, n_genes = shape[1], shifts.shape[1]
    mean, count = np.zeros((n_types, n_genes)), np.bincount(cell_type, minlength=n_types)
    np.add.at(mean, cell_type, shifts)
    overall = shifts.mean(0)
    mean = np.where(count[:, None] > 0, mean / np.maximum(count, 1)[:, None], overall)
    deviation = shifts - mean[cell_type]
    tables = {"shift": shrink(deviation, squared_error, cell_type)}
    tables["low"] = shrink(deviation @ directions.T, squared_error @ np.square(directions).T, cell_type)
    filled = {name: np.zeros((*shape, values.shape[1]), dtype=np.float32) for name, values in tables.items()}
    for name, values in tables.items():
        filled[name][perturbation, cell_type] = values
    cells = np.zeros(shape, dtype=np.int64)
    cells[perturbation, cell_type] = n_cells
    floats = {"mean": mean, "controls": controls, "directions": directions}
    tensors = {name: torch.as_tensor(np.asarray(v, dtype=np.float32)) for name, v in (filled | floats).items()}
    return ResponseMemory(n_cells=torch.from_numpy(cells), **tensors)


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
    return MemoryView(low, seen, elsewhere, known, other, mean, mean @ memory.directions.T)


def tell(
    memory: ResponseMemory,
    view: MemoryView,
    indices: Int[Tensor, "B K"],
    present: Bool[Tensor, "B K"],
    cell_type: Int[Tensor, " B"],
    perturbed: Bool[Tensor, " B"],
) -> Told:
    """Return what the memory tells sets whose slots were filled; slot 0 is the query itself.

    Parameters
    ----------
    memory, view
        The memory.
    indices, present
        Slots.
    cell_type
        Row of the view.
    perturbed
        False for the control.
    """
    own, rest = indices[:, 0], indices[:, 1:]
    low = torch.cat([view.elsewhere[cell_type, own][:, None], view.low[cell_type[:, None], rest]], dim=1)
    mass = view.other[cell_type] * (memory.n_cells[own] > 0) * present[:, :1]
    mass = mass / mass.sum(-1, keepdim=True).clamp(min=MIN_RESPONSE)
    shift = torch.einsum("bt,btg->bg", mass, memory.shift[own])
    flag = perturbed.to(low.dtype)[:, None]
    return Told(low * present[..., None], shift, view.mean[cell_type] * flag, view.mean_low[cell_type] * flag)
