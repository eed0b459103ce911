"""Is the perturbation behind an observed effect found among others, and does the user hear how often?

Half of the knock-downs of the semi-real screen are measured (in both lines, or all in K562 and half in RPE1), the other
half are the candidates. The observed shift of each of them, own targets apart, is a signature; the true candidate
should be first.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from evidence import KEYS, SEMIREAL
from measure import table as markdown

import ptrag_sc
from ptrag_sc import PTRAG, baselines
from ptrag_sc.data import (
    Predictor,
    Screen,
    ScreenKeys,
    control_means,
    masked_shifts,
    matched_control,
    mean_shifts,
    measured_targets,
    read_screen,
)
from ptrag_sc.tl._recovery import TOP
from ptrag_sc.tl._scores import Sums, cosine

SEEDS = range(10)
# Cell type asked about, and whether the candidates were measured in the other one.
SETTINGS = {"unseen RPE1": ("RPE1", False), "unseen K562": ("K562", False), "cross-line RPE1": ("RPE1", True)}
VALIDATION = 8  # every eighth measured perturbation, of a trained model only


def untrained(adata: AnnData, seed: int) -> PTRAG:
    """Return a model that answers with its memory alone."""
    model = PTRAG(adata)
    model.is_trained_ = True  # as it is meant to be used: no warning
    return model


def trained(adata: AnnData, seed: int) -> PTRAG:
    """Return a model trained to its early stop; an eighth of what was measured validates."""
    labels = adata.obs["perturbation"].astype(str)
    names = np.random.default_rng([seed, 1]).permutation(sorted(labels[adata.obs["split"] == "train"].unique()))
    names = names[names != KEYS["control"]]
    is_val = labels.isin(names[::VALIDATION]) & (adata.obs["split"] == "train")
    adata.obs["split"] = np.where(is_val, "val", adata.obs["split"])
    scvi.settings.seed = seed
    model = PTRAG(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model


METHODS: dict[str, Callable[[AnnData, int], Predictor]] = {
    "KernelRidge": lambda adata, seed: baselines.KernelRidge(adata).fit(),
    "NearestPerturbations": lambda adata, seed: baselines.NearestPerturbations(adata, space="response").fit(),
    "PTRAG, untrained": untrained,
    "PTRAG, trained": trained,
}
NAMES = ["random", *METHODS, "measured replicate"]


def ranks(scores: np.ndarray) -> dict[str, float]:
    """Return AUROC and shares in the first percents, from scores (n candidates, n signatures); the true is i of i."""
    n = len(scores)
    true = scores.diagonal()
    above = (scores > true).sum(0) + ((scores == true).sum(0) - 1) / 2
    top = {f"top_{percent}": float((above + 1 <= max(1.0, percent * n / 100)).mean()) for percent in TOP}
    return {"auroc": float(1 - above.mean() / (n - 1)), **top}


class Truth:
    """Observed shifts of all conditions, own targets apart."""

    def __init__(self, adata: AnnData):
        PTRAG.setup_anndata(adata, **KEYS, batch_key="batch")
        self.screen: Screen = read_screen(adata, ScreenKeys.of(adata))
        table = self.screen.index.conditions
        self.named = self.screen.index.named(table)
        self.own = measured_targets(self.named["perturbation"].to_numpy(), self.screen.genes, "+")
        shifts = mean_shifts(self.screen.reader, self.screen.index, table).shift
        self.masked = masked_shifts(shifts, self.own, self.named["cell_type"].to_numpy())

    def rows(self, names: np.ndarray, line: str) -> np.ndarray:
        of_line = self.named[self.named["cell_type"] == line]
        return pd.Series(of_line.index, index=of_line["perturbation"].astype(str)).loc[names].to_numpy()

    def replicate(self, names: np.ndarray, line: str, seed: int) -> dict[str, float]:
        """Return how well one half of the cells of each perturbation finds the other half."""
        index, rng = self.screen.index, np.random.default_rng(seed)
        codes = index.coded(pd.DataFrame({"perturbation": names, "cell_type": line}))
        controls = control_means(self.screen.reader, index)
        halves: list[list[np.ndarray]] = [[], []]
        for p, t in zip(codes["perturbation"], codes["cell_type"], strict=True):
            cells = rng.permutation(index.rows(p, t))
            for half, rows in zip(halves, np.array_split(cells, 2), strict=True):
                half.append(self.screen.reader.rows(rows).mean(0) - matched_control(controls, index.batch[rows]))
        one, other = (np.array(half) for half in halves)
        own = [np.flatnonzero(self.own[row]) for row in self.rows(names, line)]
        return ranks(cosine(Sums.of(one, other).without(own, one, other)))


def measured(adata: AnnData, truth: Truth, setting: str, seed: int, method: str) -> dict[str, float]:
    """Return all figures of one method on one split; ``size_`` are those of ranking by effect size alone."""
    line, elsewhere = SETTINGS[setting]
    names = np.unique(truth.named["perturbation"].to_numpy(dtype=str))
    asked = np.sort(np.random.default_rng(seed).permutation(names)[len(names) // 2 :])
    rows = truth.rows(asked, line)
    if method == "random":
        return ranks(np.random.default_rng([seed, 2]).normal(size=(len(asked), len(asked))))
    if method == "measured replicate":
        return truth.replicate(asked, line, seed)
    held_out = adata.obs["perturbation"].isin(asked)
    if elsewhere:
        held_out &= adata.obs["cell_type"] == line
    adata.obs["split"] = np.where(held_out, "test", "train")
    PTRAG.setup_anndata(adata, **KEYS, batch_key="batch", split_key="split")
    model = METHODS[method](adata, seed)
    signatures = pd.DataFrame(truth.masked[rows].T, index=truth.screen.genes, columns=asked)
    table = ptrag_sc.tl.rank_perturbations(adata, model, signatures, cell_type=line, candidates=list(asked))
    found = {}
    for prefix, value in (("", "score"), ("size_", "strength")):
        scores = table.pivot(index="perturbation", columns="signature", values=value).loc[asked, asked].to_numpy()
        found |= {prefix + name: share for name, share in ranks(scores).items()}
    (recovery,) = table.attrs["recovery"]
    found |= {f"recovery_{name}": recovery[name] for name in ("auroc", "top_5", "correlation")}
    one = table[table["signature"] == asked[0]].set_index("perturbation").loc[asked]
    true = correlations(model, truth, asked, line)
    found |= quarters(one["expected_accuracy"], pd.Series(true, index=asked))
    return found | {
        "correlation": float(true.mean()),
        "covered": float(np.mean(one["lower"].le(true) & one["upper"].ge(true))),
    }


def correlations(model: Predictor, truth: Truth, asked: np.ndarray, line: str) -> np.ndarray:
    """Return the correlation of predicted and observed deviation from the mean shift of what was measured."""
    labels, known = tuple(asked), model.known_conditions_
    mean = truth.masked[truth.rows(known.loc[known["cell_type"] == line, "perturbation"].to_numpy(str), line)].mean(0)
    t = truth.screen.index.cell_types.tolist().index(line)
    vectors = model.resolve(labels, model.training_data())
    predicted = np.concatenate(list(model.shift_blocks(labels, vectors, truth.screen, t)))
    pairs = zip(predicted, truth.masked[truth.rows(asked, line)], truth.own[truth.rows(asked, line)], strict=True)
    return np.array([np.corrcoef((a - mean)[~own], (b - mean)[~own])[0, 1] for a, b, own in pairs])


def quarters(expected: pd.Series, true: pd.Series) -> dict[str, float]:
    """Return expected and true accuracy of the quarters of candidates of least and most expected accuracy."""
    quarter = pd.qcut(expected.rank(method="first"), 4, labels=["bottom", "second", "third", "top"])
    found = {"rank_correlation": float(expected.corr(true, method="spearman"))}
    for name in ("bottom", "top"):
        found |= {f"expected_{name}": expected[quarter == name].mean(), f"true_{name}": true[quarter == name].mean()}
    return {key: float(value) for key, value in found.items()}


def ranking_table(out: Path, *, methods: list[str] | None = None) -> pd.DataFrame:
    """Measure methods on every split, as far as they are not there yet, and return the means over splits.

    ``methods`` None: all but the trained model, which takes hours.
    """
    folder = out / "ranking"
    folder.mkdir(parents=True, exist_ok=True)
    methods = methods or [name for name in NAMES if name != "PTRAG, trained"]
    wanted = [(seed, setting, method) for seed in SEEDS for setting in SETTINGS for method in methods]
    adata = truth = None
    for seed, setting, method in wanted:
        path = folder / f"{setting}, {method}, {seed}.csv"
        if path.exists():
            continue
        if adata is None or truth is None:
            adata = SEMIREAL()
            truth = Truth(adata)
        row = {"setting": setting, "method": method, "seed": seed, **measured(adata, truth, setting, seed, method)}
        pd.DataFrame([row]).to_csv(path, index=False)
        print(f"{path.stem}: AUROC {row['auroc']:.3f}", flush=True)
    rows = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("*.csv"))])
    rows["method"] = pd.Categorical(rows["method"], NAMES)
    rows["setting"] = pd.Categorical(rows["setting"], list(SETTINGS))
    n_splits = rows.groupby(["setting", "method"], observed=True).size().to_numpy()
    means = rows.drop(columns="seed").groupby(["setting", "method"], observed=True).mean().reset_index()
    means.insert(2, "splits", n_splits)
    means.to_csv(out / "ranking.csv", index=False)
    print(markdown(means.round(3).to_dict("records")))
    return means
