"""Would a biologist believe the predicted cells?

``python benchmarks/believable.py --out FOLDER`` looks at held-out perturbations of real screens, for PT-RAG and for
every baseline: zeros, variance and energy distance of predicted cells, smooth and with counts; genes that a test calls;
the knocked-down gene; whether the strongest fall is another perturbation's target; coverage and calls of the intervals.
It writes one CSV per screen, method and fold (a finished one is never computed again), ``believable.md`` and a figure.

On screens of a few dozen perturbations, these are left out one at a time for all methods that are not trained; PT-RAG
is trained in five folds. The semi-real screen has the split of ``evidence.py``, five seeds. Screens are read from the
folder that the environment variable ``PTRAG_SC_TEST_DATA`` names; a screen whose file is missing is skipped.
"""

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from evidence import KEYS, TASKS, own_targets_kept, real_screen
from measure import table
from scipy.sparse import issparse
from scipy.stats import false_discovery_control, mannwhitneyu

import ptrag_sc
from ptrag_sc import PTRAG, baselines
from ptrag_sc.benchmark import evaluate
from ptrag_sc.data import ScreenKeys, control_means, mean_shifts, read_screen

N_CELLS = 300  # control cells from which a population is generated
TESTED = 300  # cells on each side of a test of genes
TRAINED = {"PT-RAG": "models", "PT-RAG, targets not masked": "models-unmasked"}  # and where their models are kept
VALIDATED = (*TRAINED, "stacked")  # methods that need validation conditions
N_FOLDS = 5  # of a trained model on a small screen
LEVEL = 0.9
CALLED = 0.05  # false discovery rate of tests of genes
SEED = 0
CELL_METRICS = ["energy_distance", "variance_ratio", "de_jaccard", "de_overlap", "de_direction"]
MEAN_METRICS = ["pearson_delta", "pearson_delta_pert"]
CONDITION = ["perturbation", "cell_type"]


class Screen(NamedTuple):
    """A screen, and how its perturbations are held out."""

    title: str
    load: Callable[[], AnnData]
    seeds: tuple[int, ...] = ()  # splits of ``evidence.py``; empty: one perturbation at a time
    target: str | None = None  # held out in this cell type


def norman(cell_types: tuple[str, ...]) -> AnnData:
    adata = real_screen("norman_mcfaline_devel.h5ad", size_factors="size_factor_library")
    adata = adata[adata.obs["cell_type"].isin(cell_types)].copy()
    # Results name combinations in this order, the file in any.
    labels = ["+".join(sorted(label.split("+"))) for label in adata.obs["perturbation"].astype(str)]
    adata.obs["perturbation"] = pd.Categorical(labels)
    return adata


def tapseq() -> AnnData:
    """Return the TAP-seq screen without its enhancers, which are no genes."""
    adata = real_screen("tapseq_k562_72genes.h5ad")
    return adata[~adata.obs["perturbation"].str.startswith("enh:")].copy()


SCREENS = {
    "semireal": Screen("Semi-real K562/RPE1, pairs of RPE1", TASKS["semireal_pairs"].load, seeds=(0, 1, 2, 3, 4)),
    "papalexi": Screen("Papalexi THP-1", TASKS["papalexi"].load),
    "tapseq": Screen("TAP-seq K562", tapseq),
    "norman": Screen("Norman K562 (CRISPRa)", partial(norman, ("K562",))),
    "hill": Screen("Hill MCF10A", partial(real_screen, "extra_hill_mcf10a_28genes.h5ad", size_factors="total_umis")),
    "glioma": Screen("McFaline glioma lines", partial(norman, ("A172", "T98G", "U87MG"))),
}


def trained(adata: AnnData, *, place: Path | None = None, seed: int = SEED, max_epochs: int | None = None) -> PTRAG:
    """Return a model trained to its early stop, from its folder if it is there."""
    if place is not None and place.exists():
        return PTRAG.load(place, adata=adata)
    scvi.settings.seed = seed
    model = PTRAG(adata)
    if max_epochs != 0:
        model.train(max_epochs, accelerator="cpu", enable_progress_bar=False)
        if place is not None:
            model.save(place)
    model.is_trained_ = True  # as it is meant to be used: no warning
    return model


def fitted(adata: AnnData, *, cls: type, **options: Any) -> Any:
    return cls(adata, **options).fit()


def unmasked(adata: AnnData, *, call: Callable, **options: Any) -> Any:
    """Return what a method learns without the mask and the rule for own targets, its intervals included."""
    with own_targets_kept():
        model = call(adata, **options)
        model.learn_effect_errors()
    return model


METHODS: dict[str, Callable[[AnnData], Any]] = {
    "PT-RAG": trained,
    "PT-RAG, targets not masked": partial(unmasked, call=trained),
    "PT-RAG, untrained": partial(trained, max_epochs=0),
    "PT-RAG, untrained, targets not masked": partial(unmasked, call=partial(trained, max_epochs=0)),
    "stacked": partial(fitted, cls=baselines.Stacked),
    "neighbours": partial(fitted, cls=baselines.NearestPerturbations, space="response"),
    "linear": partial(fitted, cls=baselines.LinearShift, space="response"),
    "perturbation mean": partial(fitted, cls=baselines.PerturbationMean),
    "additive": partial(fitted, cls=baselines.Additive),
    "mean shift": partial(fitted, cls=baselines.MeanShift),
    "no effect": partial(fitted, cls=baselines.NoEffect),
}


def folds(screen: Screen, adata: AnnData, method: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the split label of every cell (n,) of each fold."""
    if screen.seeds:
        for seed in screen.seeds:
            TASKS["semireal_pairs"].split(adata, seed)
            yield f"seed{seed}", adata.obs["split"].to_numpy(dtype=str)
        return
    labels = adata.obs["perturbation"].astype(str)
    names = np.array(sorted(set(labels) - {KEYS["control"]}))
    groups = [np.array([name]) for name in names]
    if method in TRAINED:
        groups = np.array_split(np.random.default_rng(SEED).permutation(names), N_FOLDS)
    for i, group in enumerate(groups):
        genes = {gene for name in group for gene in name.split("+")}
        with_it = np.array([not genes.isdisjoint(name.split("+")) for name in names])
        rest = np.random.default_rng(i).permutation(names[~with_it])
        n_val = max(2, len(rest) // 6) if method in VALIDATED else 0
        val = set(rest[:n_val])
        part = {name: "test" if name in group else "val" if name in val else "train" for name in names[~with_it]}
        part |= dict.fromkeys(group, "test") | {KEYS["control"]: "train"}
        # Combinations of a held-out gene are left out of everything.
        yield f"fold{i}", np.array([part.get(name, "") for name in labels])


def observed_shift(adata: AnnData, conditions: pd.DataFrame) -> np.ndarray:
    """Return the batch-matched shifts (C, G) of named conditions."""
    screen = read_screen(adata, ScreenKeys.of(adata))
    codes = screen.index.coded(conditions)
    return mean_shifts(screen.reader, screen.index, codes, control_means(screen.reader, screen.index)).shift


def halves(adata: AnnData) -> np.ndarray:
    """Return which control cells (n,) belong to the half that no model sees."""
    rng = np.random.default_rng(SEED)
    return (adata.obs["perturbation"] == KEYS["control"]).to_numpy() & (rng.random(adata.n_obs) < 0.5)


def registered(adata: AnnData, split: np.ndarray) -> AnnData:
    copy = adata[split != ""].copy()
    copy.obs["split"] = split[split != ""]
    PTRAG.setup_anndata(copy, **KEYS, batch_key="batch", split_key="split")
    return copy


def scores(adata: AnnData, split: np.ndarray, method: str, **options: Any) -> pd.DataFrame:
    """Return all figures of one method on one fold, a row for each held-out condition."""
    screen = registered(adata, split)
    model = METHODS[method](screen, **options)
    test = screen.obs.loc[screen.obs["split"] == "test", CONDITION].astype(str).drop_duplicates()
    test = test[test["perturbation"] != KEYS["control"]].sort_values(CONDITION, ignore_index=True)
    reference = ptrag_sc.metrics.Reference.from_adata(screen)
    rows = []
    for cell_type, part in test.groupby("cell_type"):
        names = part["perturbation"].tolist()
        n_controls = int(
            ((screen.obs["perturbation"] == KEYS["control"]) & (screen.obs["cell_type"] == cell_type)).sum()
        )
        population = {"perturbations": names, "cell_types": [cell_type], "n_cells": min(N_CELLS, n_controls)}
        cells = {form: model.predict(screen, **population, counts=form == "counts") for form in ("smooth", "counts")}
        found = _cells(screen, cells, reference, cell_type)
        found = found.merge(_effects(screen, model, names, cell_type), on=CONDITION)
        rows.append(found.merge(_calls(adata, split, method, names, cell_type), on=CONDITION))
    return pd.concat(rows, ignore_index=True)


def _cells(
    screen: AnnData, cells: dict[str, AnnData], reference: ptrag_sc.metrics.Reference, cell_type: str
) -> pd.DataFrame:
    """Return zeros, variance, energy distance and tests of the predicted cells of one cell type."""
    columns = {}
    for form, predicted in cells.items():
        metrics = CELL_METRICS if form == "counts" else CELL_METRICS + MEAN_METRICS
        found = evaluate(screen, predicted, reference=reference, metrics=metrics)
        wide = found.pivot(index=CONDITION, columns="metric", values="value").add_suffix(f" {form}")
        columns |= dict(wide.items())
    result = pd.DataFrame(columns).reset_index()
    is_type = (screen.obs["cell_type"] == cell_type).to_numpy()
    control = np.flatnonzero(is_type & (screen.obs["perturbation"] == KEYS["control"]).to_numpy())
    for i, name in enumerate(result["perturbation"]):
        real = dense(screen[is_type & (screen.obs["perturbation"] == name).to_numpy(), reference.genes].X)
        result.loc[i, "zeros real"] = (real == 0).mean()
        result.loc[i, "called real"] = n_called(real, dense(screen[control, reference.genes].X))
        for form, predicted in cells.items():
            of_name = (predicted.obs["perturbation"] == name).to_numpy()
            virtual = dense(predicted[of_name].X)
            sources = set(predicted.obs.loc[of_name, "ptrag_source"])
            others = [row for row in control if screen.obs_names[row] not in sources]
            result.loc[i, f"zeros {form}"] = (virtual == 0).mean()
            enough = len(others) >= 50  # control cells that are not their sources
            result.loc[i, f"called {form}"] = (
                n_called(virtual, dense(screen[others, reference.genes].X)) if enough else np.nan
            )
    return result


def _effects(screen: AnnData, model: Any, names: list[str], cell_type: str) -> pd.DataFrame:
    """Return own genes, leaks and coverage of the predicted effects."""
    effects = ptrag_sc.tl.predict_effects(screen, model, names, cell_types=[cell_type], level=LEVEL)
    conditions = pd.DataFrame({"perturbation": names, "cell_type": cell_type})
    truth = observed_shift(screen, conditions)  # (C, G)
    is_type = (screen.obs["cell_type"] == cell_type).to_numpy()
    expressed = np.asarray((screen[is_type, model.genes_].X > 0).sum(0)).ravel() > 0  # (G,) by any cell
    trained_on = model.trained_on_.loc[model.trained_on_["cell_type"] == cell_type, "perturbation"]
    targets = {gene for label in trained_on for gene in label.split("+")}
    rows = []
    for (name, found), shift in zip(effects.groupby("perturbation", observed=True, sort=False), truth, strict=True):
        own = found["own"].to_numpy()
        genes = found["gene"].to_numpy(dtype=str)
        inside = ((found["lower"] <= shift) & (shift <= found["upper"])).to_numpy()
        others = ~own & np.isin(genes, sorted(targets))
        rows.append(
            {
                "perturbation": str(name),
                "cell_type": cell_type,
                "own error": np.abs(shift - found["shift"].to_numpy())[own].mean() if own.any() else np.nan,
                "own inside": inside[own].mean() if own.any() else np.nan,
                "size": np.linalg.norm(shift[~own]),
                "inside": inside[~own & expressed].mean() if found["lower"].notna().all() else np.nan,
                "others' targets": np.abs(shift - found["shift"].to_numpy())[others].mean(),
                "strongest is a target": strongest_is_target(found["shift"].to_numpy(), own, genes, targets),
                "strongest is a target real": strongest_is_target(shift, own, genes, targets),
            }
        )
    return pd.DataFrame(rows)


def strongest_is_target(shift: np.ndarray, own: np.ndarray, genes: np.ndarray, targets: set[str]) -> float:
    """Return whether the strongest fall, own targets aside, is the target of a training perturbation."""
    return float(genes[np.where(own, np.inf, shift).argmin()] in targets)


def _calls(adata: AnnData, split: np.ndarray, method: str, names: list[str], cell_type: str) -> pd.DataFrame:
    """Return how many genes are called, and how many of them rightly, judged against controls that no model saw."""
    rows = pd.DataFrame({"perturbation": names, "cell_type": cell_type})
    if method in TRAINED:  # training once more on half of the controls would be another model
        return rows.assign(called=np.nan, rightly=np.nan)
    unseen = halves(adata)
    screen = registered(adata, np.where(unseen, "", split))
    effects = ptrag_sc.tl.predict_effects(screen, METHODS[method](screen), names, cell_types=[cell_type], level=LEVEL)
    seen_controls = (adata.obs["perturbation"] == KEYS["control"]).to_numpy() & ~unseen
    truth = observed_shift(registered(adata, np.where(seen_controls, "", split)), rows)
    called = (effects["call"] & ~effects["own"]).to_numpy().reshape(truth.shape)
    right = called & (np.sign(effects["shift"].to_numpy().reshape(truth.shape)) == np.sign(truth))
    return rows.assign(called=called.sum(1), rightly=right.sum(1))


def dense(values: Any) -> np.ndarray:
    return values.toarray() if issparse(values) else np.asarray(values)


def n_called(cells: np.ndarray, controls: np.ndarray) -> int:
    """Return how many genes differ between up to 300 cells of each (Wilcoxon, Benjamini-Hochberg)."""
    rng = np.random.default_rng(SEED)
    drawn = [group[np.sort(rng.permutation(len(group))[:TESTED])] for group in (cells, controls)]
    varies = np.ptp(np.concatenate(drawn), axis=0) > 0
    p = mannwhitneyu(drawn[0][:, varies], drawn[1][:, varies], axis=0).pvalue
    return int((false_discovery_control(p) <= CALLED).sum())


def study(name: str, methods: list[str], out: Path) -> pd.DataFrame:
    """Return all figures of a screen, from files where they are there."""
    screen = SCREENS[name]
    adata = screen.load()
    parts = []
    for method in methods:
        for fold, split in folds(screen, adata, method):
            path = out / name / f"{method}-{fold}.csv"
            options: dict[str, Any] = {}
            if method in TRAINED:
                place = (out / name / TRAINED[method]) / f"PTRAG-text-gumbel-memory-{fold[4:]}"
                options = {"place": place, "seed": int(fold[4:])}
            if not path.exists():
                try:
                    found = scores(adata, split, method, **options)
                except ValueError as error:
                    if method != "stacked":  # it needs validation conditions, and responses elsewhere or neighbours
                        raise
                    print(f"{name}, {method}, {fold}: {error}", flush=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                found.to_csv(path.with_suffix(".part"), index=False)
                path.with_suffix(".part").rename(path)
                print(name, method, fold, flush=True)
            parts.append(pd.read_csv(path).assign(method=method, fold=fold))
    return pd.concat(parts, ignore_index=True)


# Columns of the table: title, and how it is computed from the rows of a method.
FIGURES: dict[str, Callable[[pd.DataFrame], str]] = {
    "zeros: smooth / counts / real": lambda t: three(t, "zeros smooth", "zeros counts", "zeros real", digits=3),
    "variance ratio: smooth / counts": lambda t: three(t, "variance_ratio smooth", "variance_ratio counts"),
    "energy distance: smooth / counts": lambda t: three(
        t, "energy_distance smooth", "energy_distance counts", digits=3
    ),
    "genes that a test calls: smooth / counts / real": lambda t: three(
        t, "called smooth", "called counts", "called real", digits=0
    ),
    "`de_jaccard`, with a DEG: smooth / counts": lambda t: three(
        t[t["called real"] > 0], "de_jaccard smooth", "de_jaccard counts"
    ),
    "own gene: abs error (n)": lambda t: f"{t['own error'].mean():.3f} ({t['own error'].notna().sum()})",
    "others' targets: abs error": lambda t: three(t, "others' targets", digits=4),
    "strongest fall is another's target: predicted / real": lambda t: three(
        t, "strongest is a target", "strongest is a target real"
    ),
    "coverage: all / strongest quarter / weakest": lambda t: coverage(t),
    "own gene covered": lambda t: f"{t['own inside'].sum():.0f} of {t['own inside'].notna().sum()}",
    "calls per condition (right sign)": lambda t: calls(t),
}


def three(rows: pd.DataFrame, *columns: str, digits: int = 2) -> str:
    return " / ".join(f"{rows[name].mean():.{digits}f}" if rows[name].notna().any() else "-" for name in columns)


def coverage(rows: pd.DataFrame) -> str:
    """Return the coverage of all conditions, and of the quarters with the largest and the smallest observed shifts."""
    low, high = rows["size"].quantile([0.25, 0.75])
    parts = rows, rows[rows["size"] >= high], rows[rows["size"] <= low]
    return " / ".join(f"{part['inside'].mean():.3f}" for part in parts)


def calls(rows: pd.DataFrame) -> str:
    if rows["called"].isna().all():
        return "-"
    share = f" ({rows['rightly'].sum() / rows['called'].sum():.2f})" if rows["called"].sum() else ""
    return f"{rows['called'].mean():.1f}{share}"


def report(results: dict[str, pd.DataFrame], out: Path) -> None:
    lines = []
    for name, found in results.items():
        rows: list[dict[str, object]] = []
        for method, part in found.groupby("method", sort=False):
            rows.append({"method": method, **{title: figure(part) for title, figure in FIGURES.items()}})
        lines += [f"### {SCREENS[name].title}", "", table(rows), ""]
    (out / "believable.md").write_text("\n".join(lines), encoding="utf-8")
    draw(results, out / "believable.png")


def draw(results: dict[str, pd.DataFrame], path: Path) -> None:
    """Draw zeros, tests and own genes of PT-RAG beside real cells, one group of bars for each screen."""
    import matplotlib.pyplot as plt

    panels = {
        "share of zeros": ("zeros smooth", "zeros counts", "zeros real"),
        "genes that a test calls": ("called smooth", "called counts", "called real"),
        "strongest fall is another's target": ("strongest is a target", "strongest is a target real"),
    }
    colours = {"smooth": "#A6A6A6", "counts": "#D55E00", "real": "#0072B2"}
    fig, axes = plt.subplots(1, len(panels), figsize=(12, 3.6), layout="constrained")
    for ax, (title, columns) in zip(axes, panels.items(), strict=True):
        for i, column in enumerate(columns):
            form = column.split()[-1] if column.split()[-1] in colours else "counts"
            heights = [t.loc[t["method"] == shown(t), column].mean() for t in results.values()]
            x = np.arange(len(heights)) + (i - (len(columns) - 1) / 2) * 0.25
            label = {"smooth": "predicted, smooth", "counts": "predicted", "real": "real cells"}[form]
            ax.bar(x, heights, 0.24, color=colours[form], label=label)
        ax.set_xticks(
            range(len(results)), [SCREENS[name].title.split(",")[0] for name in results], rotation=35, ha="right"
        )
        ax.set_title(title, loc="left", fontsize=11)
        ax.spines[["top", "right"]].set_visible(False)
    axes[1].set_yscale("symlog", linthresh=1)
    axes[1].set_ylim(bottom=0)
    axes[1].yaxis.set_major_formatter("{x:g}")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, frameon=False, fontsize=10, loc="outside right upper")
    fig.savefig(path, dpi=150)


def shown(found: pd.DataFrame) -> str:
    """Return the method that the figure shows: PT-RAG, untrained where only that was run."""
    return min(name for name in found["method"] if name.startswith("PT-RAG"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--screen", action="append", choices=SCREENS)
    parser.add_argument("--method", action="append", choices=METHODS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if not os.environ.get("PTRAG_SC_TEST_DATA"):
        raise SystemExit("PTRAG_SC_TEST_DATA does not name the folder of the screens")
    results = {}
    for name in options.screen or SCREENS:
        results[name] = study(name, options.method or list(METHODS), options.out)
        report(results, options.out)
    print((options.out / "believable.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
