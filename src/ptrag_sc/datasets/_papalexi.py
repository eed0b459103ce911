"""Which real screen comes with the package?"""

from importlib import resources

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from ptrag_sc._constants import EMBEDDING_KEY
from ptrag_sc.datasets._log_normalised import log_normalised

FILE = "papalexi.npz"  # benchmarks/make_papalexi.py of the repository writes it
CELL_TYPE = "THP-1"
VECTORS = "all-MiniLM-L6-v2 of gene texts (NCBI, RefSeq, UniProt)"


def papalexi() -> AnnData:
    """Load a real screen: 25 knock-outs in THP-1 cells, from the package and without a network.

    The ECCITE-seq screen of [1]_, from the example data of the R package sceptredata: 18,826 cells in three replicates,
    2,205 of them control, and 299 genes. It is small: one cell type, nine knock-outs whose effect repeats in split
    halves, others without any. So it shows the steps on real data, and what can be known from little; it does not rank
    methods. With so few perturbations, neighbours in the gene embedding predict hardly better than the mean of all
    others.

    The vectors are sentence embeddings by all-MiniLM-L6-v2 of short texts about the genes. They stand in for those of
    :func:`genept`, which have to be downloaded. They are stored in half precision, which changes cosines by less than
    0.0001.

    Returns
    -------
    AnnData
        ``layers["counts"]`` are counts (n, G), ``X`` is log1p of counts normalised to 10,000 transcripts of the whole
        cell, measured genes or not (both CSR float32). ``obs`` has ``perturbation`` (control: ``non-targeting``),
        ``cell_type`` (``THP-1``), ``batch`` (the replicate) and ``total_umis``, the number of transcripts of the whole
        cell. ``var_names`` are symbols. ``uns["gene_embedding"]`` is what :func:`ptrag_sc.pp.gene_embedding` writes:
        ``genes`` (89,), the 25 perturbed and the 73 measured genes that have a vector (9 are both), ``vectors``
        (89, 384) float32 of unit norm, ``source``, ``excluded`` (empty). Every call returns a new object.

    Notes
    -----
    The file ``LICENSES.md`` beside the data names their origins and licences.

    References
    ----------
    .. [1] Papalexi et al. (2021), GSE153056.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.papalexi()
    >>> adata.shape, adata.obs["perturbation"].nunique()
    ((18826, 299), 26)
    >>> labels = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
    >>> ptrag_sc.PTRAG.setup_anndata(adata, batch_key="batch", **labels)

    What the knock-out of STAT1 lowers most, beside STAT1 itself:

    >>> knocked_out, control = (adata[adata.obs["perturbation"] == p].to_df() for p in ("STAT1", "non-targeting"))
    >>> (knocked_out.mean() - control.mean()).nsmallest(3).index.tolist()
    ['STAT1', 'PSMB9', 'UBE2L6']
    """
    stored = resources.files("ptrag_sc.datasets") / "stored" / FILE
    with stored.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        counts = csr_matrix(arrays["counts"], dtype=np.float32)
        obs = pd.DataFrame(
            {
                "perturbation": pd.Categorical.from_codes(arrays["perturbation"], arrays["perturbations"]),
                "cell_type": pd.Categorical([CELL_TYPE] * counts.shape[0]),
                "batch": pd.Categorical.from_codes(arrays["batch"], arrays["batches"]),
                "total_umis": arrays["total_umis"].astype(np.int64),
            },
            index=[f"papalexi_{number:05d}" for number in arrays["cell"]],
        )
        genes, embedded = arrays["genes"], arrays["embedded"]
        vectors = arrays["vectors"].astype(np.float64)  # (m, D), of unit norm up to half precision
    x = log_normalised(counts, obs["total_umis"].to_numpy())
    adata = AnnData(x, obs, pd.DataFrame(index=genes), layers={"counts": counts})
    adata.uns[EMBEDDING_KEY] = {
        "genes": embedded,
        "vectors": (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32),
        "source": VECTORS,
        "excluded": np.array([], dtype=str),
    }
    return adata
