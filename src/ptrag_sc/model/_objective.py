"""How far are a model's answers from the observed cells, in training and in validation?"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ptrag_sc.nn import LOSSES, masked_mean, mean_distance
from ptrag_sc.retrieval import agreement

SHARES = tuple(i / 10 for i in range(11))  # of the memory in the answer: the one that validates best is kept


def training_losses(
    tensors: Mapping[str, Tensor], outputs: Mapping[str, Any], loss: str, *, with_null: bool = False
) -> dict[str, Tensor]:
    """Return the set loss of a mini-batch and, with a memory, that of what it recalls.

    Parameters
    ----------
    tensors
        The mini-batch: ``target_cells``, ``control_mask``, ``target_mask`` and, where known, ``targets``.
    outputs
        ``changes`` of the control cells (:class:`Changes`) and, with a memory, the mean of what is ``recalled`` (B, G).
    loss
        Name of the set loss.
    with_null
        Whether some sets are null sets, whose target cells are control cells too: ``null_loss`` is their set loss, and
        the other losses are those of the other sets.
    """
    masks, hidden = (tensors["control_mask"], tensors["target_mask"]), tensors.get("targets")
    centre = masked_mean(tensors["target_cells"], masks[1])  # (B, G)
    target = tensors["target_cells"] - centre[:, None]  # (B, T, G); all distances are those of cells that did not move
    if hidden is not None:
        target.masked_fill_(hidden[:, None], 0.0)
    changes = outputs["changes"]
    changes = changes._replace(shift=changes.shift - centre)
    of_sets = {"set_loss": LOSSES[loss].of_changes(changes, target, *masks, hidden)}
    if "recalled" in outputs:
        recalled = outputs["recalled"] - centre
        if hidden is not None:
            recalled = recalled.masked_fill(hidden, 0.0)
        of_sets["recalled_loss"] = mean_distance(recalled, target, masks[1])
    if not with_null:
        return {name: losses.mean() for name, losses in of_sets.items()}
    is_null = (tensors["query"] == 0).to(target.dtype)  # (B,)
    metrics = {name: _weighted_mean(losses, 1 - is_null) for name, losses in of_sets.items()}
    return {**metrics, "null_loss": _weighted_mean(of_sets["set_loss"], is_null)}


def _weighted_mean(values: Float[Tensor, " B"], weights: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    return (values * weights).sum() / weights.sum().clamp(min=1)


def validation_losses(
    tensors: Mapping[str, Tensor], mean: Float[Tensor, "B G"], outputs: dict[str, Tensor], loss: str
) -> dict[str, Tensor]:
    """Return the loss of every set and, with a memory, its loss and its agreement under every share of ``SHARES``.

    Parameters
    ----------
    tensors, loss
        As in :func:`training_losses`, and ``control_cells``.
    mean
        Mean shift of each set's cell type.
    outputs
        ``generated`` and, with a memory, ``recalled`` cells (B, S, G).
    """
    target, outputs = _without_targets(tensors, outputs)
    masks = tensors["control_mask"], tensors["target_mask"]
    if "recalled" not in outputs:
        of_sets = LOSSES[loss].of_cells(outputs["generated"], target, *masks)[:, None]  # (B, 1)
        return {"of_sets": of_sets, "set_loss": of_sets.mean()}
    start = masked_mean(tensors["control_cells"], masks[0]) + mean  # (B, G) control and mean shift
    shown = torch.ones_like(start, dtype=torch.bool)
    if "targets" in tensors:
        shown = ~tensors["targets"]
    generated, recalled = (masked_mean(outputs[name], masks[0]) - start for name in ("generated", "recalled"))
    predicted = torch.stack([s * recalled + (1 - s) * generated for s in SHARES])  # (n, B, G)
    true = masked_mean(target, masks[1]) - start
    of_blends = LOSSES[loss].of_blends(outputs["generated"], outputs["recalled"], SHARES, target, *masks)  # (n, B)
    return {
        "agreement": agreement(predicted * shown, true * shown, mean * shown).T,
        "of_sets": of_blends.T,
        "set_loss": of_blends.mean(1).min(),
    }


def _without_targets(
    tensors: Mapping[str, Tensor], outputs: dict[str, Tensor]
) -> tuple[Float[Tensor, "B S G"], dict[str, Tensor]]:
    """Return observed cells and answers in which the genes are 0 that each set's perturbation targets.

    What a perturbation does to its own target is added to every answer afterwards, so nothing must learn it here.
    """
    target = tensors["target_cells"]
    if "targets" not in tensors:
        return target, outputs
    hidden = tensors["targets"]  # (B, G)
    shown = {name: cells.masked_fill(hidden[:, None], 0.0) for name, cells in outputs.items()}
    return target.masked_fill(hidden[:, None], 0.0), shown
