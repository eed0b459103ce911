"""How much memory does ``tl.predict`` need beyond what was held before, and beyond the size of what it writes?

``python benchmarks/predict_memory.py`` makes a sparse screen (200,000 cells x 5,000 genes, 90 % zeros, 5 % control
cells, 100 perturbations), predicts every cell with a baseline, and prints bytes and seconds as one JSON line. The
largest memory is read from the operating system (Linux), which forgets the one of before.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

import ptrag_sc

LABELS = {"perturbation_key": "perturbation", "control": "control", "cell_type_key": "cell_type"}
CONTROLS = 0.05


def sparse_screen(n_cells: int, n_genes: int, n_perturbations: int, density: float = 0.1, seed: int = 0) -> AnnData:
    """Return a screen of log1p counts that is never dense."""
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, n_cells, 10_000):
        n = min(10_000, n_cells - start)
        length = rng.binomial(n_genes, density, n)
        columns = np.concatenate([np.sort(rng.choice(n_genes, k, replace=False)) for k in length]).astype(np.int32)
        counts = np.log1p(1 + rng.poisson(0.7, len(columns))).astype(np.float32)
        indptr = np.append(0, np.cumsum(length)).astype(np.int32)
        parts.append(sp.csr_matrix((counts, columns, indptr), shape=(n, n_genes)))
    matrix = sp.vstack(parts, format="csr")
    label = np.where(rng.random(n_cells) < CONTROLS, "control", "")
    names = np.array([f"G{i}" for i in range(n_perturbations)])
    label = np.where(label == "control", label, names[rng.integers(n_perturbations, size=n_cells)])
    obs = pd.DataFrame({"perturbation": pd.Categorical(label), "cell_type": pd.Categorical(["K562"] * n_cells)})
    obs.index = [f"cell{i}" for i in range(n_cells)]
    return AnnData(matrix, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))


def resident(name: str) -> int:
    """Return bytes of the process: ``VmRSS`` now, or ``VmHWM`` at most so far."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Let the largest memory so far be that of now."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=5_000)
    parser.add_argument("--perturbations", type=int, default=100)
    options = parser.parse_args()
    adata = sparse_screen(options.cells, options.genes, options.perturbations)
    ptrag_sc.PTRAG.setup_anndata(adata, **LABELS)
    model = ptrag_sc.baselines.MeanShift(adata).fit()
    model.effect_errors_ = None
    held = resident("VmRSS")
    forget_peak()
    start = time.process_time()
    ptrag_sc.tl.predict(adata, model)
    seconds = time.process_time() - start
    written = [adata.obsm[name] for name in ("ptrag", "ptrag_counts", "ptrag_retrieval")]
    result = sum(part.nbytes for matrix in written for part in (matrix.data, matrix.indices, matrix.indptr))
    beyond = resident("VmHWM") - held
    found = {
        "cells": options.cells,
        "genes": options.genes,
        "held_before_MB": held / 1e6,
        "result_MB": result / 1e6,
        "peak_beyond_MB": beyond / 1e6,
        "allowed_MB": 1.5 * result / 1e6 + 500,
        "processor_seconds": seconds,
    }
    print(json.dumps({name: round(value, 1) for name, value in found.items()}))


if __name__ == "__main__":
    main()
