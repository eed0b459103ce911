"""How are expression profiles and gene embeddings brought to the hidden width?"""

import math

from jaxtyping import Float
from torch import Tensor, nn


class CellEncoder(nn.Module):
    """Two linear maps with a GELU between: from a cell's expression to its hidden state.

    Parameters
    ----------
    n_genes
        Width of the expression, G.
    n_hidden
        Hidden width, H.
    """

    def __init__(self, n_genes: int, n_hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_genes, n_hidden), nn.GELU(), nn.Linear(n_hidden, n_hidden))

    def forward(self, cells: Float[Tensor, "B S G"]) -> Float[Tensor, "B S H"]:
        """Return the hidden state of every cell; no cell influences another."""
        return self.layers(cells)


class EmbeddingEncoder(nn.Module):
    """Bias-free linear map of unit-norm embedding rows, scaled by sqrt(D).

    A unit row of width D has entries of size 1/sqrt(D); the factor brings them to order one, so that an average of
    many candidates does not vanish. Without bias the zero vector (the control) maps to zero.

    Parameters
    ----------
    n_embedding
        Width of the embedding, D.
    n_hidden
        Hidden width, H.
    """

    def __init__(self, n_embedding: int, n_hidden: int):
        super().__init__()
        self.scale = math.sqrt(n_embedding)  # a constant, so that it is neither trained nor saved
        # A bias would give the control, whose vector is zero, an embedding of its own.
        self.linear = nn.Linear(n_embedding, n_hidden, bias=False)

    def forward(self, vectors: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows H"]:
        """Return the encoded rows."""
        return self.linear(vectors * self.scale)
