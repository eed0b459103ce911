"""How do counts come to the scale of the datasets, log1p of counts per 10,000?"""

import numpy as np
from scipy.sparse import csr_matrix

TARGET_SUM = 1e4  # counts of a cell after normalisation


def log_normalised(counts: csr_matrix, totals: np.ndarray) -> csr_matrix:
    """Return log1p of counts (n, G) times 10,000 / total of the cell (n,); a total of 0 counts as 1.

    Examples
    --------
    >>> np.expm1(log_normalised(csr_matrix([[1.0, 4.0]], dtype=np.float32), np.array([20]))).toarray().round().tolist()
    [[500.0, 2000.0]]
    """
    x = counts.copy()
    factors = (TARGET_SUM / np.maximum(totals, 1)).astype(np.float32)  # (n,)
    x.data *= np.repeat(factors, np.diff(x.indptr))
    np.log1p(x.data, out=x.data)
    return x
