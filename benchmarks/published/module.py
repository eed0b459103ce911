"""How do parts of this package make the three published variants?

Follows arXiv:2603.07233 and what its code does at commit 3c19b33. The page of the documentation on the published code
explains why :class:`ptrag_sc.PTRAG` differs.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn
from torch.nn import functional as F

from ptrag_sc._validation import absent
from ptrag_sc.nn import Refined, summed_distances
from ptrag_sc.retrieval import Evidence, QueryTable, Recall
from published.selection import SingleHeadAttention, SummedSelection

VARIANTS = ("state", "vanilla", "ptrag")
SPARSITY_WEIGHT = 0.1


@dataclass(frozen=True)
class PublishedParams:
    """Sizes that the shapes of a ``state_dict`` do not tell, and constants."""

    variant: Literal["state", "vanilla", "ptrag"]
    n_heads: int = 12
    temperature: float = 0.5
    dropout: float = 0.1  # of the scorer
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e4
    scaled: bool = True  # scores divided by their std over the mini-batch; False shows what that costs
    causal: bool = True  # cells see earlier cells only, by their place; False (neither) shows what that costs


class PublishedSizes(NamedTuple):
    """Widths of the published model; the defaults are those of the paper."""

    n_genes: int
    n_embedding: int
    n_hidden: int = 128
    n_layers: int = 8
    n_attention: int = 12 * 58  # heads x width of a head
    n_feed_forward: int = 2784
    n_batches: int = 0  # 0: no batch term


class CausalAttention(nn.Module):
    """Multi-head attention with rotary positions and a causal mask (Su et al. 2021, as in Llama)."""

    def __init__(self, sizes: PublishedSizes, params: PublishedParams):
        super().__init__()
        self.n_heads, self.theta, self.causal = params.n_heads, params.rope_theta, params.causal
        self.q, self.k, self.v = (nn.Linear(sizes.n_hidden, sizes.n_attention, bias=False) for _ in range(3))
        self.o = nn.Linear(sizes.n_attention, sizes.n_hidden, bias=False)

    def forward(self, cells: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B S H"]:
        """Return what each cell gathers from itself and the cells that stand before it (padding stands last)."""
        q, k, v = (f(cells).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.causal:
            q, k = self._rotate(q), self._rotate(k)
        shown = None if self.causal else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=shown, is_causal=self.causal)
        return self.o(mixed.transpose(1, 2).flatten(2))

    def _rotate(self, x: Float[Tensor, "B A S W"]) -> Float[Tensor, "B A S W"]:
        place, pair = torch.arange(x.shape[-2], device=x.device), torch.arange(0, x.shape[-1], 2, device=x.device)
        angle = (place[:, None] * self.theta ** (-pair / x.shape[-1])).to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class LlamaBlock(nn.Module):
    """Pre-norm block with RMSNorm and SwiGLU."""

    def __init__(self, sizes: PublishedSizes, params: PublishedParams):
        super().__init__()
        n_hidden, wide = sizes.n_hidden, sizes.n_feed_forward
        self.norm_attention = nn.RMSNorm(n_hidden, eps=params.rms_norm_eps)
        self.attention = CausalAttention(sizes, params)
        self.norm_feed_forward = nn.RMSNorm(n_hidden, eps=params.rms_norm_eps)
        self.gate, self.up = (nn.Linear(n_hidden, wide, bias=False) for _ in range(2))
        self.down = nn.Linear(wide, n_hidden, bias=False)

    def forward(self, hidden: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B S H"]:
        """Return the updated cells."""
        hidden = hidden + self.attention(self.norm_attention(hidden), mask)
        x = self.norm_feed_forward(hidden)
        return hidden + self.down(F.silu(self.gate(x)) * self.up(x))


class LlamaStack(nn.Module):
    """The published generator: blocks and a last RMSNorm."""

    def __init__(self, sizes: PublishedSizes, params: PublishedParams):
        super().__init__()
        self.blocks = nn.ModuleList(LlamaBlock(sizes, params) for _ in range(sizes.n_layers))
        self.norm = nn.RMSNorm(sizes.n_hidden, eps=params.rms_norm_eps)

    def forward(self, hidden: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B S H"]:
        """Return the hidden state of the perturbed cells."""
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.norm(hidden)


def published_energy_distance(
    x: Float[Tensor, "B S G"],
    y: Float[Tensor, "B T G"],
    x_mask: Bool[Tensor, "B S"],
    y_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, " B"]:
    r"""Loss of the published code: half of the biased (V-statistic) squared energy distance.

    :math:`E|x-y| - E|x-x'|/2 - E|y-y'|/2`, pairs of a cell with itself included, so its expectation for two samples
    of one population is above 0.
    """
    n = x_mask.sum(1)  # (B,)
    m = y_mask.sum(1)  # (B,)
    cross, within_x, within_y = summed_distances(x, y, x_mask, y_mask)
    return cross / (n * m) - within_x / (2 * n * n) - within_y / (2 * m * m)


def recall_of(vectors: Float[Tensor, "B D"], rows: Int[Tensor, "B K"]) -> Recall:
    """Return what is recalled for B queries whose candidates are given."""
    present = torch.ones_like(rows, dtype=torch.bool)
    shape = (*rows.shape, 1)
    neighbours = Evidence(rows, present, vectors.new_zeros(shape), vectors.new_zeros(*rows.shape, 0))
    nothing = Evidence(*(field[:, :0] for field in neighbours))
    return Recall(vectors, vectors.new_zeros(len(vectors), 0), nothing, nothing, neighbours)


class PublishedModule(BaseModuleClass):
    """One of the published variants, with the inputs and outputs of :class:`ptrag_sc.model._module.PTRAGModule`.

    Parameters
    ----------
    embeddings
        Rows that candidate indices refer to (P, D), as they are: not normalised.
    sizes, params
        Widths and constants.
    """

    memory = None  # which PTRAG asks for

    def __init__(self, embeddings: Float[Tensor, "P D"], sizes: PublishedSizes, params: PublishedParams):
        super().__init__()
        if params.variant not in VARIANTS:
            raise ValueError(absent("Variant", params.variant, "the published code", VARIANTS, "Pass one of them."))
        self.params = params
        self.register_buffer("embeddings", torch.as_tensor(embeddings))
        self.encode_cells = nn.Linear(sizes.n_genes, sizes.n_hidden)
        self.encode_embedding = nn.Linear(sizes.n_embedding, sizes.n_hidden)
        self.encode_batch = nn.Embedding(sizes.n_batches, sizes.n_hidden) if sizes.n_batches else None
        self.refiner = {
            "state": lambda: None,
            "vanilla": lambda: SingleHeadAttention(sizes.n_embedding, sizes.n_hidden),
            "ptrag": lambda: SummedSelection(
                sizes.n_hidden, temperature=params.temperature, dropout=params.dropout, scaled=params.scaled
            ),
        }[params.variant]()
        self.generator = LlamaStack(sizes, params)
        self.project = nn.Linear(sizes.n_hidden, sizes.n_genes)

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
        return {"control_cells": tensors["control_cells"], "control_mask": tensors["control_mask"]}

    def _get_generative_input(self, tensors: dict[str, Tensor], inference_outputs: dict) -> dict[str, Tensor]:
        context = inference_outputs["refined"].context
        return {"basal": inference_outputs["basal"], "context": context, "control_mask": tensors["control_mask"]}

    @property
    def reads_keys(self) -> bool:
        """Whether candidates are used at all."""
        return self.params.variant != "state"

    def encode_keys(self, rows: Int[Tensor, " U"] | None = None) -> Float[Tensor, "U H"]:
        """Return encoded candidates, None: all; vanilla has an encoder of its own for them."""
        embeddings = self.embeddings if rows is None else self.embeddings[rows]
        if self.params.variant == "vanilla":
            return self.refiner.encode_candidates(embeddings)
        return self.encode_embedding(embeddings)

    @torch.no_grad()
    def with_keys(self, table: QueryTable) -> QueryTable:
        """Return the query table of a prediction, with every candidate encoded once."""
        return table._replace(keys=self.encode_keys()) if self.reads_keys else table

    @auto_move_data
    def inference(
        self,
        control_cells: Float[Tensor, "B S G"],
        control_mask: Bool[Tensor, "B S"],
        recall: Recall,
        keys: Float[Tensor, "U H"] | None = None,
        slots: Int[Tensor, "B K"] | None = None,
        noise: Float[Tensor, "B S K 2"] | None = None,
    ) -> dict:
        """Return ``basal``, ``recall``, ``refined`` and, for ptrag, ``selection`` (else None)."""
        basal = self.encode_cells(control_cells)
        query = self.encode_embedding(recall.vectors)  # (B, H)
        selection = None
        if self.params.variant == "state":
            context = basal + query[:, None]
            weights = basal.new_zeros(*basal.shape[:2], 0)
        elif self.params.variant == "vanilla":
            context, weights = self.refiner(basal + query[:, None], F.embedding(slots, keys))
        else:
            placed = F.embedding(slots, keys)  # (B, K, H)
            selection = self.refiner.select(basal, query, placed, control_mask, noise)
            weights = selection.weights
            context = self.refiner(basal, query, placed, weights)
        refined = Refined(context, weights, weights)
        outputs = {"basal": basal, "recall": recall, "refined": refined, "selection": selection}
        return {**outputs, "strength": basal.new_zeros(len(basal))}  # no memory

    @auto_move_data
    def generative(
        self,
        basal: Float[Tensor, "B S H"],
        context: Float[Tensor, "B S H"],
        control_mask: Bool[Tensor, "B S"],
        batch: Int[Tensor, "B S"] | None = None,
    ) -> dict[str, Tensor]:
        """Return ``cells`` (B, S, G); the term of the batch enters where the batch of every cell is given."""
        if batch is not None:
            context = context + self.encode_batch(batch)
        return {"cells": F.relu(self.project(self.generator(context, control_mask) + basal))}

    def loss(
        self, tensors: dict[str, Tensor], inference_outputs: dict, generative_outputs: dict[str, Tensor]
    ) -> LossOutput:
        """Return the V-statistic energy distance averaged over sets, plus 0.1 times the share of kept candidates."""
        masks = tensors["control_mask"], tensors["target_mask"]
        distance = published_energy_distance(generative_outputs["cells"], tensors["target_cells"], *masks).mean()
        metrics, total = {"set_loss": distance}, distance
        if self.params.variant == "ptrag":
            # The absolute value has no gradient at 0: only candidates that are kept are pushed, as recorded.
            kept = inference_outputs["refined"].weights[masks[0]].abs().mean()
            total, metrics["gate_open"] = distance + SPARSITY_WEIGHT * kept, kept.detach()
        return LossOutput(loss=total, n_obs_minibatch=len(masks[0]), extra_metrics=metrics)
