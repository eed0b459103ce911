"""How much does a designed choice of perturbations save, and is the estimated size of a screen right?

``python benchmarks/decisions_design.py --out FOLDER --table design|power|speed`` chooses again from the semi-real
screen and from two real ones. Of its 292 perturbations 92 are tested and 200 can be measured, in 20 repeats; the
predictor is a kernel ridge. A finished repeat is kept in FOLDER and never computed again. Screens are read from the
folder that the environment variable ``PTRAG_SC_TEST_DATA`` names.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from effects import peak_gb
from evidence import DATA, KEYS, TASKS
from measure import machine, table

import ptrag_sc
from ptrag_sc.baselines._design_curve import chosen_again
from ptrag_sc.baselines._refitted import Refitted
from ptrag_sc.metrics import pearson_delta
from ptrag_sc.tl._extrapolation import Growth
from ptrag_sc.tl._power import _estimates, _measured

N_TESTED, N_START, N_BATCH, N_REPEATS = 92, 20, 10, 20
SHOWN = (30, 50, 110, 150)
COMPARED = (50, 100)  # measurements of random choice, of which the design needs fewer
CELLS, NUMBERS = (9, 18, 36), (20, 40, 80, 160)
N_OF_USER, ASKED = 120, ((160, 36), (200, 36))  # perturbations of a smaller screen, and sizes that it is asked about


class Source(NamedTuple):
    """Perturbations of a cell type, and how they are alike."""

    screen: str  # row of evidence.TASKS
    cell_type: str
    space: str


SOURCES = {
    "RPE1": Source("semireal_unseen", "RPE1", "text"),
    "K562": Source("semireal_unseen", "K562", "text"),
    "K562 known, RPE1 chosen": Source("semireal_unseen", "RPE1", "response"),
}
SMALL = {"Papalexi": Source("papalexi", "THP-1", "text"), "Norman": Source("norman", "K562", "text")}


def refitted(source: Source, place: str) -> Refitted:
    """Return all perturbations of a cell type."""
    adata = TASKS[source.screen].load()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="batch")
    cell_type = source.cell_type
    if cell_type not in set(adata.obs["cell_type"]):
        cell_type = str(adata.obs["cell_type"].iloc[0])
    return Refitted.of(adata, None, cell_type, space=source.space, gene_embedding=None, place=place)


def kept(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Return a table from its file, which is written first if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make()
        made.to_csv(path.with_suffix(".part"), index=False)
        path.with_suffix(".part").rename(path)
    return pd.read_csv(path)


def repeats(out: Path, name: str, make: Callable[[int], pd.DataFrame]) -> pd.DataFrame:
    """Return the tables of all repeats."""
    parts = []
    for repeat in range(N_REPEATS):
        path = out / f"{name.replace(' ', '_').replace(',', '')}-{repeat}.csv"
        parts.append(kept(path, lambda repeat=repeat: make(repeat)).assign(repeat=repeat))
    return pd.concat(parts)


def drawn(of: Refitted, repeat: int, n_tested: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(repeat).permutation(len(of.names))
    return order[:n_tested], order[n_tested:]


def choices(of: Refitted, repeat: int, n_tested: int, n_start: int, step: int) -> pd.DataFrame:
    """Return accuracies of random choice, of the design after a random start, and of the design from nothing."""
    tested, pool = drawn(of, repeat, n_tested)
    sizes = list(range(n_start, len(pool) + 1, step))
    both = chosen_again(of, tested, pool, sizes, n_start)
    nothing = chosen_again(of, tested, pool, [n_start // 2, *sizes], 0)
    return pd.concat([both, nothing[nothing["choice"] == "design"].assign(choice="design from nothing")])


def needed(scores: pd.DataFrame, choice: str, n: int) -> float:
    """Return how many measurements a choice needs, on average, for what random choice reaches with n."""
    mean = scores.groupby(["choice", "n_perturbations"])["pearson_delta_pert"].mean()
    level = np.interp(n, mean["random"].index, mean["random"])
    curve = mean[choice]
    return float(np.interp(level, np.maximum.accumulate(curve.to_numpy()), curve.index))


def design_table(out: Path) -> list[dict[str, object]]:
    """Return accuracy against the number of measurements, and how many the design needs where random choice needs n."""
    rows = []
    for name, source in {**SOURCES, **SMALL}.items():
        of = None
        small = name in SMALL

        def make(repeat: int) -> pd.DataFrame:
            nonlocal of
            of = refitted(source, "decisions_design") if of is None else of  # noqa: B023
            if small:  # noqa: B023
                return choices(of, repeat, len(of.names) // 3, 4, 2)
            return choices(of, repeat, N_TESTED, N_START, N_BATCH)

        scores = repeats(out / "design", name, make)
        largest = scores["n_perturbations"].max()
        shown = (4, 8, 12, int(largest)) if small else SHOWN
        compared = () if small else COMPARED
        for choice, part in scores.groupby("choice", sort=False):
            mean = part.groupby("n_perturbations")["pearson_delta_pert"].mean()
            row: dict[str, object] = {"task": name, "choice": choice, "sizes": " / ".join(map(str, shown))}
            row["accuracy"] = " / ".join(f"{np.interp(n, mean.index, mean):.3f}" for n in shown)
            for n in COMPARED:
                row[f"needs for {n}"] = needed(scores, choice, n) if n in compared else float("nan")
            wins = scores.pivot_table(index="repeat", columns="choice", values="pearson_delta_pert", aggfunc="mean")
            row["repeats won"] = f"{int((wins[choice] > wins['random']).sum())} of {len(wins)}"
            rows.append(row)
    return rows


def sizes_measured(of: Refitted, repeat: int) -> pd.DataFrame:
    """Return the accuracy of every size (``n_perturbations``, ``n_cells``) for one test set."""
    tested, pool = drawn(of, repeat, N_TESTED)
    rng = np.random.default_rng([repeat, 1])
    real = of.masked(of.shifts, tested)
    rows = []
    for c in CELLS:
        seen = of.masked(of.sampled(c, rng), tested)
        for n in (*NUMBERS, 200):
            centre, predicted = real[pool].mean(0), of.predicted(pool[:n], seen, tested)
            plain = [pearson_delta(real[t], row, centre) for t, row in zip(tested, predicted, strict=True)]
            rows.append((n, c, of.accuracy(pool[:n], seen, real, tested).mean(), np.mean(plain)))
    return pd.DataFrame(rows, columns=["n_perturbations", "n_cells", "pearson_delta_pert", "plain"])


def asked_by_user(of: Refitted, repeat: int) -> pd.DataFrame:
    """Return what tl.power tells a user who has measured 120 of the perturbations."""
    part = np.sort(np.random.default_rng([repeat, 2]).permutation(len(of.names))[:N_OF_USER])
    smaller = of.among(part)
    most_cells = int(np.median(smaller.n_cells))
    n_pool = N_OF_USER - N_OF_USER // 3
    found = _measured(smaller, list(ASKED), n_pool, most_cells, 10, repeat)
    return _estimates(found, list(ASKED), 2 * N_OF_USER, 2 * most_cells, np.random.default_rng(repeat))


def power_table(out: Path) -> list[dict[str, object]]:
    """Return the accuracy of sizes, the formula's error where it was not fitted, and what a smaller screen is told."""
    rows = []
    for name, source in SOURCES.items():
        loaded: list[Refitted] = []

        def of(source: Source = source, loaded: list[Refitted] = loaded) -> Refitted:
            if not loaded:
                loaded.append(refitted(source, "decisions_design"))
            return loaded[0]

        scores = repeats(out / "power", name, lambda repeat, of=of: sizes_measured(of(), repeat))
        mean = scores.groupby(["n_cells", "n_perturbations"])["pearson_delta_pert"].mean()
        plain = scores.groupby(["n_cells", "n_perturbations"])["plain"].mean()
        sizes = mean.reset_index()
        fitted = sizes[sizes["n_perturbations"] <= 80]
        growth = Growth.fit(*(fitted[key].to_numpy() for key in ("n_perturbations", "n_cells", "pearson_delta_pert")))
        users = repeats(out / "power", f"{name} user", lambda repeat, of=of: asked_by_user(of(), repeat))
        for c in CELLS:
            row: dict[str, object] = {"task": name, "cells": c}
            row |= {f"n = {n}": mean[c, n] for n in NUMBERS}
            row["centre of the 200, n = 160"] = plain[c, 160]
            row["160 from n <= 80"] = float(growth.at(np.array(160), np.array(c)))
            row["error"] = abs(row["160 from n <= 80"] - mean[c, 160])
            for n, _ in [size for size in ASKED if size[1] == c]:
                told = users[(users["n_perturbations"] == n) & (users["n_cells"] == c)]
                off = told["pearson_delta_pert"] - mean[c, n]
                inside = ((told["low"] <= mean[c, n]) & (mean[c, n] <= told["high"])).mean()
                row[f"user of 120, at {n}"] = f"{off.mean():+.3f}, off by {off.abs().mean():.3f}, inside {inside:.0%}"
            rows.append(row)
    return rows


def speed_table(out: Path) -> list[dict[str, object]]:
    """Return processor seconds and memory of a design of 100 among 20,000 candidates for 2,000 targets."""
    vectors = np.random.default_rng(0).normal(size=(22_000, 384)).astype(np.float32)
    names = [f"G{i}" for i in range(len(vectors))]
    embedding = pd.DataFrame(vectors, index=names)
    before, start = peak_gb(), time.process_time()
    options = {"candidates": names[:20_000], "targets": names[20_000:], "measured": names[:300]}
    made = ptrag_sc.tl.design(None, None, 100, cell_type="any", **options, gene_embedding=embedding)
    seconds = time.process_time() - start
    return [
        {"rows": len(made), "seconds": seconds, "peak before (GB)": before, "further peak (GB)": peak_gb() - before}
    ]


TABLES: dict[str, Callable[[Path], list[dict[str, object]]]] = {
    "design": design_table,
    "power": power_table,
    "speed": speed_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results; what is there is not run again")
    parser.add_argument("--table", choices=list(TABLES), required=True)
    arguments = parser.parse_args()
    logging.getLogger("ptrag_sc").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if not DATA:
        print("skipped: PTRAG_SC_TEST_DATA is unset")
        return
    print(machine(torch.device("cpu")))
    start = time.perf_counter()
    rows = TABLES[arguments.table](arguments.out)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(table([{key: row.get(key, "") for key in columns} for row in rows]))
    print(json.dumps({"table": arguments.table, "seconds": time.perf_counter() - start, "rows": rows}))


if __name__ == "__main__":
    main()
