"""How do metrics read cells that are stored as a sparse matrix, as predictions with counts are?"""

from typing import Any

import numpy as np
from scipy.sparse import issparse


def dense(cells: Any) -> np.ndarray:
    """Return cells (n, G) as an array, whether dense or sparse.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> dense(csr_matrix([[0.0, 2.0]])).tolist()
    [[0.0, 2.0]]
    """
    if issparse(cells):
        cells = cells.toarray()
    return np.asarray(cells)
