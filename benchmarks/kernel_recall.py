"""Would the memory answer better if a kernel ridge were among what it recalls?

``python benchmarks/kernel_recall.py --out FOLDER`` adds the kernel ridge's deviation from the mean shift to that of
``PTRAG``, with a weight for each that is chosen on validation conditions, and scores the mean shifts of test
conditions: on the semi-real screen, for pairs held out of one line and for perturbations unseen in both, seeds 0 to 4.
``FOLDER`` is one of ``evidence.py`` or a new one; trained models are taken from there, and ``--untrained`` needs none.
"""

import argparse
import logging
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from evidence import KEYS, TASKS, trained, untrained
from measure import table as markdown
from scipy.optimize import nnls

from ptrag_sc import PTRAG, baselines
from ptrag_sc.data import Predictor, Screen, ScreenKeys, masked_shifts, mean_shifts, measured_targets, read_screen

SEEDS = range(5)
N_DRAWS = 10_000
KEYS_OF_CONDITION = ["perturbation", "cell_type"]
NUMBERS = ["PTRAG", "KernelRidge", "both", "PTRAG, error", "both, error", "share"]


class Observed:
    """Shifts of all conditions, own targets replaced by the mean of the other training conditions."""

    def __init__(self, adata: AnnData):
        self.screen: Screen = read_screen(adata, ScreenKeys.of(adata))
        table = self.screen.index.conditions
        self.named = self.screen.index.named(table)
        names = self.named["perturbation"].to_numpy(dtype=str)
        self.type = self.named["cell_type"].to_numpy(dtype=str)
        self.own = measured_targets(names, self.screen.genes, "+")
        labels = adata.obs[["perturbation", "cell_type", "split"]].astype(str).drop_duplicates(KEYS_OF_CONDITION)
        split = self.named.astype(str).merge(labels, on=KEYS_OF_CONDITION, how="left")["split"].to_numpy()
        self.split = split
        shifts = mean_shifts(self.screen.reader, self.screen.index, table).shift
        self.shift = masked_shifts(shifts, self.own, self.type, among=split == "train")
        self.mean = {t: self.shift[(self.type == t) & (split == "train")].mean(0) for t in np.unique(self.type)}

    def deviations(self, model: Predictor, rows: np.ndarray) -> np.ndarray:
        """Return the predicted deviations (n, G) of some conditions from the mean shift of their cell type."""
        found = np.empty((len(rows), len(self.screen.genes)))
        for t, name in enumerate(self.screen.index.cell_types):
            of_type = np.flatnonzero(self.type[rows] == name)
            if len(of_type):
                labels = tuple(self.named["perturbation"].to_numpy(dtype=str)[rows[of_type]])
                vectors = model.resolve(labels, model.training_data())
                found[of_type] = np.concatenate(list(model.shift_blocks(labels, vectors, self.screen, t)))
                found[of_type] -= self.mean[name]
        return found


def correlations(one: np.ndarray, other: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return the correlation over genes (n,) of deviations (n, G), own targets apart."""
    return np.array([np.corrcoef(a[~o], b[~o])[0, 1] for a, b, o in zip(one, other, own, strict=True)])


def measured(task: str, seed: int, out: Path, *, with_training: bool) -> pd.DataFrame:
    """Return the accuracy of each test condition by each method."""
    adata = TASKS[task].load()
    TASKS[task].split(adata, seed)
    PTRAG.setup_anndata(adata, **KEYS, batch_key="batch", split_key="split")
    observed = Observed(adata)
    folder = out / task / "models"
    model = trained(adata, seed, folder=folder, memory="response") if with_training else None
    model = model or untrained(adata, seed, folder=folder)
    ridge = baselines.KernelRidge(adata).fit()
    parts, truth = {}, {}
    for name in ("val", "test"):
        rows = np.flatnonzero(observed.split == name)
        parts[name] = np.stack([observed.deviations(one, rows) for one in (model, ridge)])  # (2, n, G)
        types = observed.type[rows]
        truth[name] = observed.shift[rows] - np.stack([observed.mean[t] for t in types])
    weights, _ = nnls(parts["val"].reshape(2, -1).T, truth["val"].ravel())
    alone, _ = nnls(parts["val"][:1].reshape(1, -1).T, truth["val"].ravel())
    rows = np.flatnonzero(observed.split == "test")
    answers = {
        "PTRAG": alone[0] * parts["test"][0],
        "KernelRidge": parts["test"][1],
        "both": np.tensordot(weights, parts["test"], 1),
    }
    found = observed.named.iloc[rows].astype(str).assign(task=task, seed=seed, share=weights[1] / weights.sum())
    for name, answer in answers.items():
        found[name] = correlations(answer, truth["test"], observed.own[rows])
        found[f"{name}, error"] = np.square(answer - truth["test"]).sum(1) / np.square(truth["test"]).sum(1)
    return found


def gain(rows: pd.DataFrame, column: str) -> str:
    """Return the mean gain of both over PTRAG alone, with an interval over perturbations (bootstrap)."""
    suffix = column.removeprefix("PTRAG")
    by_name = (rows[f"both{suffix}"] - rows[column]).groupby(rows["perturbation"]).mean().to_numpy()
    draws = np.random.default_rng(0).choice(by_name, (N_DRAWS, len(by_name))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{by_name.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def main() -> None:
    """Print one row per task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of trained models and results")
    parser.add_argument("--untrained", action="store_true", help="the memory alone, with its initial weights")
    parser.add_argument("--task", nargs="+", choices=["semireal_pairs", "semireal_unseen"], default=["semireal_pairs"])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    shown = []
    for task in arguments.task:
        parts = []
        for seed in SEEDS:
            parts.append(measured(task, seed, arguments.out, with_training=not arguments.untrained))
            print(parts[-1].groupby(["task", "seed"])[NUMBERS].mean().round(4).to_string())
        rows = pd.concat(parts)
        form = "untrained" if arguments.untrained else "trained"
        rows.to_csv(arguments.out / f"kernel_recall_{task}_{form}.csv", index=False)
        means = rows[["PTRAG", "KernelRidge", "both", "share"]].mean().round(3).to_dict()
        gains = {"gain": gain(rows, "PTRAG"), "gain in error": gain(rows, "PTRAG, error")}
        shown.append({"task": task, "weights": form, **means, **gains})
    print(markdown(shown))


if __name__ == "__main__":
    main()
