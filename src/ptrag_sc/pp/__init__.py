"""What is prepared before a model is set up?"""

from ._gene_embedding import gene_embedding
from ._split import split

__all__ = ["gene_embedding", "split"]
