"""Does retrieval help, where, and which baseline wins?

``python benchmarks/evidence.py --out FOLDER`` runs the study: PT-RAG with several gene embeddings and without
retrieval, all baselines, floors and ceilings, on simulated and real screens, several seeds of split and initialisation
each. It writes one JSON and one figure per task and ``evidence.md`` with all tables. It can be interrupted: a finished
(seed, method) pair, and every trained model, is kept in FOLDER and never computed again. ``--task`` runs one task (so
that several run side by side), ``--quick`` a small version that needs no data folder (under 20 minutes).

Real screens are read from the folder that the environment variable ``PTRAG_SC_TEST_DATA`` names; tasks whose file is
missing are skipped with a message. Nothing is tuned here: every learned model has its defaults and trains to its early
stop on validation conditions.
"""

import argparse
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from anndata import AnnData
from measure import machine, table
from published.module import PublishedModule, PublishedParams, PublishedSizes

import ptrag_sc
from ptrag_sc import PTRAG, baselines
from ptrag_sc.baselines import _base
from ptrag_sc.data import OwnEffects, canonical
from ptrag_sc.model import _tables
from ptrag_sc.model._calibration import OUTCOMES
from ptrag_sc.model._module_params import RETRIEVAL
from ptrag_sc.model._support import CONDITION, observed_errors

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
METRICS = ptrag_sc.metrics.DEFAULT_METRICS
SHOWN = ["pearson_delta", "pearson_delta_pert", "pds_cosine", "energy_distance"]
SEEDS = (0, 1, 2)
N_CELLS = 2000  # control cells per cell type, or all: sampled ones would add noise to every predicted mean
DATA = os.environ.get("PTRAG_SC_TEST_DATA")


class Task(NamedTuple):
    """A screen and how it is split."""

    title: str
    load: Callable[[], AnnData]
    split: Callable[[AnnData, int], None]
    scored: str | None = None  # key of strong_perturbations.json: only these are scored
    published: bool = False  # whether the published architecture runs here too
    ablated: bool = False  # whether parts of the memory are left out here too
    brief: bool = False  # only the memory, the query's own vector and the baselines
    n_cells: int = N_CELLS
    metrics: tuple[str, ...] = METRICS


def data_file(name: str) -> Path:
    return Path(DATA or "") / "data" / name


def real_screen(name: str, *, size_factors: str | None = None, cell_type: str | None = None) -> AnnData:
    """Return a log-normalised screen with text embeddings of its perturbed genes."""
    adata = ad.read_h5ad(data_file(name))
    if cell_type is not None:
        adata = adata[adata.obs["cell_type"] == cell_type].copy()
    if size_factors is None:
        sc.pp.normalize_total(adata, target_sum=1e4)
    else:
        factor = adata.obs[size_factors].to_numpy(dtype=float)
        size = 1e4 if size_factors == "total_umis" else factor.mean()  # totals, or factors relative to each other
        adata.X = (adata.X.multiply((size / factor)[:, None])).tocsr().astype(np.float32)
    sc.pp.log1p(adata)
    source = adata.uns.pop("gene_embedding", str(data_file("gene_emb_minilm_l6_v2_384.npz")))
    names = {"perturbation_key": KEYS["perturbation_key"], "control": KEYS["control"]}
    ptrag_sc.pp.gene_embedding(adata, source, **names, missing="drop")
    return adata


def grouped_folds(adata: AnnData, seed: int) -> None:
    """Hold out one of three folds of genes, with every combination that contains one; a sixth of the rest validates."""
    labels = adata.obs["perturbation"].astype(str)
    genes = np.array(sorted({g for name in labels.unique() if name != KEYS["control"] for g in name.split("+")}))
    order = np.random.default_rng(0).permutation(genes)  # the folds; the seed chooses one
    fold = {gene: i % 6 for i, gene in enumerate(order)}
    found = [set() if name == KEYS["control"] else {fold[g] for g in name.split("+")} for name in labels]
    test, val = {2 * (seed % 3), 2 * (seed % 3) + 1}, {(2 * (seed % 3) + 2) % 6}
    adata.obs["split"] = ["test" if f & test else "val" if f & val else "train" for f in found]


def drawn(adata: AnnData, seed: int, **options) -> None:
    ptrag_sc.pp.split(adata, **KEYS, **options, seed=seed)


def doubles(adata: AnnData, seed: int) -> None:
    """Hold out combinations of genes that were also perturbed alone; a third of the others validates."""
    labels = adata.obs["perturbation"].astype(str)
    names = set(labels.unique())
    both = np.array(sorted(n for n in names if "+" in n and set(n.split("+")) <= names))
    rest = np.random.default_rng(seed).permutation(sorted(names - set(both) - {KEYS["control"]}))
    val = set(rest[: len(rest) // 6])
    adata.obs["split"] = ["test" if n in both else "val" if n in val else "train" for n in labels]


def simulated_grid(n_cell_types: int, n_perturbations: int) -> Task:
    """Return a simulated screen of a given size, a fifth or 400 of its pairs held out."""
    n_pairs = n_cell_types * n_perturbations
    load = partial(
        ptrag_sc.datasets.simulated,
        n_cells=min(100_000, 100 * n_pairs),
        n_cell_types=n_cell_types,
        n_perturbations=n_perturbations,
    )
    held_out = {"holdout": "pair", "test_fraction": min(0.2, 400 / n_pairs), "val_fraction": min(0.1, 200 / n_pairs)}
    title = f"Simulated, {n_cell_types} cell types x {n_perturbations} perturbations, held-out pairs"
    brief = {"brief": True, "n_cells": 500, "metrics": ptrag_sc.metrics.DEFAULT_METRICS}
    return Task(title, load, partial(drawn, **held_out), **brief)


def simulated_doubles(adata: AnnData, seed: int) -> None:
    """Hold out half of the combinations; a tenth of them validates."""
    labels = adata.obs["perturbation"].astype(str)
    pairs = np.random.default_rng(seed).permutation(sorted(n for n in labels.unique() if "+" in n))
    test, val = set(pairs[: len(pairs) // 2]), set(pairs[len(pairs) // 2 :][: len(pairs) // 10])
    adata.obs["split"] = ["test" if n in test else "val" if n in val else "train" for n in labels]


PAIRS = {"holdout": "pair", "test_fraction": 0.3, "val_fraction": 0.1}
TARGET = {"holdout": "pair", "test_cell_type": "RPE1", "test_fraction": 0.56, "val_fraction": 0.08}
UNSEEN = {"holdout": "perturbation", "test_fraction": 0.3, "val_fraction": 0.1}
SEMIREAL = partial(real_screen, "semireal_k562_rpe1.h5ad")
TASKS = {
    "simulated": Task("Simulated, held-out pairs", ptrag_sc.datasets.simulated, partial(drawn, **PAIRS)),
    "semireal_pairs": Task(
        "Semi-real K562/RPE1, held-out pairs of RPE1 (36 % in training)",
        SEMIREAL,
        partial(drawn, **TARGET),
        published=True,
        ablated=True,
    ),
    "semireal_unseen": Task(
        "Semi-real K562/RPE1, perturbations unseen in both lines", SEMIREAL, partial(drawn, **UNSEEN)
    ),
    "papalexi": Task(
        "Papalexi THP-1, three folds of genes, strong perturbations",
        partial(real_screen, "papalexi_thp1_299genes.h5ad", size_factors="total_umis"),
        grouped_folds,
        scored="papalexi_thp1",
    ),
    "norman": Task(
        "Norman K562 (CRISPRa), three folds of genes, strong perturbations",
        partial(real_screen, "norman_mcfaline_devel.h5ad", size_factors="size_factor_library", cell_type="K562"),
        grouped_folds,
        scored="norman_k562",
    ),
    "norman_doubles": Task(
        "Norman K562 (CRISPRa), combinations of genes known alone",
        partial(real_screen, "norman_mcfaline_devel.h5ad", size_factors="size_factor_library", cell_type="K562"),
        doubles,
    ),
    "simulated_doubles": Task(
        "Simulated, held-out combinations with known interaction",
        partial(ptrag_sc.datasets.simulated, n_cells=30_000, n_perturbations=60, n_cell_types=2, n_combinations=80),
        simulated_doubles,
        n_cells=500,
        metrics=ptrag_sc.metrics.DEFAULT_METRICS,
    ),
    **{f"simulated_{t}x{p}": simulated_grid(t, p) for t in (2, 8) for p in (50, 1000)},
}


def embedded(adata: AnnData, kind: str, seed: int) -> AnnData:
    """Return a copy whose gene embedding is text as it is, permuted between genes, random, or one-hot."""
    copy = adata.copy()
    own = copy.uns["gene_embedding"]
    genes, vectors = np.asarray(own["genes"], dtype=str), np.asarray(own["vectors"])
    rng = np.random.default_rng([seed, 1])
    vectors = {
        "text": lambda: vectors,
        "permuted": lambda: vectors[rng.permutation(len(vectors))],
        "random": lambda: rng.normal(size=vectors.shape),
        "one-hot": lambda: np.eye(len(vectors)),
    }[kind]()
    names = {"perturbation_key": KEYS["perturbation_key"], "control": KEYS["control"]}
    ptrag_sc.pp.gene_embedding(copy, pd.DataFrame(vectors, index=genes), **names, missing="drop")
    return copy


# The published architecture at the size of PTRAG's generator: 4 blocks with 12 heads of width 12 and a SwiGLU of 512
# (published: 8 blocks, 12 x 58, 2,784). At the published size a step takes 1 s, and a training up to 3,000.
SMALL = {"n_layers": 4, "n_attention": 12 * 12, "n_feed_forward": 512}


class PublishedPTRAG(PTRAG):
    """The published architecture, small, in the training loop and the sets of this package."""

    frozen = scaled = causal = True

    @classmethod
    def _module_cls(cls, vectors, basis, params, memory):
        sizes = PublishedSizes(basis.shape[1], vectors.shape[1], **SMALL)
        module = PublishedModule(vectors, sizes, PublishedParams("ptrag", scaled=cls.scaled, causal=cls.causal))
        module.generator.register_buffer("basis", basis)  # unused: where a saved model looks for its genes' directions
        if cls.frozen:  # as observed: the generator and the output layer stay as they were initialised
            for parameter in (*module.generator.parameters(), *module.project.parameters()):
                parameter.requires_grad_(False)
        return module

    def _build(self, *arguments) -> None:
        super()._build(*arguments)
        self.own_effects_ = None  # the published loss shows the module what perturbations do to their own targets

    def learn_effect_errors(self) -> None:
        """Learn nothing: the published module generates cells and has no mean shift without them."""


class PublishedTrained(PublishedPTRAG):
    frozen = False


class PublishedUnscaled(PublishedTrained):
    scaled = False


class PublishedUnordered(PublishedUnscaled):
    causal = False


def trained(
    adata: AnnData, seed: int, *, folder: Path, kind: str = "text", cls: type = PTRAG, max_epochs=None, **options
) -> PTRAG:
    """Return a model trained to its early stop, from its folder if it is there."""
    adata = embedded(adata, kind, seed)
    cls.setup_anndata(adata, **KEYS, batch_key="batch", split_key="split")
    memory = "-memory" if options.get("memory") else ""
    place = folder / f"{cls.__name__}-{kind}-{options.get('retrieval', 'gumbel')}{memory}-{seed}"
    if place.exists() and max_epochs != 0:
        return cls.load(place, adata=adata)
    scvi.settings.seed, start = seed, time.perf_counter()
    model = cls(adata, **{"memory": None, **options})
    if max_epochs == 0:
        return model
    model.train(max_epochs, accelerator="cpu", enable_progress_bar=False)
    if model.trainer.received_sigterm:  # Lightning ends a training that is stopped from outside as if it were complete
        raise SystemExit("stopped: this model is not kept")
    model.save(place)
    (place / "seconds.json").write_text(json.dumps(time.perf_counter() - start))
    return model


def untrained(adata: AnnData, seed: int, *, folder: Path) -> PTRAG:
    """Return a model that answers with its memory alone."""
    model = trained(adata, seed, folder=folder, memory="response", max_epochs=0)
    model.is_trained_ = True  # as it is meant to be used: no warning
    return model


def fitted(adata: AnnData, seed: int, *, cls: type, **options):
    return cls(adata, **options).fit()


@contextmanager
def own_targets_kept() -> Iterator[None]:
    """Learn as if nobody knew which genes are targets: no mask, and nothing learned about targets."""
    shares = OwnEffects({}, 0.0, pd.DataFrame({"gene": [], "cell_type": [], "effect": []}))

    def kept(shifts: np.ndarray, *_: object, **__: object) -> np.ndarray:
        return shifts.copy()

    with (
        patch.object(_tables, "masked_shifts", kept),
        patch.object(_base, "masked_shifts", kept),
        patch.object(OwnEffects, "learn", classmethod(lambda *_: shares)),
        patch.object(PTRAG, "query_targets", lambda self, labels: None),
    ):
        yield


def unmasked(adata: AnnData, seed: int, *, call: Callable, **options):
    """Return what a method learns without the mask and the rule for own targets."""
    with own_targets_kept():
        return call(adata, seed, **options)


def methods(task: Task, folder: Path, max_epochs: int | None) -> dict[str, Callable]:
    """Return every method of a task."""
    learn = partial(trained, folder=folder, max_epochs=max_epochs)
    kinds = () if task.brief else ("text", "permuted", "random", "one-hot")
    found = {f"PTRAG gumbel, {kind}": partial(learn, kind=kind) for kind in kinds}
    kinds = ("none",) if task.brief else ("attention", "none")
    found |= {f"PTRAG {kind}, text": partial(learn, retrieval=kind) for kind in kinds}
    for kind in RETRIEVAL if task.ablated else RETRIEVAL[:1]:
        found[f"PTRAG {kind}, memory"] = partial(learn, memory="response", retrieval=kind)
    if task.ablated:
        found["PTRAG untrained, memory"] = partial(untrained, folder=folder)
    simple = {
        "perturbation mean": {"cls": baselines.PerturbationMean},
        "additive": {"cls": baselines.Additive},
        "neighbours, text (5)": {"cls": baselines.NearestPerturbations, "n_neighbors": 5},
        "neighbours, text (20)": {"cls": baselines.NearestPerturbations, "n_neighbors": 20},
        "neighbours, response (20)": {"cls": baselines.NearestPerturbations, "n_neighbors": 20, "space": "response"},
        "ridge, text": {"cls": baselines.LinearShift},
        "ridge, response": {"cls": baselines.LinearShift, "space": "response"},
        "kernel ridge": {"cls": baselines.KernelRidge},
        "stacked": {"cls": baselines.Stacked},
    }
    found |= {name: partial(fitted, **options) for name, options in simple.items()}
    memory = partial(learn, memory="response", folder=folder.with_name("models-unmasked"))
    found["PTRAG gumbel, memory, targets not masked"] = partial(unmasked, call=memory)
    found["stacked, targets not masked"] = partial(unmasked, call=fitted, cls=baselines.Stacked)
    if task.published:
        classes = {
            "published": PublishedPTRAG,
            "published, all trained": PublishedTrained,
            "published, trained, not scaled": PublishedUnscaled,
            "published, trained, not scaled, no order": PublishedUnordered,
        }
        found |= {name: partial(learn, cls=cls) for name, cls in classes.items()}
    return found


def run(name: str, out: Path, *, seeds: tuple[int, ...], chosen: str | None, max_epochs: int | None) -> dict:
    """Run a task, as far as it is not there yet, and write its scores and its figure."""
    task, start = TASKS[name], time.perf_counter()
    adata = task.load()
    task.split(adata, seeds[0])
    PTRAG.setup_anndata(adata, **KEYS, batch_key="batch", split_key="split")
    wanted = {
        m: call for m, call in methods(task, out / name / "models", max_epochs).items() if chosen is None or chosen in m
    }
    options = {
        "split": task.split,
        "seeds": seeds,
        "metrics": task.metrics,
        "n_cells": task.n_cells,
        "cache": out / name,
    }
    scores = ptrag_sc.benchmark.compare(adata, wanted, **options)
    if task.scored is not None:
        strong = set(json.loads(data_file("strong_perturbations.json").read_text())[task.scored]["strong"])
        scores = scores[scores["perturbation"].isin({canonical(s, "+") for s in strong})]
    if chosen is not None:
        return {"seconds": time.perf_counter() - start}  # some methods: the tables wait for all of them
    scores.to_csv(out / f"{name}.csv", index=False)
    summaries = {t: ptrag_sc.benchmark.summary(scores, truth=t) for t in ("half", "all")}
    figure = ptrag_sc.pl.benchmark(summaries["half"], metrics=SHOWN, return_fig=True)
    figure.savefig(out / f"{name}.png", dpi=110)
    result = {"task": name, "title": task.title, "seeds": list(seeds)}
    result |= {"machine": machine(torch.device("cpu")), "n_conditions": int(summaries["all"]["n_conditions"].max())}
    result["summary"] = {t: s.to_dict("records") for t, s in summaries.items()}
    if "truth" in adata.uns:
        folder = out / name / "models"
        result["coverage"] = coverage(adata, task, folder, seeds).to_dict("records")
        result["lift"] = lifts(adata, task, folder, seeds).to_dict("records")
    trainings = [json.loads(path.read_text()) for path in (out / name / "models").glob("*/seconds.json")]
    result |= {"training_seconds": sum(trainings), "n_trainings": len(trainings)}
    result["seconds"] = time.perf_counter() - start  # of this call
    (out / f"{name}.json").write_text(json.dumps(result, default=float))
    return result


def lifts(adata: AnnData, task: Task, folder: Path, seeds: tuple[int, ...]) -> pd.DataFrame:
    """Return the lift of the selection, where the truth is known, of trained and untrained models and of chance.

    Shuffled is the model that was trained on embeddings permuted between genes. All seeds together: a bootstrap draws
    perturbations.
    """
    tables: dict[str, list[pd.DataFrame]] = {}
    for seed in seeds:
        task.split(adata, seed)
        memory = partial(trained, adata, seed, folder=folder, memory="response")
        tables.setdefault("memory", []).append(memory().get_retrieval(adata))
        tables.setdefault("memory, untrained", []).append(memory(max_epochs=0).get_retrieval(adata))
        if task.brief:
            continue
        model = trained(adata, seed, folder=folder)
        tables.setdefault("trained", []).append(model.get_retrieval(adata))
        tables.setdefault("trained, random candidates", []).append(model.get_retrieval(adata, null="random"))
        untrained = trained(adata, seed, folder=folder, max_epochs=0)
        tables.setdefault("untrained", []).append(untrained.get_retrieval(adata))
        shuffled = trained(adata, seed, folder=folder, kind="permuted")
        tables.setdefault("shuffled", []).append(shuffled.get_retrieval(adata))
    relevant, parts = adata.uns["truth"]["relevant"], []
    for name, of_name in tables.items():
        for by in ("selected", "weight"):
            part = ptrag_sc.benchmark.selection_lift(pd.concat(of_name), relevant, by=by)
            parts.append(part.assign(model=name, by=by))
    return pd.concat(parts)[["model", "by", "cell_type", "share_relevant", "share_selected", "lift", "low", "high"]]


def coverage(adata: AnnData, task: Task, folder: Path, seeds: tuple[int, ...]) -> pd.DataFrame:
    """Return how often test conditions lie in the intervals of their expected errors, and what abstained ones are."""
    parts = []
    for seed in seeds:
        task.split(adata, seed)
        model = trained(adata, seed, folder=folder, memory="response")
        screen = model.read(model.adata)
        test = screen.index.coded(model.split_[model.split_["split"] == "test"])
        support, observed = observed_errors(model, screen, test)
        parts.append(model.support_.expected(support).merge(observed, on=CONDITION).assign(seed=seed))
    table, rows = pd.concat(parts), []
    for metric in OUTCOMES:
        expected = table[table[f"expected_{metric}"].notna()]  # the others are unlike all validation conditions
        inside = expected[metric].between(expected[f"{metric}_low"], expected[f"{metric}_high"])
        of_kind = {
            name: table.loc[table["abstain"] == kind, metric] for name, kind in (("other", False), ("abstained", True))
        }
        rows.append(
            {
                "metric": metric,
                "covered": inside.mean(),
                "low": inside.groupby(expected["seed"]).mean().min(),
                "high": inside.groupby(expected["seed"]).mean().max(),
                "correlation": table[metric].corr(table[f"expected_{metric}"], method="spearman"),
                **{name: values.mean() for name, values in of_kind.items()},
                "n_abstained": len(of_kind["abstained"]),
                "n_expected": len(expected),
                "n": len(table),
            }
        )
    return pd.DataFrame(rows)


def page(results: list[dict]) -> str:
    """Return all tables as Markdown."""
    parts = []
    for result in results:
        summary = pd.DataFrame(result["summary"]["all"])
        rows = []
        for method, part in summary.groupby("method", sort=False):
            values = part.set_index("metric")
            cells = {
                m: f"{values.at[m, 'mean']:.3f} ± {(values.at[m, 'high'] - values.at[m, 'low']) / 2:.3f}"
                for m in METRICS
                if m in values.index
            }
            rows.append({"method": method} | cells)
        rows.sort(key=lambda row: -float(row["pearson_delta"].split()[0]))
        about = f"{result['n_conditions']} conditions, seeds {result['seeds']}; all real cells; ± half a 95 % interval"
        parts.append(f"### {result['title']}\n\n{about}\n\n{table(rows)}\n\n![]({result['task']}.png)\n")
        if "coverage" in result:
            parts.append(f"Expected errors of the memory, intervals of 90 %:\n\n{table(result['coverage'])}\n")
        if "lift" in result:
            parts.append(f"Lift of the selection over the share of relevant candidates:\n\n{table(result['lift'])}\n")
    return "\n".join(parts)


def main() -> None:
    """Run what was asked for and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results; what is there is not run again")
    parser.add_argument("--task", choices=list(TASKS), action="append", help="one task; repeat for several")
    parser.add_argument("--methods", help="only methods whose name contains this")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--quick", action="store_true", help="simulated screen only, one seed, short training")
    parser.add_argument("--page", action="store_true", help="only write evidence.md from the results that are there")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    arguments.out = arguments.out / "quick" if arguments.quick else arguments.out  # never mixed with the study
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = ["simulated"] if arguments.quick else arguments.task or list(TASKS)
    seeds, epochs = ((0,), 20) if arguments.quick else (tuple(arguments.seeds), None)
    for name in [] if arguments.page else names:
        if name != "simulated" and not (DATA and data_file("semireal_k562_rpe1.h5ad").exists()):
            print(f"{name}: skipped, PTRAG_SC_TEST_DATA names no folder with its data")
            continue
        result = run(name, arguments.out, seeds=seeds, chosen=arguments.methods, max_epochs=epochs)
        print(f"{name}: {result['seconds']:.0f} s", flush=True)
    results = [json.loads(path.read_text()) for n in TASKS if (path := arguments.out / f"{n}.json").exists()]
    (arguments.out / "evidence.md").write_text(page(results))
    print(page(results))
    print(
        json.dumps({r["task"]: {k: r.get(k) for k in ("seconds", "training_seconds", "n_trainings")} for r in results})
    )


if __name__ == "__main__":
    main()
