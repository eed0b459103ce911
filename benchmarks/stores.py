"""What do set-up, construction and training cost from each container of a screen?

``python benchmarks/stores.py containers`` sets up the same screen from every container, each in a process of its own.
``dense`` compares a dense backed file with a sparse one (60,000 x 8,000).
``training`` writes 1,000,000 cells x 2,000 genes into a store and an ordinary h5ad file with rows in random order, and
compares training and loader with those in memory. Files are made in ``--folder`` and kept. Every
table is followed by one JSON line.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from lightning.pytorch import Callback
from measure import table

KEYS = {"perturbation_key": "gene", "control": "ctl", "cell_type_key": "line", "batch_key": "lane"}
BLOCK = 20_000  # cells that are made at once
WIDTH = 64  # of the gene vectors
CONTAINERS = (
    *("csr", "csc", "dense", "h5ad csr", "h5ad csc", "h5ad dense", "zarr2 csr", "zarr3 csr", "zarr2 dense"),
    *("zarr3 dense", "dask csr", "dask dense", "lazy h5ad csr", "lazy h5ad csc", "lazy h5ad dense", "lazy zarr csr"),
    "lazy zarr dense",
)


def labels(n_cells: int, n_perturbations: int, share: float, *, ordered: bool = False) -> pd.DataFrame:
    """Return random labels of cells, a share of them controls."""
    rng = np.random.default_rng(0)
    names = np.array(["ctl"] + [f"P{i:04d}" for i in range(n_perturbations)])
    code = np.where(rng.random(n_cells) < share, 0, 1 + rng.integers(0, n_perturbations, n_cells))
    if ordered:
        code.sort()
    obs = {"gene": names[code], "line": rng.choice(["K562", "RPE1"], n_cells), "lane": rng.integers(0, 4, n_cells)}
    index = [f"cell{i}" for i in range(n_cells)]
    return pd.DataFrame({name: pd.Categorical(values) for name, values in obs.items()}, index=index)


def vectors(n_perturbations: int) -> dict[str, np.ndarray]:
    """Return gene vectors as :func:`ptrag_sc.pp.gene_embedding` writes them."""
    genes = np.array([f"P{i:04d}" for i in range(n_perturbations)], dtype=object)
    table = np.random.default_rng(1).standard_normal((n_perturbations, WIDTH)).astype(np.float32)
    return {"genes": genes, "vectors": table, "source": "random"}


def cells(code: np.ndarray, n_genes: int, density: float, seed: int) -> sp.csr_matrix:
    """Return logarithms of cells, given a number for each, which moves a tenth of the genes."""
    rng = np.random.default_rng(seed)
    per_row = int(n_genes * density)
    # Every cell draws one gene out of each stretch, so that columns are distinct and ascending.
    edges = np.linspace(0, n_genes, per_row + 1).astype(np.int32)
    columns = edges[:-1] + (rng.random((len(code), per_row)) * np.diff(edges)).astype(np.int32)
    values = rng.random((len(code), per_row), dtype=np.float32) * 2 + 0.1
    values += 0.5 * ((columns % 10) == (code % 10)[:, None])
    pointers = np.arange(len(code) + 1) * per_row
    return sp.csr_matrix((values.ravel(), columns.ravel(), pointers), shape=(len(code), n_genes))


def blocks(obs: pd.DataFrame, n_genes: int, density: float):
    """Yield the expression of all cells, some at a time."""
    code = obs["gene"].cat.codes.to_numpy()
    for start in range(0, len(code), BLOCK):
        yield cells(code[start : start + BLOCK], n_genes, density, seed=start)


def write_h5ad(path: Path, obs: pd.DataFrame, n_genes: int, density: float, n_perturbations: int, *, dense: bool):
    """Write a screen piece by piece."""
    from ptrag_sc.data._stream import write_stream

    if path.exists():
        return
    uns = {"gene_embedding": vectors(n_perturbations)}
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])

    def pieces():
        start = 0
        for block in blocks(obs, n_genes, density):
            x = block.toarray() if dense else block
            yield AnnData(x, obs=obs.iloc[start : start + block.shape[0]], var=var)
            start += block.shape[0]

    write_stream(path, pieces(), n_obs=len(obs), uns=lambda: uns)


def opened(path: Path, container: str) -> AnnData:
    """Return a screen in a container, made from the sparse h5ad file if it does not exist yet."""
    import zarr
    from anndata.experimental import read_lazy
    from anndata.io import read_elem, sparse_dataset

    *_, store, form = ["", *container.split()]
    stem = path.with_name(f"{path.stem}_{store}_{form}")
    if not store:
        adata = anndata.read_h5ad(path)
        changed = {"csr": lambda x: x, "csc": lambda x: x.tocsc(), "dense": lambda x: x.toarray()}
        adata.X = changed[form](adata.X)
        return adata
    if store == "dask":
        import dask.array

        adata = anndata.read_h5ad(path)
        adata.X = dask.array.from_array(
            adata.X if form == "csr" else adata.X.toarray(), chunks=(1000, -1), asarray=False
        )
        return adata
    suffix = ".h5ad" if store == "h5ad" else ".zarr"
    target = stem.with_suffix(suffix)
    if not target.exists():
        adata = anndata.read_h5ad(path)
        adata.X = {"csr": adata.X.tocsr, "csc": adata.X.tocsc, "dense": adata.X.toarray}[form]()
        anndata.settings.zarr_write_format = 2 if store == "zarr2" else 3
        adata.write_h5ad(target) if suffix == ".h5ad" else adata.write_zarr(target)
        del adata
    if container.startswith("lazy"):
        return read_lazy(target)
    if suffix == ".h5ad":
        return anndata.read_h5ad(target, backed="r")
    group = zarr.open_group(target, mode="r")
    x = group["X"] if form == "dense" else sparse_dataset(group["X"])
    return AnnData(x, **{name: read_elem(group[name]) for name in ("obs", "var", "uns")})


def peak() -> float:
    """Return the largest memory of this process so far (MiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def clock() -> tuple[float, float]:
    """Return the time, and the processor time of this process."""
    return time.perf_counter(), time.process_time()


def spent(what: str, start: tuple[float, float], end: tuple[float, float]) -> dict[str, float]:
    """Return the seconds between two times."""
    return {f"{what} (s)": end[0] - start[0], f"{what} (processor s)": end[1] - start[1]}


def one(path: Path, container: str) -> dict[str, object]:
    """Set up and construct from one container, in this process."""
    from ptrag_sc import PTRAG

    if container.startswith("lazy zarr"):
        container = container.replace("zarr", "zarr3")
    adata = opened(path, container)
    start = clock()
    PTRAG.setup_anndata(adata, **KEYS)
    middle = clock()
    model = PTRAG(adata)
    end = clock()
    digest = float(np.abs(model.tables_.basis.astype(float)).sum())
    return {
        **spent("set-up", start, middle),
        **spent("construction", middle, end),
        "peak (MiB)": peak(),
        "digest": digest,
    }


def in_a_process(*arguments: object) -> dict[str, object]:
    """Return what a call of this script in a process of its own prints, or its error."""
    command = [sys.executable, "-W", "ignore", __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:90]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def made(folder: Path, n_cells: int, n_genes: int) -> Path:
    """Return a sparse h5ad file in which a tenth of the values are not 0."""
    path = folder / f"screen_{n_cells}_{n_genes}.h5ad"
    write_h5ad(path, labels(n_cells, 100, 0.05), n_genes, 0.1, 100, dense=False)
    return path


def containers(folder: Path, n_cells: int, n_genes: int, names: list[str]) -> list[dict[str, object]]:
    """Return what each container costs."""
    path = made(folder, n_cells, n_genes)
    rows = []
    for name in names or CONTAINERS:
        found = in_a_process("one", "--path", path, "--container", name)
        measured = [f"{what} ({unit})" for what in ("set-up", "construction") for unit in ("s", "processor s")]
        empty = dict.fromkeys((*measured, "peak (MiB)", "digest", "error"), "")
        rows.append({"container": name, **empty, **found})
    return rows


class Rate(Callback):
    """Measures how many cells a second the steps of an epoch take, waiting for data included."""

    def __init__(self) -> None:
        self.cells, self.wall, self.processor, self._start = 0, 0.0, 0.0, (0.0, 0.0)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        """Start the clock before the second step of an epoch."""
        if batch_idx == 1:
            self._start = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Count cells, and stop the clock after the last step of an epoch."""
        if batch_idx:
            self.cells += int(batch["control_mask"].sum() + batch["target_mask"].sum())
        if batch_idx == trainer.num_training_batches - 1:
            self.wall += time.perf_counter() - self._start[0]
            self.processor += time.process_time() - self._start[1]


def trained(path: Path, container: str, n_epochs: int) -> dict[str, object]:
    """Train on a screen in memory, in a store, or in a backed file; return rates and peak."""
    import scvi
    from data_path import cells_in

    from ptrag_sc import PTRAG
    from ptrag_sc.data import CellSetDataset
    from ptrag_sc.datasets import open_store
    from ptrag_sc.model._sets import training_sets

    scvi.settings.seed = 0
    if container == "h5ad":
        adata = anndata.read_h5ad(path, backed="r")
    else:
        adata = open_store(path.with_suffix(".zarr"))
        adata = adata.to_memory() if container == "memory" else adata
    start = clock()
    PTRAG.setup_anndata(adata, **KEYS)
    middle = clock()
    model = PTRAG(adata)
    end = clock()
    rate = Rate()
    options = {"early_stopping": False, "accelerator": "cpu", "enable_progress_bar": False}
    model.train(n_epochs, callbacks=[rate], **options)
    highest = peak()
    screen = model.read(adata)
    _, sets, _ = training_sets(screen.index, model.split_, set_size=64, batch_size=16, seed=0)
    dataset = CellSetDataset(screen.reader, with_target=True)
    began, n_cells = clock(), 0
    for one in sets:
        n_cells += cells_in(dataset[one])
    loader = [n_cells / (now - before) for now, before in zip(clock(), began, strict=True)]
    weights = float(sum(p.double().abs().sum() for p in model.module.parameters()))
    return {
        **spent("set-up", start, middle),
        **spent("construction", middle, end),
        **{"training (cells/s)": rate.cells / rate.wall, "training (cells/processor s)": rate.cells / rate.processor},
        **{"loader (cells/s)": loader[0], "loader (cells/processor s)": loader[1]},
        **{"peak of training (MiB)": highest, "weights": f"{weights:.6f}"},
    }


def write_large(folder: Path, n_cells: int) -> dict[str, object]:
    """Write a screen of 500 conditions in random order, and its store; return what the store cost."""
    from ptrag_sc.datasets import write_store

    path = folder / f"large_{n_cells}.h5ad"
    if not path.exists():
        write_h5ad(path, labels(n_cells, 250, 0.05), 2000, 0.1, 250, dense=False)
    adata = anndata.read_h5ad(path, backed="r")
    start = time.perf_counter()
    names = {name: KEYS[name] for name in ("perturbation_key", "control", "cell_type_key")}
    store = write_store(adata, path.with_suffix(".zarr"), **names, overwrite=True)
    taken = time.perf_counter() - start
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file()) / 2**20
    return {
        "written in (s)": taken,
        "peak (MiB)": peak(),
        "size (MiB)": size,
        "h5ad (MiB)": path.stat().st_size / 2**20,
    }


def training(folder: Path, n_cells: int, n_epochs: int, names: list[str]) -> list[dict[str, object]]:
    """Return what training costs from memory, store and file."""
    rows = [{"store": n_cells, **in_a_process("large", "--folder", folder, "--cells", n_cells)}]
    print(table(rows))
    path = folder / f"large_{n_cells}.h5ad"
    further = []
    for name in names or ("memory", "store", "h5ad"):
        found = in_a_process("trained", "--path", path, "--container", name, "--epochs", n_epochs)
        further.append({"from": name, **found})
    print(table(further))
    return rows + further


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("containers", "dense", "training", "one", "large", "trained"))
    parser.add_argument("--folder", type=Path, default=Path("bigdata"))
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--container", action="append", default=[])
    parser.add_argument("--path", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.what == "one":
        print(json.dumps(one(options.path, options.container[0])))
        return
    if options.what == "large":
        print(json.dumps(write_large(options.folder, options.cells)))
        return
    if options.what == "trained":
        print(json.dumps(trained(options.path, options.container[0], options.epochs)))
        return
    if options.what == "training":
        print(json.dumps(training(options.folder, options.cells, options.epochs, options.container)))
        return
    if options.what == "dense":
        names = ["h5ad csr", "h5ad dense"]
        rows = containers(options.folder, 60_000, 8_000, names)
    else:
        rows = containers(options.folder, options.cells, options.genes, options.container)
    print(table(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
