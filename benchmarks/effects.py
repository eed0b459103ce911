"""How long does the table of effects of many unseen perturbations take, and how much memory?

``python benchmarks/effects.py`` asks for 5,000 perturbations of 2,000 genes in one cell type; 300 of them were measured
(simulated cells, random gene embeddings for the others), on one thread.
"""

import argparse
import resource
import time

import numpy as np
import pandas as pd
import torch
from measure import machine

import ptrag_sc
from ptrag_sc import PTRAG

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}


def peak_gb() -> float:
    """Return the largest memory that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measured(*, n_asked: int, n_genes: int, n_perturbations: int, n_cells: int) -> dict[str, float]:
    """Return processor seconds and the growth of the peak of a call of ``tl.predict_effects``."""
    adata = ptrag_sc.datasets.simulated(
        n_cells=n_cells, n_genes=n_genes, n_perturbations=n_perturbations, n_cell_types=1
    )
    known = adata.uns["gene_embedding"]
    width = known["vectors"].shape[1]
    others = [f"unseen{i}" for i in range(n_asked - n_perturbations)]
    vectors = np.concatenate([known["vectors"], np.random.default_rng(0).normal(size=(len(others), width))])
    vectors = pd.DataFrame(vectors, index=[*known["genes"], *others])
    PTRAG.setup_anndata(adata, **KEYS)
    model = PTRAG(adata)
    model.is_trained_ = True  # as it is meant to be used: no warning
    start = time.process_time()
    model.learn_effect_errors()
    learned = time.process_time() - start
    before, start = peak_gb(), time.process_time()
    table = ptrag_sc.tl.predict_effects(adata, model, list(vectors.index), gene_embedding=vectors)
    taken = time.process_time() - start
    return {
        "rows": len(table),
        "learning intervals (s)": learned,
        "table (s)": taken,
        "peak before (GB)": before,
        "further peak (GB)": peak_gb() - before,
        "table (GB)": float(table.memory_usage().sum()) / 2**30,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")))
    print(measured(n_asked=5000, n_genes=2000, n_perturbations=300, n_cells=20_000))


if __name__ == "__main__":
    main()
