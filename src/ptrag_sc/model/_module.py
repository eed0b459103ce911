"""How do encoder, retrieval, refinement and generator make one model? The only place where parts are composed."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor
from torch.nn import functional as F

from ptrag_sc._validation import absent, unusable
from ptrag_sc.nn import LOSSES, CellEncoder, EmbeddingEncoder, Refined, Refiner, SetTransformer
from ptrag_sc.retrieval import Candidates

RETRIEVAL = ("gumbel", "attention", "none")
RANGES = {
    "n_hidden": (1, math.inf),
    "n_layers": (1, math.inf),
    "n_heads": (1, math.inf),
    "dropout_rate": (0.0, 0.99),
    "candidate_dropout": (0.0, 0.99),
    "temperature": (1e-6, math.inf),
    "sparsity_weight": (0.0, math.inf),
}


@dataclass(frozen=True)
class ModuleParams:
    """Parameters of :class:`PTRAGModule` that are not shapes; they are described at :class:`ptrag_sc.PTRAG`."""

    retrieval: Literal["gumbel", "attention", "none"]
    n_hidden: int
    n_layers: int
    n_heads: int
    dropout_rate: float
    candidate_dropout: float
    temperature: float
    sparsity_weight: float
    loss: str

    def __post_init__(self):
        """Refuse values that cannot work, before anything is built."""
        for name, known in (("retrieval", RETRIEVAL), ("loss", tuple(LOSSES))):
            if getattr(self, name) not in known:
                remedy = f"Pass one of {known}."
                raise ValueError(absent(f"{name}=", getattr(self, name), "the known values", known, remedy))
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                problem, remedy = f"is not between {low:g} and {high:g}", "Choose a value in range."
                raise ValueError(unusable(f"{name}={getattr(self, name)}", "the constructor", problem, remedy))
        if self.n_hidden % self.n_heads:
            problem = f"is no multiple of n_heads={self.n_heads}"
            raise ValueError(unusable(f"n_hidden={self.n_hidden}", "the constructor", problem, "Choose a multiple."))


class Retrieved(NamedTuple):
    """What was retrieved for the B sets of a mini-batch."""

    query: Float[Tensor, "B H"]  # encoded
    keys: Float[Tensor, "B K H"]  # encoded candidates
    candidates: Candidates


class EncodedQueries(NamedTuple):
    """Encoded perturbations of one training step or of one prediction call: every row once."""

    vectors: Float[Tensor, "Q H"]
    keys: Float[Tensor, "U H"]  # the distinct candidates
    slots: Int[Tensor, "Q K"]  # row of keys in each slot
    candidates: Candidates

    def take(self, query: Int[Tensor, " B"]) -> Retrieved:
        """Return what belongs to the queries of B sets."""
        # Not keys[slots]: the gradient of an index is summed by threads in any order, and no two runs are equal.
        keys = F.embedding(self.slots[query], self.keys)
        return Retrieved(F.embedding(query, self.vectors), keys, self.candidates.take(query))


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
    """

    def __init__(self, embeddings: Float[Tensor, "P D"], basis: Float[Tensor, "R G"], params: ModuleParams):
        super().__init__()
        self.params, size = params, (params.n_hidden, params.n_layers, params.n_heads)
        self.register_buffer("embeddings", torch.as_tensor(embeddings))
        self.encode_cells = CellEncoder(basis.shape[1], params.n_hidden)
        self.encode_embedding = EmbeddingEncoder(embeddings.shape[1], params.n_hidden)
        self.refiner = None
        if params.retrieval != "none":
            self.refiner = Refiner(
                params.n_hidden,
                gated=params.retrieval == "gumbel",
                temperature=params.temperature,
                dropout=params.dropout_rate,
                candidate_dropout=params.candidate_dropout,
            )
        self.generator = SetTransformer(*size, basis=basis, dropout=params.dropout_rate)

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
        return {"control_cells": tensors["control_cells"]}

    def _get_generative_input(self, tensors: dict[str, Tensor], inference_outputs: dict) -> dict[str, Tensor]:
        return {
            "control_cells": tensors["control_cells"],
            "control_mask": tensors["control_mask"],
            "basal": inference_outputs["basal"],
            "context": inference_outputs["refined"].context,
        }

    def encode(
        self,
        vectors: Float[Tensor, "Q D"],
        rows: Int[Tensor, " U"],
        slots: Int[Tensor, "Q K"],
        candidates: Candidates,
    ) -> EncodedQueries:
        """Encode queries, and their distinct candidates (rows of the candidate table)."""
        encode = self.encode_embedding
        return EncodedQueries(encode(vectors), encode(self.embeddings[rows]), slots, candidates)

    @auto_move_data
    def inference(
        self, control_cells: Float[Tensor, "B S G"], retrieved: Retrieved, noise: Float[Tensor, "B S K"] | None = None
    ) -> dict[str, Tensor | Candidates | Refined]:
        """Encode the control cells and refine what was retrieved for each set's query.

        Returns
        -------
        ``basal`` (B, S, H), ``candidates`` (:class:`Candidates` of the B queries), ``refined`` (:class:`Refined`).
        """
        basal = self.encode_cells(control_cells)
        query, keys, candidates = retrieved
        if self.refiner is None:
            context = query[:, None].expand_as(basal)
            nothing = basal.new_zeros(*basal.shape[:2], 0)
            return {"basal": basal, "candidates": candidates, "refined": Refined(context, nothing, nothing)}
        refined = self.refiner(basal, query, keys, candidates.present, candidates.similarity, noise)
        return {"basal": basal, "candidates": candidates, "refined": refined}

    @auto_move_data
    def generative(
        self,
        control_cells: Float[Tensor, "B S G"],
        control_mask: Bool[Tensor, "B S"],
        basal: Float[Tensor, "B S H"],
        context: Float[Tensor, "B S H"],
    ) -> dict[str, Tensor]:
        """Return ``cells`` (B, S, G): each control cell plus the change that its context brings."""
        return {"cells": control_cells + self.generator(basal, context, control_mask)}

    def loss(
        self, tensors: dict[str, Tensor], inference_outputs: dict, generative_outputs: dict[str, Tensor]
    ) -> LossOutput:
        """Return the set loss averaged over sets, plus the sparsity penalty on open gates (gumbel only)."""
        control_mask = tensors["control_mask"]
        distance = LOSSES[self.params.loss](
            generative_outputs["cells"], tensors["target_cells"], control_mask, tensors["target_mask"]
        ).mean()
        metrics = {"set_loss": distance}
        total = distance
        if self.params.retrieval == "gumbel":
            shown = control_mask[:, :, None] & inference_outputs["candidates"].present[:, None]
            open_share = (inference_outputs["refined"].gates * shown).sum() / shown.sum().clamp(min=1)
            total = distance + self.params.sparsity_weight * open_share
            metrics["gate_open"] = open_share.detach()
        return LossOutput(loss=total, n_obs_minibatch=len(control_mask), extra_metrics=metrics)
