"""How does a set of control cells become a set of perturbed cells?"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

FEED_FORWARD_FACTOR = 2  # width of the feed-forward layer over the hidden width


class SetAttention(nn.Module):
    """Multi-head self-attention over the cells of a set: no positions, no causal mask (Lee et al. 2019).

    Parameters
    ----------
    n_hidden
        Hidden width, H.
    n_heads
        Number of heads; divides H.
    """

    def __init__(self, n_hidden: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        # One product for queries, keys and values of all heads, because three small ones would be slower.
        self.qkv = nn.Linear(n_hidden, 3 * n_hidden)
        self.out = nn.Linear(n_hidden, n_hidden)

    def forward(self, cells: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B S H"]:
        """Return the attention-weighted mean of the set's real cells for each cell; padding gets no weight."""
        n_sets, n_cells, _ = cells.shape
        qkv = self.qkv(cells).view(n_sets, n_cells, 3, self.n_heads, -1)  # (B, S, 3, heads, H / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, S, H / heads) each
        # The mask (B, 1, 1, S) covers keys only: a padded cell still has an output, which nothing reads.
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return self.out(mixed.transpose(1, 2).reshape(n_sets, n_cells, -1))  # (B, S, H)


class ContextGatedBlock(nn.Module):
    """h + a(z) * attention(h) + b(z) * feed-forward(h), with gates a, b linear in the context and zero at first.

    Parameters
    ----------
    n_hidden, n_heads
        Hidden width and number of heads.
    dropout
        Rate in the feed-forward layer.
    anchored
        Whether the gates have no bias, so that the block is exactly the identity for a cell whose context is zero.
    """

    def __init__(self, n_hidden: int, n_heads: int, dropout: float, *, anchored: bool = True):
        super().__init__()
        wide = FEED_FORWARD_FACTOR * n_hidden
        self.norm_attention = nn.LayerNorm(n_hidden)
        self.attention = SetAttention(n_hidden, n_heads)
        self.norm_feed_forward = nn.LayerNorm(n_hidden)
        self.feed_forward = nn.Sequential(
            nn.Linear(n_hidden, wide), nn.GELU(), nn.Dropout(dropout), nn.Linear(wide, n_hidden)
        )
        # Zero gates make the untrained block the identity, so training starts from the retrieved shifts alone.
        self.gates = nn.Linear(n_hidden, 2 * n_hidden, bias=not anchored)
        for parameter in self.gates.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, hidden: Float[Tensor, "B S H"], context: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S H"]:
        """Return the updated cells."""
        gate_attention, gate_feed_forward = self.gates(context).chunk(2, dim=-1)  # (B, S, H) each
        hidden = hidden + gate_attention * self.attention(self.norm_attention(hidden), mask)
        return hidden + gate_feed_forward * self.feed_forward(self.norm_feed_forward(hidden))


class SetTransformer(nn.Module):
    """Context-gated set transformer whose output is the change of each cell, in expression space.

    Returns ``(h_L - h_0) U V`` with a trained U (H, R) and the leading directions V (R, G) of the training shifts. A
    zero context gives a zero change if the transformer is anchored; else the change of such a cell is learned.

    Parameters
    ----------
    n_hidden, n_layers, n_heads
        Hidden width, number of blocks, heads of each.
    basis
        Directions of change (R, G).
    dropout
        Rate in the feed-forward layers.
    anchored
        As in :class:`ContextGatedBlock`.
    """

    def __init__(
        self,
        n_hidden: int,
        n_layers: int,
        n_heads: int,
        *,
        basis: Float[Tensor, "R G"],
        dropout: float,
        anchored: bool = True,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            ContextGatedBlock(n_hidden, n_heads, dropout, anchored=anchored) for _ in range(n_layers)
        )
        self.project = nn.Linear(n_hidden, basis.shape[0], bias=False)  # U; a bias would change cells without context
        self.basis: Tensor
        self.register_buffer("basis", torch.as_tensor(basis))  # V: saved with the model, never trained

    def forward(
        self, basal: Float[Tensor, "B S H"], context: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S G"]:
        """Return the change of every cell."""
        return self.loadings(basal, context, mask) @ self.basis  # (B, S, R) @ (R, G)

    def loadings(
        self, basal: Float[Tensor, "B S H"], context: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S R"]:
        """Return the change of every cell along the directions."""
        hidden = basal
        for block in self.blocks:
            hidden = block(hidden, context, mask)
        loadings: Tensor = self.project(hidden - basal)
        return loadings
