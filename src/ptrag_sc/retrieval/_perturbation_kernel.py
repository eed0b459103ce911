"""How alike are perturbations: by their responses where these are known, and by gene embedding elsewhere?"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from ptrag_sc.retrieval._kernel import RESPONSE_WIDTH, TEXT_WIDTH, TINY, centred, similarity_kernel

JITTER = 1e-4  # variance that keeps perturbations with the same text apart


@dataclass(frozen=True)
class PerturbationKernel:
    r"""A kernel of n perturbations, computed block by block.

    Where some of the perturbations have a response, the kernel is

    .. math:: T_{ij} + a_i^\top (R - T_{kk})\, a_j , \qquad a_i = (T_{kk} + \epsilon I)^{-1} T_{ki}

    with T the kernel of the gene embeddings, R that of the responses, and k those that have one, for which
    :math:`a_i` is a row of the identity. So it is R between two perturbations with a response, and what T says of the
    others given these stays as it is: it is a covariance, which a kernel patched together from R and T need not be. R
    is brought to the mean of :math:`T_{kk}` and to its mean diagonal, so that neither kind of perturbation looks less
    certain because of its space.

    Parameters
    ----------
    vectors
        Vectors (n, D) of the kernel that all perturbations have.
    width
        Its width.
    weights
        :math:`a` (n, k); k is 0 if one space serves all.
    change
        :math:`R - T_{kk}` (k, k).
    space
        What the kernel is of, in words.
    """

    vectors: np.ndarray
    width: float
    weights: np.ndarray
    change: np.ndarray
    space: str

    @classmethod
    def of_text(cls, vectors: np.ndarray) -> "PerturbationKernel":
        """Return the kernel of gene embeddings (n, D)."""
        return cls(vectors, TEXT_WIDTH, np.zeros((len(vectors), 0)), np.zeros((0, 0)), "gene embedding")

    @classmethod
    def of_responses(cls, responses: np.ndarray) -> "PerturbationKernel":
        """Return the kernel of responses in other cell types (n, R)."""
        nothing = np.zeros((len(responses), 0)), np.zeros((0, 0))
        return cls(responses, RESPONSE_WIDTH, *nothing, "responses in other cell types")

    @classmethod
    def of_both(cls, vectors: np.ndarray, known: np.ndarray, responses: np.ndarray) -> "PerturbationKernel":
        """Return the kernel of gene embeddings (n, D), and of the responses (k, R) of some perturbations (k,)."""
        text = similarity_kernel(vectors[known], vectors[known], TEXT_WIDTH).astype(np.float64)
        response = similarity_kernel(responses, responses, RESPONSE_WIDTH).astype(np.float64)
        of_responses = centred(response, response)
        of_responses *= np.trace(centred(text, text)) / max(np.trace(of_responses), TINY)
        of_responses += text.mean()
        inverse = cho_factor(text + JITTER * np.eye(len(text)))
        weights = np.empty((len(vectors), len(known)), dtype=vectors.dtype)
        for rows in np.array_split(np.arange(len(vectors)), max(1, len(vectors) // 2000)):
            to_known = similarity_kernel(vectors[rows], vectors[known], TEXT_WIDTH)
            weights[rows] = cho_solve(inverse, to_known.T).T
        weights[known] = np.eye(len(known), dtype=vectors.dtype)
        space = f"responses of {len(known)} of {len(vectors)} perturbations in other cell types, else gene embedding"
        return cls(vectors, TEXT_WIDTH, weights, (of_responses - text).astype(vectors.dtype), space)

    def among(self, part: np.ndarray) -> "PerturbationKernel":
        """Return the kernel of some of the perturbations, given by number."""
        return replace(self, vectors=self.vectors[part], weights=self.weights[part])

    def block(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the kernel (r, c) of some perturbations with others, given by number."""
        kernel = similarity_kernel(self.vectors[rows], self.vectors[columns], self.width)
        if len(self.change):
            kernel += (self.weights[rows] @ self.change) @ self.weights[columns].T
        return kernel

    def diagonal(self, rows: np.ndarray) -> np.ndarray:
        """Return the kernel (r,) of some perturbations with themselves."""
        change = ((self.weights[rows] @ self.change) * self.weights[rows]).sum(1, dtype=np.float64)
        return 1 + change
