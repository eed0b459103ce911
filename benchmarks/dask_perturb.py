"""How much faster are two workers of one thread than one process of one thread, and do they write the same bytes?

``python benchmarks/dask_perturb.py`` predicts 200 perturbations x 500 cells x 2,000 genes into a zarr store: by this
process, by the workers of a local cluster that were started and have imported everything, and by workers of which one
is killed when some of the slices are written. It compares all files byte by byte, and prints wall seconds, processor
seconds and the ratios as one JSON line. Wall seconds need two cores that nothing else uses. The ratio of processor
seconds does not: seconds of one process, over those of the calling process and of the slower worker, as if the two took
turns. Set ``OMP_NUM_THREADS=1`` before.
"""

import argparse
import json
import os
import re
import signal
import tempfile
import threading
import time
from pathlib import Path

import dask
import scvi
from distributed import Client, LocalCluster

import ptrag_sc

LABELS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
# Without MALLOC_TRIM_THRESHOLD_ of dask, with which workers give back memory so often that it takes half of their time.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), 1)


def fitted(n_genes: int, n_perturbations: int) -> ptrag_sc.PTRAG:
    """Return a model of a simulated screen in one cell type, trained for an epoch."""
    adata = ptrag_sc.datasets.simulated(
        n_cells=12_000, n_genes=n_genes, n_perturbations=n_perturbations, n_cell_types=1, seed=0
    )
    ptrag_sc.PTRAG.setup_anndata(adata, **LABELS)
    scvi.settings.seed = 0
    model = ptrag_sc.PTRAG(adata)
    model.train(1, accelerator="cpu", enable_progress_bar=False)
    model.learn_effect_errors()
    return model


def same_files(one: Path, other: Path) -> bool:
    """Return whether two stores have the same files with the same bytes."""
    names = [{str(f.relative_to(store)) for f in store.rglob("*") if f.is_file()} for store in (one, other)]
    return names[0] == names[1] and all((one / n).read_bytes() == (other / n).read_bytes() for n in names[0])


def imported() -> int:
    """Import what a worker needs; return its process."""
    import ptrag_sc.data._job
    import ptrag_sc.model

    return os.getpid() if ptrag_sc.model else 0


def kill_midway(client: Client, folder: Path, n_done: int, killed: list[int]) -> None:
    """Kill a worker as soon as some slices are written."""
    while sum(bool(re.fullmatch(r"\d+\.zarr", p.name)) for p in folder.glob(".*/slices/*")) < n_done:
        time.sleep(0.05)
    killed.append(next(iter(client.run(os.getpid).values())))
    os.kill(killed[0], signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--perturbations", type=int, default=200)
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--no-kill", action="store_true")
    options = parser.parse_args()
    model = fitted(options.genes, max(40, options.perturbations))
    labels = [str(name) for name in model.candidates_[: options.perturbations]]
    ways = ["one", "workers"] * options.repeats + ["killed"] * (not options.no_kill)
    found: dict[str, object] = {"cells": len(labels) * options.cells, "genes": options.genes}
    dask.config.set({"distributed.nanny.pre-spawn-environ": ENVIRONMENT})
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    with cluster, Client(cluster) as client, tempfile.TemporaryDirectory() as root:
        client.run(imported)
        taken: dict[str, list[float]] = {"one": [], "workers": [], "killed": []}
        used: dict[str, list[float]] = {"one": [], "workers": [], "killed": []}
        for i, way in enumerate(ways):
            folder = Path(root) / f"{i}_{way}"
            folder.mkdir()
            killed: list[int] = []
            if way == "killed":
                arguments = (client, folder, 5, killed)
                threading.Thread(target=kill_midway, args=arguments, daemon=True).start()
            before = client.run(time.process_time)
            start = time.perf_counter(), time.process_time()
            ptrag_sc.tl.perturb(
                model.adata,
                model,
                labels,
                n_cells=options.cells,
                out=folder / "virtual.zarr",
                client=None if way == "one" else client,
                progress=False,
            )
            taken[way].append(time.perf_counter() - start[0])
            found[f"{i}_{way}"] = {
                "wall": round(taken[way][-1], 1),
                "processor_of_this_process": round(time.process_time() - start[1], 1),
                "load": os.getloadavg()[0],
            }
            processor = time.process_time() - start[1]
            if way == "workers":  # what the slower worker needs, after what this process does alone
                processor += max(now - before[name] for name, now in client.run(time.process_time).items())
            used[way].append(processor)
            if i:
                found[f"{i}_same_as_one"] = same_files(Path(root) / "0_one/virtual.zarr", folder / "virtual.zarr")
            if way == "killed":
                found["killed_workers"] = len(killed)
        found["times_as_fast"] = round(sum(taken["one"]) / sum(taken["workers"]), 2)
        found["times_as_fast_by_processor_seconds"] = round(sum(used["one"]) / sum(used["workers"]), 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
