"""How do encoder, retrieval, refinement and generator make one model? The only place where parts are composed."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn
from torch.nn import functional as F

from ptrag_sc.model._module_params import ModuleParams
from ptrag_sc.nn import (
    LOSSES,
    CellEncoder,
    EmbeddingEncoder,
    MemoryRefiner,
    Refined,
    Refiner,
    SetTransformer,
    masked_mean,
    mean_distance,
)
from ptrag_sc.retrieval import Candidates, MemoryView, ResponseMemory, Spoken, Told, agreement, response_scale, tell

MEMORY = "memory_"  # prefix of its buffers
SHARES = tuple(i / 10 for i in range(11))  # of the memory in the answer: the one that validates best is kept
N_FLAGS = 2  # of a slot: own response, known in response space


class Retrieved(NamedTuple):
    """What was retrieved for the B sets of a mini-batch."""

    query: Float[Tensor, "B H"]  # encoded
    keys: Float[Tensor, "B K H"]  # encoded candidates
    candidates: Candidates
    told: Told | None = None  # by the memory


class EncodedQueries(NamedTuple):
    """Encoded perturbations of one training step or of one prediction call: every row once.

    With a memory what is retrieved depends on the cell type too: a condition is a query in a cell type. Without one it
    is the query.
    """

    vectors: Float[Tensor, "Q H"]
    keys: Float[Tensor, "U H"]  # the distinct candidates
    slots: Int[Tensor, "C K"]  # row of keys in each slot of a condition
    candidates: Candidates  # of C conditions

    def take(self, query: Int[Tensor, " B"], condition: Int[Tensor, " B"] | None = None) -> Retrieved:
        """Return what belongs to the queries, and conditions where these are others, of B sets."""
        condition = query if condition is None else condition
        # Not keys[slots]: the gradient of an index is summed by threads in any order, and no two runs are equal.
        keys = F.embedding(self.slots[condition], self.keys)
        return Retrieved(F.embedding(query, self.vectors), keys, self.candidates.take(condition))


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
        self.params, size = params, (params.n_hidden, params.n_layers, params.n_heads)
        self.register_buffer("embeddings", torch.as_tensor(embeddings))
        self.encode_cells = CellEncoder(basis.shape[1], params.n_hidden)
        self.encode_embedding = EmbeddingEncoder(embeddings.shape[1], params.n_hidden)
        self.refiner = self.encode_response = None
        for name, tensor in memory._asdict().items() if memory is not None else ():
            self.register_buffer(MEMORY + name, tensor)
        self.has_memory = memory is not None
        if self.has_memory:
            self.register_buffer("recalled_share", torch.tensor(1.0))
            self.register_buffer("mapped_share", torch.tensor(0.0))
        options = {
            "gated": params.retrieval == "gumbel",
            "temperature": params.temperature,
            "dropout": params.dropout_rate,
            "candidate_dropout": params.candidate_dropout,
        }
        if params.retrieval != "none" and memory is None:
            self.refiner = Refiner(params.n_hidden, **options)
        elif params.retrieval != "none":
            width = len(memory.directions)
            self.refiner = MemoryRefiner(params.n_hidden, width, value_dropout=params.memory_dropout, **options)
            if params.retrieval == "gumbel":  # only the scorer of the gates reads keys
                self.encode_response = nn.Linear(width + N_FLAGS, params.n_hidden, bias=False)
            self.register_buffer("response_scale", response_scale(memory))
        self.generator = SetTransformer(*size, basis=basis, dropout=params.dropout_rate)

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
        return {"control_cells": tensors["control_cells"], "control_mask": tensors["control_mask"]}

    def _get_generative_input(self, tensors: dict[str, Tensor], inference_outputs: dict) -> dict[str, Tensor]:
        return {
            "control_cells": tensors["control_cells"],
            "control_mask": tensors["control_mask"],
            "basal": inference_outputs["basal"],
            "context": inference_outputs["refined"].context,
            "spoken": inference_outputs["spoken"],
        }

    @property
    def memory(self) -> ResponseMemory | None:
        """What the training conditions did."""
        if not self.has_memory:
            return None
        return ResponseMemory(**{name: getattr(self, MEMORY + name) for name in ResponseMemory._fields})

    def encode(
        self,
        vectors: Float[Tensor, "Q D"],
        rows: Int[Tensor, " U"],
        slots: Int[Tensor, "C K"],
        candidates: Candidates,
    ) -> EncodedQueries:
        """Encode queries, and their distinct candidates (rows of the candidate table)."""
        encode = self.encode_embedding
        return EncodedQueries(encode(vectors), encode(self.embeddings[rows]), slots, candidates)

    def recall(
        self,
        retrieved: Retrieved,
        view: MemoryView,
        cell_type: Int[Tensor, " B"],
        perturbed: Bool[Tensor, " B"],
        n_parts: int,
    ) -> Retrieved:
        """Return what was retrieved together with what the memory says to it.

        Parameters
        ----------
        retrieved
            Of B sets.
        view, cell_type, perturbed, n_parts
            As in :func:`tell`.
        """
        query, keys, candidates, _ = retrieved
        slots = candidates.indices, candidates.present, cell_type, perturbed
        told = tell(view, *slots, mapped=self.mapped_share, n_parts=n_parts)
        if self.encode_response is not None:
            is_own = torch.zeros_like(candidates.present)
            is_own[:, : 1 + n_parts] = candidates.present[:, : 1 + n_parts]
            flags = torch.stack([is_own, ~candidates.similarity[..., -1].isnan()], dim=-1).to(keys.dtype)
            keys = keys + self.encode_response(torch.cat([told.low * self.response_scale, flags], dim=-1))
        return Retrieved(query, keys, candidates, told)

    @auto_move_data
    def inference(
        self,
        control_cells: Float[Tensor, "B S G"],
        control_mask: Bool[Tensor, "B S"],
        retrieved: Retrieved,
        noise: Float[Tensor, "B S K"] | None = None,
    ) -> dict[str, Tensor | Candidates | Refined]:
        """Encode the control cells and refine what was retrieved for each set's query.

        Returns
        -------
        ``basal`` (B, S, H), ``candidates`` (:class:`Candidates` of the B queries), ``refined`` (:class:`Refined`),
        ``spoken`` (:class:`Spoken`): what the memory says, None without one; ``strength`` (B,): norm of the mean
        deviation that its slots tell, or 0.
        """
        basal = self.encode_cells(control_cells)
        query, keys, candidates, told = retrieved
        if self.refiner is None:
            nothing = basal.new_zeros(*basal.shape[:2], keys.shape[1])
            refined = Refined(query[:, None].expand_as(basal), nothing, nothing)
        else:
            slots = keys, candidates.present, candidates.similarity
            said = {} if told is None else {"values": told.low * self.response_scale, "n_parts": told.n_parts}
            refined = self.refiner(basal, query, *slots, noise, **said)
        outputs = {"basal": basal, "candidates": candidates, "refined": refined}
        outputs |= {"spoken": None, "strength": basal.new_zeros(len(basal))}
        if told is not None:
            outputs["spoken"] = told.of(refined.weights)
            weights = masked_mean(refined.weights, control_mask)
            outputs["strength"] = (weights[:, None] @ told.low).norm(dim=-1).squeeze(1)
        return outputs

    @auto_move_data
    def generative(
        self,
        control_cells: Float[Tensor, "B S G"],
        control_mask: Bool[Tensor, "B S"],
        basal: Float[Tensor, "B S H"],
        context: Float[Tensor, "B S H"],
        spoken: Spoken | None,
    ) -> dict[str, Tensor]:
        """Return what becomes of each control cell.

        Returns
        -------
        ``cells`` (B, S, G): the control cell plus the change that its context brings. With a memory this change adds to
        where the memory starts (``generated``), and ``cells`` is the mean of that and of all that the memory says
        (``recalled``), weighted by ``recalled_share``. Training asks for the mean of ``recalled`` only (B, G).
        """
        change = self.generator(basal, context, control_mask)
        if not self.has_memory:
            return {"cells": control_cells + change, "generated": control_cells + change}
        start = spoken.start(self.memory_directions)
        generated = control_cells + start.detach() + change  # the start learns from the memory's loss alone
        if self.training:
            recalled = masked_mean(control_cells, control_mask) + spoken.average(control_mask, self.memory_directions)
            return {"generated": generated, "recalled": recalled}
        share, recalled = self.recalled_share, control_cells + start + spoken.others @ self.memory_directions
        return {"cells": share * recalled + (1 - share) * generated, "generated": generated, "recalled": recalled}

    def loss(
        self, tensors: dict[str, Tensor], inference_outputs: dict, generative_outputs: dict[str, Tensor]
    ) -> LossOutput:
        """Return the set loss averaged over sets, plus the sparsity penalty on open gates (gumbel only).

        With a memory generator and memory learn apart, each to answer alone: together the generator would learn the
        training conditions by heart and the memory that it is not needed. In evaluation ``of_sets`` (B, n) holds the
        set loss of every set, with a memory under each of the n shares of ``SHARES``, and then ``agreement`` (B, n) how
        well the mean shift of the answer and the observed one agree.
        """
        masks, target = (tensors["control_mask"], tensors["target_mask"]), tensors["target_cells"]
        metrics, distance = {}, LOSSES[self.params.loss]
        if not self.training:
            parts = [generative_outputs["generated"]]
            if self.has_memory:
                parts = [s * generative_outputs["recalled"] + (1 - s) * parts[0] for s in SHARES]
                mean = inference_outputs["spoken"].mean
                start = masked_mean(tensors["control_cells"], masks[0]) + mean
                answers = torch.stack([masked_mean(cells, masks[0]) - start for cells in parts])
                metrics["agreement"] = agreement(answers, masked_mean(target, masks[1]) - start, mean).T
            metrics["of_sets"] = torch.stack([distance(cells, target, *masks) for cells in parts], dim=1)
            metrics["set_loss"] = metrics["of_sets"].mean(0).min()
        else:
            metrics["set_loss"] = distance(generative_outputs["generated"], target, *masks).mean()
            if self.has_memory:
                metrics["recalled_loss"] = mean_distance(generative_outputs["recalled"], target, masks[1]).mean()
        total = sum(metrics[name] for name in ("set_loss", "recalled_loss") if name in metrics)
        if self.params.retrieval == "gumbel":
            shown = masks[0][:, :, None] & inference_outputs["candidates"].present[:, None]
            open_share = (inference_outputs["refined"].gates * shown).sum() / shown.sum().clamp(min=1)
            total = total + self.params.sparsity_weight * open_share
            metrics["gate_open"] = open_share.detach()
        return LossOutput(loss=total, n_obs_minibatch=len(masks[0]), extra_metrics=metrics)
