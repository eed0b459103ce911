"""How near does training on a GPU come to what the GPU can do?

``python benchmarks/accelerator.py --all`` makes every table of a device in one call of at most eight minutes: steps
and predictions (also in the published order), precision and compiled code against the matrix-product ceiling, loader,
peak memory, growth over candidates and cells of a set, and a training to its early stop on the semi-real screen. The
last line is one JSON object. ``--device cpu --small`` runs all of it at sizes at which the figures mean nothing. A part
that fails is named, and the others go on.
"""

import argparse
import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data_path import loader, rates, screen_model
from measure import clock, machine, peak_mib, seconds, table
from torch.utils.flop_counter import FlopCounterMode

from ptrag_sc import PTRAG

CEILING_SIZE = 8192


def matrix_ceiling(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the measured rate (FLOP/s) of one large matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds({"product": lambda: a @ b}, device)["product"]


def accelerator(
    device: torch.device,
    *,
    n_cells: int = 50_000,
    n_genes: int = 2000,
    size: int = CEILING_SIZE,
    backend: str = "inductor",
    **options,
) -> list:
    """Return rows: step from the loader, from cached tensors, in bf16 and compiled, with rates and ceilings."""
    model = screen_model(n_cells, n_genes, **options)
    epoch, plan = loader(model, device, batch_size=16, set_size=64)
    optimizer = torch.optim.AdamW(plan.parameters(), lr=5e-4)
    cached = [{name: x.to(device) for name, x in batch.items()} for batch in epoch()]
    full = [batch for batch in cached if len(batch["query"]) == 16]
    eager = plan.module

    def step(batch: dict, *, half: bool = False, compiled: bool = False) -> None:
        plan.module = fast if compiled else eager
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = plan.forward({name: x.to(device, non_blocking=True) for name, x in batch.items()})[2].loss
        loss.backward()
        optimizer.step()

    fast = torch.compile(eager, backend=backend)
    with FlopCounterMode(display=False) as counter:
        step(full[0])
    flop = counter.get_total_flops()

    def over(batches, **options) -> None:
        for batch in batches:
            step(batch, **options)

    ways = {
        "from the loader": lambda: over(epoch()),
        "cached tensors": lambda: over(cached),
        "cached, bf16": lambda: over(cached, half=True),
        "cached, compiled": lambda: over(cached, compiled=True),
        "cached, bf16, compiled": lambda: over(cached, half=True, compiled=True),
    }
    taken = {name: t / len(cached) for name, t in seconds(ways, device).items()}
    ceilings = {dtype: matrix_ceiling(device, dtype, size) for dtype in (torch.float32, torch.bfloat16)}
    n_cells = 2 * 16 * 64
    return [
        {
            "step": name,
            "ms": 1e3 * t,
            "cells/s": n_cells / t,
            "share of matrix ceiling": flop / t / ceilings[torch.bfloat16 if "bf16" in name else torch.float32],
            "peak (MiB)": peak_mib(ways[name], device),
        }
        for name, t in taken.items()
    ]


def training(device: torch.device, *, small: bool) -> list[dict]:
    """Return time and course of a training to its early stop, on the semi-real screen or on a small simulated one."""
    if small or not os.environ.get("PTRAG_SC_TEST_DATA"):
        name, model = "simulated", screen_model(600, 40, n_perturbations=12, memory="response")
    else:
        from evidence import KEYS, TASKS  # reads the folder of the data when it is imported

        name = "semireal_pairs"
        adata = TASKS[name].load()
        TASKS[name].split(adata, 0)
        PTRAG.setup_anndata(adata, **KEYS, batch_key="batch", split_key="split")
        model = PTRAG(adata, memory="response")
    start, wall = clock(device), time.perf_counter()
    model.train(2 if small else None, accelerator="gpu" if device.type == "cuda" else "cpu", enable_progress_bar=False)
    return [
        {
            "screen": name,
            "seconds": clock(device) - start,
            "wall (s)": time.perf_counter() - wall,
            "epochs": model.n_epochs_,
            "kept epoch": str(model.kept_epoch_),
        }
    ]


def parts(device: torch.device, *, small: bool) -> dict[str, Callable[[], object]]:
    """Return what makes each table."""
    from growth import over_pairs, over_table
    from speed import Sizes, headline

    sizes, cells, genes = Sizes(), (64, 256, 512), 2000
    candidates, rows = (32, 128, 512), (2000, 20_000, 200_000)
    options: dict[str, Any] = {}
    if small:
        tiny = {"sets": 2, "cells": 4, "genes": 12, "embedding": 6, "hidden": 16, "candidates": 3, "layers": 1}
        sizes = replace(sizes, **tiny, table=10, queries=10, rank=3)
        cells, candidates, rows, genes = (2, 4), (2, 4), (10, 20), 40
        options = {"n_cells": 600, "n_genes": genes, "size": 64, "n_perturbations": 12, "backend": "eager"}
    return {
        "steps": lambda: headline(sizes, device)[0],
        "precision": lambda: accelerator(device, **options),
        "rates": lambda: [rates(device, n_genes=genes, batch_size=sizes.sets, set_size=sizes.cells)],
        "candidates per query": partial(over_pairs, sizes, device, "candidates", candidates),
        "cells per set": partial(over_pairs, sizes, device, "cells", cells),
        "rows of the table": partial(over_table, sizes, device, rows),
        "training": lambda: training(device, small=small),
    }


def main() -> None:
    """Print every table, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", required=True, help="all tables, in one call")
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--small", action="store_true", help="only to see that it runs")
    parser.add_argument("--out", type=Path, help="file for the JSON line, written after every part")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(chosen.device)
    result: dict[str, object] = {"machine": machine(device)}
    print(result["machine"], flush=True)
    for name, make in parts(device, small=chosen.small).items():
        start = time.perf_counter()
        try:
            result[name] = make()
            print(f"\n{name} ({time.perf_counter() - start:.0f} s)\n" + table(result[name]), flush=True)
        except Exception as error:
            result[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        if chosen.out is not None:
            chosen.out.write_text(json.dumps(result, default=str))
    print(json.dumps(result, default=str))


if __name__ == "__main__":
    main()
