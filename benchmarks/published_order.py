"""What does refinement cost in the published order of operations?

A slow oracle written from the description of the model (arXiv:2603.07233), and what its code does at commit 3c19b33:
the database is searched, gathered and encoded for every cell of a set, though the query is one per set; a Python loop
masks the query itself; every pair of cell and candidate is concatenated, normalised, scored and mapped to a value. It
computes what :class:`published.module.PublishedModule` computes.
"""

import torch
from published.module import PublishedModule
from torch import Tensor
from torch.nn import functional as F

from ptrag_sc.nn import Refined


class PublishedOrder(PublishedModule):
    """The published variant ``ptrag``, cell by cell."""

    def search(self, own: Tensor, n_cells: int, n_candidates: int) -> Tensor:
        """Return the nearest rows (B, S, K) of every cell's query, itself excluded."""
        per_cell = own[:, None].expand(-1, n_cells).flatten()
        table = F.normalize(self.embeddings, dim=1)
        cosine = F.normalize(self.embeddings[per_cell], dim=1) @ table.T
        for row, itself in enumerate(per_cell.tolist()):
            cosine[row, itself] = -torch.inf
        return cosine.topk(n_candidates, dim=1).indices.view(len(own), n_cells, n_candidates)

    def refine(self, basal: Tensor, own: Tensor, n_candidates: int, noise: Tensor | None = None) -> Refined:
        """Return context and weights, search and encoding included."""
        n_cells = basal.shape[1]
        indices = self.search(own, n_cells, n_candidates)
        keys = self.encode_embedding(self.embeddings[indices])  # of B x S x K rows of width D
        query = self.encode_embedding(self.embeddings[own])[:, None].expand(-1, n_cells, -1)
        pairs = torch.cat([x[:, :, None].expand_as(keys) for x in (basal, query)] + [keys], dim=-1)
        scorer = self.refiner.scorer
        pairs = scorer.norm(pairs)
        raw = scorer.out(scorer.dropout(F.gelu(scorer.hidden(pairs))))
        noise = -torch.empty_like(raw).exponential_().log() if noise is None else noise
        scores = (raw / raw.std() + noise) / self.refiner.temperature
        soft = torch.softmax(scores, dim=-1)
        hard = F.one_hot(soft.argmax(-1), 2).to(soft)
        weights = (hard - soft.detach() + soft)[..., 1]
        return Refined((weights[..., None] * self.refiner.value(pairs)).sum(2), weights, weights)

    def inference(self, control_cells: Tensor, own: Tensor, n_candidates: int) -> dict:
        """Return ``basal`` and ``refined``; ``own`` is the query's row in the table."""
        basal = self.encode_cells(control_cells)
        return {"basal": basal, "refined": self.refine(basal, own, n_candidates)}
