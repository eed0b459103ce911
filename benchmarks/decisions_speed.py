"""How long does a ranking of a whole genome take, and how much memory?

``python benchmarks/decisions_speed.py --model ridge`` ranks 20,000 genes for 10 signatures with a screen of 2,000
measured perturbations and 5,000 genes in one cell type, on one thread: random counts and gene embeddings, because only
time and memory are looked at. The first call also checks the recovery; the second one finds it kept.
"""

import argparse
import json
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from measure import machine

import ptrag_sc
from ptrag_sc import PTRAG, baselines

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}


STATUS = Path("/proc/self/status")  # Linux


def held_gb(line: str) -> float:
    """Return the memory of the process now (``VmRSS``), or the most since the peak was reset (``VmHWM``)."""
    (found,) = (row for row in STATUS.read_text().splitlines() if row.startswith(line))
    return int(found.split()[1]) / 2**20


class Measured:
    """Processor seconds of a block, and how far its peak of memory is above what was held before."""

    def __enter__(self) -> "Measured":
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self.before, self.start = held_gb("VmRSS"), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self.start
        self.peak_gb = held_gb("VmHWM") - self.before


def screen(n_asked: int, n_genes: int, n_measured: int, n_cells: int) -> tuple[ad.AnnData, pd.DataFrame]:
    """Return random cells, ``n_cells`` of each of the first perturbations, and vectors of all that are asked for."""
    rng = np.random.default_rng(0)
    names = [f"gene{i}" for i in range(n_asked)]
    labels = np.repeat(["non-targeting", *names[:n_measured]], [1000, *[n_cells] * n_measured])
    counts = sp.random(len(labels), n_genes, density=0.1, format="csr", dtype=np.float32, random_state=rng)
    adata = ad.AnnData(counts, obs=pd.DataFrame({"perturbation": labels, "cell_type": "cell"}))
    adata.obs_names, adata.var_names = adata.obs_names.astype(str), names[:n_genes]
    vectors = pd.DataFrame(rng.normal(size=(n_asked, 384)).astype(np.float32), index=names)
    ptrag_sc.pp.gene_embedding(adata, vectors, perturbation_key="perturbation", control="non-targeting")
    PTRAG.setup_anndata(adata, **KEYS)
    return adata, vectors


def main() -> None:
    """Measure one model and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["ridge", "ptrag"], required=True)
    parser.add_argument("--sizes", type=int, nargs=4, default=[20_000, 5000, 2000, 10], metavar="N")
    parser.add_argument("--skip-recovery", action="store_true", help="as if it had been checked before")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")))
    adata, vectors = screen(*arguments.sizes)
    with Measured() as fit:
        if arguments.model == "ridge":
            model = baselines.KernelRidge(adata).fit()
            list(model.shift_blocks((vectors.index[0],), vectors.to_numpy()[:1], model.read(adata), 0))  # fits the type
        else:
            model = PTRAG(adata)
            model.is_trained_ = True  # as it is meant to be used: no warning
    result = {"fit (s)": fit.seconds, "fit, further peak (GB)": fit.peak_gb}
    rng = np.random.default_rng(1)
    wanted = pd.DataFrame(rng.normal(size=(adata.n_vars, 10)), index=adata.var_names)
    if arguments.skip_recovery:
        model.recoveries_ = {"cell": None}
    for name in ("first", "second"):
        with Measured() as call:
            table = ptrag_sc.tl.rank_perturbations(adata, model, wanted, cell_type="cell", gene_embedding=vectors)
        result |= {f"{name} call (s)": call.seconds, f"{name} call, further peak (GB)": call.peak_gb}
    print(json.dumps({"rows": len(table), **result}))


if __name__ == "__main__":
    main()
