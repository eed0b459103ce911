"""How do encoder, retrieval, refinement and generator make one model? The only place where parts are composed."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor
from torch.nn import functional as F

from ptrag_sc.model._module_params import ModuleParams, make_refiner
from ptrag_sc.model._objective import training_losses, validation_losses
from ptrag_sc.nn import (
    CellEncoder,
    Changes,
    EmbeddingEncoder,
    MemoryRefiner,
    Refined,
    SetTransformer,
    masked_mean,
)
from ptrag_sc.retrieval import Evidence, QueryTable, Recall, ResponseMemory

MEMORY = "memory_"  # prefix of its buffers


class MeanShift(NamedTuple):
    """Mean shifts of B queries, and the evidence behind them."""

    shift: Float[Tensor, "B G"]
    evidence: Evidence  # of J places
    weights: Float[Tensor, "B J"]
    responses: Float[Tensor, "B J G"]  # shift of each place; J is 0 without a memory


class PTRAGModule(BaseModuleClass):
    """PT-RAG on tensors; see :class:`ptrag_sc.PTRAG` for the parameters that are not shapes.

    Parameters
    ----------
    embeddings
        Candidate table (P, D): one unit row for every training perturbation.
    basis
        Leading directions of the training shifts (R, G).
    params
        Everything else.
    memory
        What the training conditions did.
    """

    def __init__(
        self,
        embeddings: Float[Tensor, "P D"],
        basis: Float[Tensor, "R G"],
        params: ModuleParams,
        memory: ResponseMemory | None = None,
    ):
        super().__init__()
        self.params = params
        self.register_buffer("embeddings", torch.as_tensor(embeddings))
        self.encode_cells = CellEncoder(basis.shape[1], params.n_hidden)
        self.encode_embedding = EmbeddingEncoder(embeddings.shape[1], params.n_hidden)
        self.has_memory = memory is not None
        if memory is not None:
            for name, tensor in memory._asdict().items():
                self.register_buffer(MEMORY + name, tensor)
            self.register_buffer("recalled_share", torch.tensor(1.0))
            self.register_buffer("mapped_share", torch.tensor(0.0))
        self.refiner = make_refiner(params, memory)
        sizes = params.n_hidden, params.n_layers, params.n_heads
        anchored = params.residual == "anchored"
        self.generator = SetTransformer(*sizes, basis=basis, dropout=params.dropout_rate, anchored=anchored)

    @property
    def memory(self) -> ResponseMemory | None:
        """What the training conditions did."""
        if not self.has_memory:
            return None
        return ResponseMemory(**{name: getattr(self, MEMORY + name) for name in ResponseMemory._fields})

    @property
    def reads_keys(self) -> bool:
        """Whether encoded candidates are used: as values without a memory, by the scorer of the gates with one."""
        if isinstance(self.refiner, MemoryRefiner):
            return self.refiner.gates.scorer is not None
        return self.refiner is not None

    def encode_keys(self, rows: Int[Tensor, " U"] | None = None) -> Float[Tensor, "U H"]:
        """Return encoded rows of the candidate table; None encodes all of them."""
        embeddings = self.embeddings if rows is None else self.embeddings[rows]
        return self.encode_embedding(embeddings)

    @torch.no_grad()
    def with_keys(self, table: QueryTable) -> QueryTable:
        """Return the query table of a prediction, with every candidate encoded once."""
        if not self.reads_keys:
            return table
        return table._replace(keys=self.encode_keys())

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        return {"control_cells": tensors["control_cells"], "control_mask": tensors["control_mask"]}

    def _get_generative_input(self, tensors: dict[str, Tensor], inference_outputs: dict[str, Any]) -> dict[str, Any]:
        return {
            "control_cells": tensors["control_cells"],
            "control_mask": tensors["control_mask"],
            "basal": inference_outputs["basal"],
            "refined": inference_outputs["refined"],
            "recall": inference_outputs["recall"],
        }

    @auto_move_data
    def inference(
        self,
        control_cells: Float[Tensor, "B S G"],
        control_mask: Bool[Tensor, "B S"],
        recall: Recall,
        keys: Float[Tensor, "U H"] | None = None,
        slots: Int[Tensor, "B J"] | None = None,
        noise: Float[Tensor, "B S J"] | None = None,
    ) -> dict[str, Tensor | Recall | Refined]:
        """Encode the control cells and refine what was recalled for each set's query.

        Parameters
        ----------
        control_cells, control_mask
            The cells.
        recall
            What was recalled for the B sets.
        keys, slots
            Encoded candidates, and the row of ``keys`` in every place of each set. None where they are not read.
        noise
            Logistic noise of the gates; None draws it in training, and leaves it out otherwise.

        Returns
        -------
        dict
            ``basal`` (B, S, H); ``recall``; ``refined`` (:class:`Refined`); ``strength`` (B,): norm of the mean
            deviation that is recalled, 0 without a memory.
        """
        basal = self.encode_cells(control_cells)
        refined = self._refined(basal, recall, keys, slots, noise)
        weights = masked_mean(refined.weights, control_mask)  # (B, J)
        strength = (weights[:, None] @ recall.joined.response).norm(dim=-1).squeeze(1)
        return {"basal": basal, "recall": recall, "refined": refined, "strength": strength}

    def _refined(
        self,
        basal: Float[Tensor, "B S H"],
        recall: Recall,
        keys: Float[Tensor, "U H"] | None,
        slots: Int[Tensor, "B J"] | None,
        noise: Float[Tensor, "B S J"] | None,
    ) -> Refined:
        query = self.encode_embedding(recall.vectors)  # (B, H)
        placed = None
        if keys is not None and slots is not None:
            # Not keys[slots]: the gradient of an index is summed by threads in any order, and no two runs are equal.
            placed = F.embedding(slots, keys)  # (B, J, H)
        refiner = self.refiner
        if refiner is None:
            nothing = basal.new_zeros(*basal.shape[:2], sum(recall.sizes))
            return Refined(query[:, None].expand_as(basal), nothing, nothing)
        if isinstance(refiner, MemoryRefiner):
            refined: Refined = refiner(basal, query, placed, recall, noise)
            return refined
        found = recall.neighbours
        refined = refiner(basal, query, placed, found.present, found.similarity, noise)
        return refined

    @auto_move_data
    def generative(
        self,
        control_cells: Float[Tensor, "B S G"],
        control_mask: Bool[Tensor, "B S"],
        basal: Float[Tensor, "B S H"],
        refined: Refined,
        recall: Recall,
    ) -> dict[str, Any]:
        """Return what becomes of each control cell.

        Returns
        -------
        dict
            ``cells`` (B, S, G): the control cell plus the change that its context brings. With a memory this change
            is added to the base (``generated``): the cell, the mean shift and the components of a combination.
            ``cells`` is then the mean of that and of the memory's whole answer (``recalled``), weighted by
            ``recalled_share``. Training asks for ``changes`` (:class:`Changes`) instead of ``generated``, and for the
            mean of ``recalled`` only (B, G).
        """
        loadings = self.generator.loadings(basal, refined.context, control_mask)  # (B, S, R)
        start, basis = control_cells, self.generator.basis
        if not self.has_memory:
            if self.training:
                return {"changes": Changes(start, torch.zeros_like(start[:, 0]), loadings, basis)}
            generated = start + loadings @ basis
            return {"cells": generated, "generated": generated}
        of_components, rest = recall.weighted(refined.weights)  # (B, S, L) each
        if recall.components.rows.shape[1]:
            start = start + of_components @ self.memory_directions  # (B, S, G)
        if self.training:
            # Only the memory's own loss trains what is recalled.
            changes = Changes(start.detach(), recall.mean, loadings, basis)
            low = masked_mean(of_components + rest, control_mask)  # (B, L)
            recalled = masked_mean(control_cells, control_mask) + recall.mean + low @ self.memory_directions
            return {"changes": changes, "recalled": recalled}
        base = start + recall.mean[:, None]
        generated = base + loadings @ basis
        recalled = base + rest @ self.memory_directions
        share = self.recalled_share
        return {"cells": share * recalled + (1 - share) * generated, "generated": generated, "recalled": recalled}

    @torch.no_grad()
    def mean_shift(
        self,
        basal: Float[Tensor, "S H"],
        table: QueryTable,
        query: Int[Tensor, " B"],
        cell_type: int,
        *,
        with_responses: bool = True,
    ) -> MeanShift:
        """Return the mean change of some control cells of one cell type under each query, without their expression.

        Parameters
        ----------
        basal
            Encoded control cells.
        table
            Queries of the call, with ``keys``.
        query, cell_type
            Rows of the table, and the row of its view.
        with_responses
            Whether what the candidates did is returned too, which is most of the work.
        """
        recall = table.recall(query, torch.full_like(query, cell_type))
        slots = recall.joined.rows if self.reads_keys else None
        cells = basal.expand(len(query), *basal.shape)  # (B, S, H)
        mask = torch.ones(cells.shape[:2], dtype=torch.bool, device=cells.device)
        refined = self._refined(cells, recall, table.keys, slots, None)
        loadings = self.generator.loadings(cells, refined.context, mask).mean(1)  # (B, R)
        if self.params.residual == "hidden":  # an effect is what a perturbation adds to the change of control cells
            loadings = loadings - self.generator.loadings(cells[:1], 0 * refined.context[:1], mask[:1]).mean(1)
        change = loadings @ self.generator.basis  # (B, G)
        weights = refined.weights.mean(1)  # (B, J)
        responses = change.new_zeros(len(query), 0, change.shape[1])
        if not self.has_memory:
            return MeanShift(change, recall.joined, weights, responses)
        directions = self.memory_directions
        of_components, rest = recall.weighted(refined.weights)
        base = recall.mean + of_components.mean(1) @ directions  # (B, G)
        recalled = rest.mean(1) @ directions
        shift = base + self.recalled_share * recalled + (1 - self.recalled_share) * change
        if with_responses:
            responses = recall.mean[:, None] + recall.joined.response @ directions  # (B, J, G)
        return MeanShift(shift, recall.joined, weights, responses)

    def loss(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Any], generative_outputs: dict[str, Any]
    ) -> LossOutput:
        """Return the set loss averaged over sets, plus the sparsity penalty on open gates (gumbel only).

        With a memory, generator and memory are trained apart, each to answer alone. Trained together, the generator
        would overfit to the training conditions, and the memory would learn that it is not needed. In evaluation
        ``of_sets`` (B, n) holds the set loss of every set, with a memory under each of the n shares of ``SHARES``, and
        then ``agreement`` (B, n) how well the mean shift of the answer and the observed one agree.
        """
        if self.training:
            null = self.params.null_weight > 0
            metrics = training_losses(tensors, generative_outputs, self.params.loss, with_null=null)
        else:
            metrics = validation_losses(tensors, inference_outputs["recall"].mean, generative_outputs, self.params.loss)
        total = metrics["set_loss"] + metrics.get("recalled_loss", 0.0)
        total = total + self.params.null_weight * metrics.get("null_loss", 0.0)
        mask = tensors["control_mask"]
        if self.params.retrieval == "gumbel":
            present = inference_outputs["recall"].joined.present
            shown = mask[:, :, None] & present[:, None]  # (B, S, J)
            open_share = (inference_outputs["refined"].gates * shown).sum() / shown.sum().clamp(min=1)
            total = total + self.params.sparsity_weight * open_share
            metrics["gate_open"] = open_share.detach()
        return LossOutput(loss=total, n_obs_minibatch=len(mask), extra_metrics=metrics)
