"""How long do ``save`` and ``load`` take, and what do the digest and the fsync cost alone?

A memory of 5,000 perturbations in 4 cell types and 2,000 genes. To compare two versions, run the script with each in
``PYTHONPATH``, one after the other.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import ptrag_sc
from ptrag_sc import PTRAG

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
REPEATS = 7


def screen(n_perturbations: int, n_types: int, n_genes: int) -> ad.AnnData:
    """Return random cells, three of each condition, with vectors of 1,536 dimensions."""
    rng = np.random.default_rng(0)
    names = [f"gene{i}" for i in range(n_perturbations)]
    of_type = np.repeat(["non-targeting", *names], [100, *[3] * n_perturbations])
    labels = np.tile(of_type, n_types)
    matrix = sp.random(len(labels), n_genes, density=0.05, format="csr", dtype=np.float32, random_state=rng)
    types = np.repeat([f"type{t}" for t in range(n_types)], len(of_type))
    obs = pd.DataFrame({"perturbation": labels, "cell_type": types}, index=[f"cell{i}" for i in range(len(labels))])
    adata = ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    vectors = pd.DataFrame(rng.normal(size=(n_perturbations, 1536)).astype(np.float32), index=names)
    ptrag_sc.pp.gene_embedding(adata, vectors, perturbation_key="perturbation", control="non-targeting")
    PTRAG.setup_anndata(adata, **KEYS)
    return adata


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the median time of some calls."""
    found = []
    for _ in range(REPEATS):
        start = clock()
        work()
        found.append(clock() - start)
    return statistics.median(found)


def synced(path: Path) -> None:
    """Write a copy of a file to the disk for good."""
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    start = time.perf_counter()
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    synced.seconds.append(time.perf_counter() - start)


synced.seconds = []


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs=3, default=[5000, 4, 2000], metavar="N")
    torch.set_num_threads(1)
    adata = screen(*parser.parse_args().sizes)
    model = PTRAG(adata)
    model.is_trained_ = True  # as it is meant to be used: no warning
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        model.save(path)
        content = (path / "model.pt").read_bytes()
        result = {
            "MB": len(content) / 1e6,
            "save (CPU s)": seconds(lambda: model.save(path, overwrite=True), time.process_time),
            "save (s)": seconds(lambda: model.save(path, overwrite=True), time.perf_counter),
            "load (CPU s)": seconds(lambda: PTRAG.load(path, adata=False, accelerator="cpu"), time.process_time),
            "load (s)": seconds(lambda: PTRAG.load(path, adata=False, accelerator="cpu"), time.perf_counter),
            "digest (CPU s)": seconds(lambda: hashlib.sha256(content).hexdigest(), time.process_time),
        }
        for _ in range(REPEATS):
            synced(path / "model.pt")
        result["fsync (s)"] = statistics.median(synced.seconds)
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
