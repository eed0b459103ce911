"""How do time and memory grow with candidates, cells of a set, rows of the table and cells of the screen?"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from measure import clock, peak_mib, seconds
from speed import Sizes, make_module, random_batch, random_queries, random_table, refinement, steps

CELLS = (10_000, 100_000, 1_000_000)
# In a process of its own, whose peak is the system's figure: what is asked for, and how many virtual cells.
PREDICT = """
import resource, sys, tempfile, time
from pathlib import Path
from data_path import screen_model
from ptrag_sc.tl import perturb
model = screen_model(20_000, 500)
n_controls = int((model.adata.obs["perturbation"] == "non-targeting").sum())
names = [f"{a}+{b}" for i, a in enumerate(model.candidates_) for b in model.candidates_[:i]]
names = names[: -(-int(sys.argv[1]) // n_controls)]
with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    perturb(model.adata, model, names, out=Path(folder) / "virtual.h5ad", progress=False)
    seconds = time.perf_counter() - start
print(len(names) * n_controls, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def slope(x: list[float], y: list[float]) -> float:
    """Return the least-squares slope of log y over log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def over_pairs(sizes: Sizes, device: torch.device, field: str, values: tuple[int, ...]) -> list[dict]:
    """Return cost of the refinement stage for several K or S."""
    vectors, rows = random_table(sizes), []
    for value in values:
        used = replace(sizes, **{field: value})
        module = make_module("gumbel", used, vectors, published_width=False).to(device)
        both, _ = refinement(module, random_queries(vectors, used), used, device)
        taken = seconds({"refinement": both}, device)["refinement"]
        rows.append({field: value, "refinement (ms)": 1e3 * taken, "peak (MiB)": peak_mib(both, device)})
    return rows


def over_table(sizes: Sizes, device: torch.device, values: tuple[int, ...]) -> list[dict]:
    """Return set-up seconds and step time for several sizes of the candidate table, steps in turns."""
    setup, training = {}, {}
    for value in values:
        used = replace(sizes, table=value)
        vectors = random_table(used).to(device)
        start = clock(device)
        queries = random_queries(vectors, used)
        setup[value] = clock(device) - start
        module = make_module("gumbel", used, vectors, published_width=False).to(device)
        training[value] = steps(module, queries, random_batch(used, device), device)[0]
    taken = seconds(training, device, repeats=9)
    return [{"candidates": n, "set-up (s)": setup[n], "training step (ms)": 1e3 * taken[n]} for n in values]


def largest_step(sizes: Sizes, device: torch.device) -> dict:
    """Return time and peak memory of a training step at K=512 and S=512."""
    used = replace(sizes, cells=512, candidates=512)
    vectors = random_table(used)
    module = make_module("gumbel", used, vectors, published_width=False).to(device)
    train, _ = steps(module, random_queries(vectors, used), random_batch(used, device), device)
    taken = seconds({"step": train}, device)["step"]
    return {"cells": 512, "candidates": 512, "training step (ms)": 1e3 * taken, "peak (MiB)": peak_mib(train, device)}


def over_cells(values: tuple[int, ...] = CELLS) -> list[dict]:
    """Return time and peak memory of the process that writes so many virtual cells to a file."""
    rows = []
    for value in values:
        command = [sys.executable, "-W", "ignore", "-c", PREDICT, str(value)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
        n_cells, taken, peak = map(float, done.stdout.split())
        rows.append({"virtual cells": int(n_cells), "cells/s": n_cells / taken, "peak of the process (MiB)": peak})
    return rows


def over_screen(values: tuple[int, ...] = CELLS) -> list[dict]:
    """Return set-up seconds and loader rate for screens of several sizes (500 genes)."""
    from data_path import KEYS, cells_in, loader, screen_model

    from ptrag_sc import PTRAG

    device, rows = torch.device("cpu"), []
    for value in values:
        model = screen_model(value, 500)
        start = clock(device)
        PTRAG.setup_anndata(model.adata, **KEYS, batch_key="batch")
        PTRAG(model.adata)
        setup = clock(device) - start
        start = clock(device)
        epoch, _ = loader(model, device, batch_size=16, set_size=64)
        samplers = clock(device) - start
        taken = seconds({"epoch": lambda epoch=epoch: list(epoch())}, device)["epoch"]
        n_cells = sum(map(cells_in, epoch()))
        rows.append({"cells": value, "set-up (s)": setup, "sampler (s)": samplers, "loader (cells/s)": n_cells / taken})
    return rows


def growth(sizes: Sizes, device: torch.device, folder: Path | None) -> dict[str, object]:
    """Run every sweep."""
    result: dict[str, object] = {
        "K": over_pairs(sizes, device, "candidates", (32, 128, 512)),
        "S": over_pairs(sizes, device, "cells", (64, 256, 512)),
        "table": over_table(sizes, device, (2000, 20_000, 200_000)),
        "largest": [largest_step(sizes, device)],
        "screen": over_screen(),
        "virtual": over_cells(),
    }
    curves = {
        "candidates per query, K": ("K", "candidates", "refinement (ms)"),
        "cells per set, S": ("S", "cells", "refinement (ms)"),
        "rows of the candidate table": ("table", "candidates", "training step (ms)"),
        "cells of the screen": ("screen", "cells", "set-up (s)"),
    }
    result["slopes"] = {
        label: slope(*([row[name] for row in result[key]] for name in (x, y))) for label, (key, x, y) in curves.items()
    }
    if folder is not None:
        draw(result, curves, folder / "growth.png")
    return result


def draw(result: dict, curves: dict[str, tuple[str, str, str]], path: Path) -> None:
    """Draw one panel for each sweep, log-log, with the line of proportional growth."""
    figure, axes = plt.subplots(1, len(curves), figsize=(3.2 * len(curves), 2.9), layout="constrained")
    for ax, (label, (key, x, y)) in zip(axes, curves.items(), strict=True):
        xs, ys = (np.array([row[name] for row in result[key]], dtype=float) for name in (x, y))
        ax.loglog(xs, ys, "o-", color="C0", label=f"measured, slope {result['slopes'][label]:.2f}")
        ax.loglog(xs, ys[0] * xs / xs[0], ":", color="0.5", label="proportional")
        ax.set(xlabel=label, ylabel=y, xticks=xs, xticklabels=[f"{int(v):,}" for v in xs])
        labels = dict.fromkeys(f"{float(f'{v:.2g}'):g}" for v in ys)  # equal values once
        ax.set_yticks([float(v) for v in labels], labels)
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
