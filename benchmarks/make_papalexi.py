"""How is the file made that ``ptrag_sc.datasets.papalexi`` reads?

``python benchmarks/make_papalexi.py`` writes it into the source tree, from two files below the folder that the
environment variable ``PTRAG_SC_TEST_DATA`` names: the screen and the gene vectors. ``--out FILE`` writes it elsewhere.
It prints one JSON line.
"""

import argparse
import json
import os
from pathlib import Path

import anndata as ad
import numpy as np

STORED = Path(__file__).parents[1] / "src" / "ptrag_sc" / "datasets" / "stored" / "papalexi.npz"
CONTROL = "non-targeting"


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return all that is stored, under its name in the file."""
    adata = ad.read_h5ad(folder / "papalexi_thp1_299genes.h5ad")
    counts = adata.X.toarray()
    if (counts != counts.astype(np.uint16)).any():
        raise ValueError("The screen holds values that are no counts up to 65,535.")
    numbers = adata.obs_names.str.removeprefix("papalexi_").astype(np.int64)
    if list(adata.obs_names) != [f"papalexi_{i:05d}" for i in numbers] or set(adata.obs["cell_type"]) != {"THP-1"}:
        raise ValueError("The screen has other names of cells, or of its cell type, than datasets.papalexi writes.")
    perturbation, batch = (adata.obs[column].cat for column in ("perturbation", "batch"))
    with np.load(folder / "gene_emb_minilm_l6_v2_384.npz", allow_pickle=False) as table:
        row = {gene: i for i, gene in enumerate(table["genes"].tolist())}
        perturbed = set(perturbation.categories) - {CONTROL}
        embedded = sorted(perturbed | (set(adata.var_names) & set(row)))
        vectors = table["emb"][[row[gene] for gene in embedded]]
    return {
        # Gene after gene, which compresses better than cell after cell, and better than a sparse matrix.
        "counts": np.asfortranarray(counts.astype(np.uint16)),  # (n, G)
        "genes": adata.var_names.to_numpy(dtype=str),  # (G,)
        "cell": numbers.to_numpy(dtype=np.uint16),  # (n,) number in the name of the cell
        "total_umis": adata.obs["total_umis"].to_numpy(dtype=np.uint32),  # (n,)
        "perturbation": perturbation.codes.to_numpy(dtype=np.uint8),  # (n,)
        "perturbations": perturbation.categories.to_numpy(dtype=str),  # the names of these codes
        "batch": batch.codes.to_numpy(dtype=np.uint8),  # (n,)
        "batches": batch.categories.to_numpy(dtype=str),
        "embedded": np.array(embedded),  # (m,) sorted
        "vectors": vectors.astype(np.float16),  # (m, D)
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=STORED)
    out = parser.parse_args().out
    made = arrays(Path(os.environ["PTRAG_SC_TEST_DATA"]) / "data")
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **made)
    print(json.dumps({"cells": len(made["cell"]), "genes": len(made["genes"]), "bytes": out.stat().st_size}))
