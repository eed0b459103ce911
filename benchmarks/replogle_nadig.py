"""What does PT-RAG reach on Replogle-Nadig, on the published split, next to baselines, floor and ceiling?

``python benchmarks/replogle_nadig.py replogle.h5ad --scale counts --target hepg2 --out FOLDER`` runs it end to end on
the published file (22 GB; in place of its path, ``--sha256`` downloads it). The split is like the published few-shot
one: the target line keeps 64 % of its perturbations in training (6 % validate, 30 % are tested), the other lines keep
all. For every seed the split is drawn anew, 2,000 variable genes are chosen from its training cells, and all cells are
read at these genes alone. Perturbations whose gene has no embedding are taken out of the screen and listed. ``FOLDER``
keeps finished (seed, method) pairs, so that an interrupted run goes on, the scores and a JSON, which is also the last
line printed.

Distances are in the 50 principal components of the training cells. The published tables give half the square of the
Wasserstein-2 distance: that column stands beside ours, as the mean over conditions of W2^2/2. Their expression space
and their choice of genes differ, so compare differences between methods, not levels.
"""

import argparse
import json
import time
from pathlib import Path

import pandas as pd
import scvi
import torch
from anndata import AnnData
from measure import machine, table

import ptrag_sc
from ptrag_sc import PTRAG, baselines

LABELS = {"perturbation_key": "gene", "control": "non-targeting"}
KEYS = {**LABELS, "cell_type_key": "cell_line"}
SETUP = {**KEYS, "batch_key": "gem_group", "split_key": "split"}
METRICS = [*ptrag_sc.metrics.DEFAULT_METRICS, "wasserstein_1", "wasserstein_2"]
PUBLISHED = "wasserstein_2 squared / 2"
BASELINES = {
    "perturbation mean": baselines.PerturbationMean,
    "additive": baselines.Additive,
    "nearest perturbations": baselines.NearestPerturbations,
}


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=None, help="replogle.h5ad; left out, it is downloaded")
    parser.add_argument("--sha256", default=None, help="checksum of the file; needed for a download")
    parser.add_argument("--scale", choices=("counts", "log1p"), required=True, help="what X of the file holds")
    parser.add_argument("--target", default="hepg2", help="cell line that is tested")
    parser.add_argument("--kept", type=float, default=0.64, help="share of the target's perturbations in training")
    parser.add_argument("--val", type=float, default=0.06, help="share of the target's perturbations for validation")
    parser.add_argument("--seeds", type=int, default=3, help="number of splits and initialisations")
    parser.add_argument("--genes", type=int, default=2000, help="number of variable genes")
    parser.add_argument("--embedding", default="genept", help="genept, or a file of gene vectors")
    parser.add_argument("--retrieval", nargs="+", default=["gumbel", "none"], help="gumbel, attention, none")
    parser.add_argument("--model", type=json.loads, default={}, help="JSON: options of PTRAG")
    parser.add_argument("--train", type=json.loads, default={}, help="JSON: options of PTRAG.train")
    parser.add_argument("--cells", type=int, default=1000, help="control cells from which a population is predicted")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    return parser.parse_args(arguments)


def screen_of(run: argparse.Namespace, seed: int) -> tuple[AnnData, dict[str, object]]:
    """Return the screen of one seed, set up, and what is in it."""
    backed = ptrag_sc.datasets.replogle_nadig(run.file, sha256=run.sha256)
    shares = {"test_fraction": 1 - run.kept - run.val, "val_fraction": run.val}
    ptrag_sc.pp.split(backed, **KEYS, holdout="pair", test_cell_type=run.target, seed=seed, **shares)
    adata = ptrag_sc.datasets.select_training_genes(backed, counts=run.scale == "counts", n_genes=run.genes)
    backed.file.close()
    ptrag_sc.pp.gene_embedding(adata, run.embedding, **LABELS, missing="drop")
    excluded = [str(gene) for gene in adata.uns["gene_embedding"]["excluded"]]
    lost = adata.obs["gene"].astype(str).isin(excluded)
    if lost.any():
        adata = adata[~lost.to_numpy()].copy()
        print(f"{len(excluded)} perturbed genes have no embedding: {lost.sum()} cells left out ({', '.join(excluded)})")
    PTRAG.setup_anndata(adata, **SETUP)
    return adata, {"seed": seed, **described(adata), "without_embedding": excluded, "cells_left_out": int(lost.sum())}


def described(adata: AnnData) -> dict[str, object]:
    """Return sizes, and the number of conditions of each part of the split."""
    conditions = adata.obs[adata.obs["gene"].astype(str) != LABELS["control"]]
    conditions = conditions.drop_duplicates(["gene", "cell_line"])["split"].value_counts()
    return {"cells": adata.n_obs, "genes": adata.n_vars, "conditions": {k: int(v) for k, v in conditions.items()}}


def methods(run: argparse.Namespace) -> dict[str, object]:
    """Return for each method a function of (screen, seed) that returns a fitted predictor."""

    def trained(adata: AnnData, seed: int, retrieval: str) -> PTRAG:
        scvi.settings.seed = seed
        PTRAG.setup_anndata(adata, **SETUP)  # compare works on a copy, which scvi-tools wants to be told
        model = PTRAG(adata, retrieval=retrieval, **run.model)
        model.train(**run.train)
        return model

    learned = {f"PT-RAG, {name}": lambda adata, seed, name=name: trained(adata, seed, name) for name in run.retrieval}
    return learned | {name: lambda adata, seed, kind=kind: kind(adata).fit() for name, kind in BASELINES.items()}


def with_published(scores: pd.DataFrame) -> pd.DataFrame:
    """Add the published convention of the Wasserstein-2 distance as a metric of its own."""
    rows = scores[scores["metric"] == "wasserstein_2"]
    return pd.concat([scores, rows.assign(metric=PUBLISHED, value=rows["value"] ** 2 / 2)], ignore_index=True)


def main(arguments: list[str] | None = None) -> None:
    """Score every method for every seed; print tables and one JSON line."""
    run, start = options(arguments), time.perf_counter()
    run.out.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")), "options": vars(run)}
    parts, screens = [], []
    for seed in range(run.seeds):
        adata, found = screen_of(run, seed)
        print(f"seed {seed}: {found['cells']} cells x {found['genes']} genes, {found['conditions']}", flush=True)
        cache = run.out / f"seed{seed}"
        kept = {"seeds": [seed], "metrics": METRICS, "n_cells": run.cells, "cache": cache}
        parts.append(ptrag_sc.benchmark.compare(adata, methods(run), **kept))
        screens.append(found)
    scores = with_published(pd.concat(parts, ignore_index=True))
    scores.to_csv(run.out / "scores.csv", index=False)
    summary = pd.concat([ptrag_sc.benchmark.summary(scores, truth=truth) for truth in ("half", "all")])
    for truth, rows in summary.groupby("truth"):
        means = rows.pivot(index="method", columns="metric", values="mean")[[*METRICS, PUBLISHED]]
        print(f"\nscored against {truth} of the real cells\n" + table(means.reset_index().to_dict("records")))
    result |= {"screens": screens, "summary": json.loads(summary.to_json(orient="records"))}
    result["seconds"] = time.perf_counter() - start
    line = json.dumps(result, default=str)
    (run.out / "replogle_nadig.json").write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
