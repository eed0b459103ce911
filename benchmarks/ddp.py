"""How many more sets a second do two processes train on than one, one thread each?

``python benchmarks/ddp.py`` trains the default model on a simulated screen (2,000 genes, 200 perturbations) in one
process and in two (``strategy="ddp"``), with mini-batches of 16 sets in each process, in turns. Seconds are wall time
between the end of the first epoch and the end of the last one, without validation. It prints one JSON line. The machine
must have two cores that nothing else uses; the load is printed too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def train(options: argparse.Namespace) -> None:
    """Train, and write sets per second of all processes together."""
    import scvi
    from lightning.pytorch import Callback

    import ptrag_sc

    class Clock(Callback):
        """Note when each epoch ends, and how many steps were made."""

        def __init__(self) -> None:
            self.ends: list[tuple[float, int]] = []

        def on_train_epoch_end(self, trainer: Any, plan: Any) -> None:
            self.ends.append((time.perf_counter(), trainer.global_step))

    adata = ptrag_sc.datasets.simulated(
        n_cells=options.cells, n_genes=options.genes, n_perturbations=options.perturbations, n_cell_types=2, seed=0
    )
    ptrag_sc.PTRAG.setup_anndata(
        adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    )
    scvi.settings.seed = 0
    model = ptrag_sc.PTRAG(adata)
    model.learn_effect_errors = lambda: None  # not a part of what is measured
    clock = Clock()
    spread = {"devices": options.processes, "strategy": "ddp"} if options.processes > 1 else {}
    model.train(options.epochs, accelerator="cpu", callbacks=[clock], enable_progress_bar=False, **spread)
    if not model.trainer.is_global_zero:
        return
    (start, first), (stop, last) = clock.ends[0], clock.ends[-1]
    n_sets = (last - first) * 16 * options.processes
    Path(options.out).write_text(json.dumps({"sets_per_second": n_sets / (stop - start)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--perturbations", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, help="used by the script itself")
    parser.add_argument("--out", help="used by the script itself")
    options = parser.parse_args()
    if options.processes is not None:
        train(options)
        return
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            for n in found:
                out = Path(folder) / "found.json"
                command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--processes", str(n)]
                subprocess.run([*command, "--out", str(out)], check=True, env={**os.environ, **ENVIRONMENT})
                found[n].append(json.loads(out.read_text())["sets_per_second"])
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    result = {"one": found[1], "two": found[2], "ratio": statistics.median(ratios), "load": os.getloadavg()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
