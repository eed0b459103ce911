"""What do time, a learned null, error-guided sampling and animals as batches buy and cost, where the truth is known?

``python benchmarks/differentiating.py [--cache FILE]`` prints three tables and, last, one JSON line. All screens are
simulated, and effects are compared with their truth: predicted ones of held-out conditions, measured ones of animals. A
cache keeps every finished run, so that a second call goes on where the first one ended.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData

import ptrag_sc
from ptrag_sc import PTRAG
from ptrag_sc.data import CellReader, ConditionIndex, control_means, matching_weights, mean_shifts

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
TIME = {"time_key": "time", "start": "start"}
SHAPE = {"n_genes": 100, "n_perturbations": 40, "n_cell_types": 3}
N_CELLS = 4000
SEEDS = (0, 1)
DRIFTS = (0.0, 1.0, 2.0, 3.0, 4.0)
FORMS = ("time_key", "pooled", "start only", "end only")  # which control cells a model without time is given
SMALL = {"memory": None, "n_hidden": 32, "n_layers": 2}
OPTIONS = {  # of the first seed: these are trained
    "anchored": {},
    "hidden": {"residual": "hidden"},
    "hidden, null_weight=0": {"residual": "hidden", "null_weight": 0.0},
    "anchored, error": {"condition_sampling": "error"},
}
EPOCHS = 30
N_ANIMALS = 8
ANIMAL_SD = 0.3  # of the shift of an animal, per gene
MATCHINGS = ("ignored", "batch", "auto")


def screen(drift: float, seed: int) -> AnnData:
    """Return a differentiating screen with held-out pairs."""
    adata = ptrag_sc.datasets.simulated(n_cells=N_CELLS, **SHAPE, differentiating=True, drift=drift, seed=seed)
    ptrag_sc.pp.split(adata, **KEYS, holdout="pair", test_fraction=0.3, val_fraction=0.1, seed=seed)
    return adata


def given(adata: AnnData, form: str) -> AnnData:
    """Return the cells that one form is given, set up."""
    start = (adata.obs["time"] == "start").to_numpy()
    end = (adata.obs["time"] == "end").to_numpy() & (adata.obs["perturbation"] == "non-targeting").to_numpy()
    kept = np.ones(adata.n_obs, dtype=bool)
    if form == "start only":
        kept = ~end
    elif form == "end only":
        kept = ~start
    chosen = adata[kept].copy()
    PTRAG.setup_anndata(chosen, **KEYS, batch_key="batch", split_key="split", **(TIME if form == "time_key" else {}))
    return chosen


def effect_errors(model: ptrag_sc.data.Predictor, adata: AnnData) -> np.ndarray:
    """Return the root mean squared error of the predicted effect of each test condition (C,)."""
    truth = adata.uns["truth"]
    place = {tuple(row): i for i, row in enumerate(truth["conditions"].to_numpy())}
    test = adata.obs[(adata.obs["split"] == "test") & (adata.obs["perturbation"] != "non-targeting")]
    conditions = test[["perturbation", "cell_type"]].drop_duplicates()
    data = model.read(adata)
    errors = []
    for name, table in conditions.groupby("cell_type", observed=True):
        labels = tuple(table["perturbation"])
        run = model.run(adata, data, labels)
        code = list(data.index.cell_types).index(name)
        blocks = model.expected_shifts(labels, data, code, state=run.state)
        shift = np.concatenate([block.shift for block in blocks])  # (C, G)
        for q in range(1, len(labels) + 1):
            columns, change = run.own_effects(q, code)
            shift[q - 1, columns] += change
        errors.append(np.square(shift - truth["effects"][[place[label, name] for label in labels]]).mean(1))
    return np.sqrt(np.concatenate(errors))


def root_mean_square(errors: np.ndarray) -> float:
    """Return the error over all conditions."""
    return float(np.sqrt(np.square(errors).mean()))


def of_form(drift: float, form: str, seed: int) -> dict[str, float]:
    """Return the errors of a baseline and of PTRAG's retrieval, given some of the control cells."""
    adata = given(screen(drift, seed), form)
    scvi.settings.seed = seed
    retrieval = PTRAG(adata)
    retrieval.is_trained_ = True  # as it is meant to be used here: no warning
    nearest = ptrag_sc.baselines.NearestPerturbations(adata).fit()
    return {
        "PTRAG, untrained": root_mean_square(effect_errors(retrieval, adata)),
        "NearestPerturbations": root_mean_square(effect_errors(nearest, adata)),
    }


def of_option(drift: float, option: str, seed: int) -> dict[str, float]:
    """Return the errors of a trained model without memory, and how far its control cells are from those at the end."""
    whole = screen(drift, seed)
    adata = given(whole, "time_key" if drift else "pooled")
    arguments = dict(OPTIONS[option])
    sampling = arguments.pop("condition_sampling", "uniform")
    scvi.settings.seed = seed
    model = PTRAG(adata, **SMALL, **arguments)
    start = time.process_time()
    model.train(
        EPOCHS,
        accelerator="cpu",
        enable_progress_bar=False,
        early_stopping=False,
        set_size=32,
        condition_sampling=sampling,
        logger=False,
    )
    seconds = time.process_time() - start
    errors = effect_errors(model, adata)
    # The truth does not depend on the number of cells, so a larger screen shows the same drift with less noise.
    other = ptrag_sc.datasets.simulated(n_cells=4 * N_CELLS, **SHAPE, differentiating=True, drift=drift, seed=seed)
    PTRAG.setup_anndata(other, **KEYS, batch_key="batch", **(TIME if drift else {}))
    null = ptrag_sc.benchmark.null_error(other, model, reference=ptrag_sc.metrics.Reference.from_adata(other))
    worst = np.sort(errors)[-max(1, len(errors) // 10) :]
    return {
        "effect": root_mean_square(errors),
        "worst tenth": root_mean_square(worst),
        "null": float((null["value"] - null["floor"]).mean()),
        "training (s)": seconds,
    }


def of_animals(n_controls: int, everywhere: bool, seed: int) -> dict[str, float]:
    """Return the error of measured shifts, each of 24 perturbations in two of eight animals.

    Parameters
    ----------
    n_controls
        Control cells of an animal that has some.
    everywhere
        Whether every animal has them; else two further animals have as many in all.
    seed
        Of the screen and of the animals.
    """
    size = {"n_genes": 100, "n_perturbations": 24, "n_cell_types": 1}
    adata = ptrag_sc.datasets.simulated(n_cells=12_000, **size, seed=seed)
    rng = np.random.default_rng(seed)
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    names, code = np.unique(labels, return_inverse=True)
    animal = (code + rng.integers(2, size=len(code)) * N_ANIMALS // 2) % N_ANIMALS
    control = np.flatnonzero(labels == KEYS["control"])
    places = np.arange(N_ANIMALS) if everywhere else np.repeat([N_ANIMALS, N_ANIMALS + 1], N_ANIMALS // 2)
    animal[control[: N_ANIMALS * n_controls]] = np.repeat(places, n_controls)
    perturbed = np.concatenate([np.flatnonzero(code == c)[:60] for c in range(len(names))])
    kept = np.concatenate([np.setdiff1d(perturbed, control), control[: N_ANIMALS * n_controls]])
    shift = rng.normal(0, ANIMAL_SD, (N_ANIMALS + 2, adata.n_vars))
    reader = CellReader((adata.X.toarray() + shift[animal])[kept].astype(np.float32))
    errors = {}
    for how in MATCHINGS:
        batch = None if how == "ignored" else animal[kept]
        index = ConditionIndex.from_labels(labels[kept], np.full(len(kept), "T"), batch, control=KEYS["control"])
        weights = matching_weights(reader, index, "auto" if how == "auto" else "batch")
        conditions = index.named(index.conditions)
        found = mean_shifts(reader, index, index.conditions, control_means(reader, index, weights)).shift
        truth = adata.uns["truth"]
        place = {row[0]: i for i, row in enumerate(truth["conditions"].to_numpy())}
        true = truth["effects"][[place[name] for name in conditions["perturbation"]]]
        errors[how] = root_mean_square(found - true)
    return errors


class Cache:
    """Finished runs, one JSON line each; in memory only without a file."""

    def __init__(self, path: Path | None):
        self.path = path
        self.found: dict[str, dict[str, float]] = {}
        if path is not None and path.exists():
            self.found = dict(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())

    def run(self, function, *arguments) -> dict[str, float]:
        """Return the value of a run, from the cache if it is there."""
        key = json.dumps([function.__name__, *arguments])
        if key not in self.found:
            self.found[key] = function(*arguments)
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, self.found[key]]) + "\n")
        return self.found[key]


def measured(cache: Cache, *, drifts=DRIFTS, seeds=SEEDS, options=tuple(OPTIONS)) -> list[pd.DataFrame]:
    """Return the three tables, means over seeds."""
    animals = [
        {"controls in every animal": place, "controls": n, "seed": seed, **cache.run(of_animals, n, place, seed)}
        for place in (True, False)
        for n in (5, 20, 80)
        for seed in seeds
    ]
    forms = [
        {"drift": drift, "controls": form, "seed": seed, **cache.run(of_form, drift, form, seed)}
        for drift in drifts
        for form in FORMS
        for seed in seeds
    ]
    trained = [
        {"drift": drift, "option": option, "seed": seed, **cache.run(of_option, drift, option, seed)}
        for drift in (0.0, 2.0)
        for option in options
        for seed in seeds[:1]
    ]
    keys = {"controls in every animal": animals, "drift": forms, "option": trained}
    further = {"controls in every animal": ["controls"], "drift": ["controls"], "option": ["drift"]}
    return [
        pd.DataFrame(rows).drop(columns="seed").groupby([key, *further[key]], sort=False).mean()
        for key, rows in keys.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="file that keeps finished runs")
    torch.set_num_threads(1)
    logging.getLogger("ptrag_sc").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    tables = measured(Cache(parser.parse_args().cache))
    print(*(table.round(3).to_string() for table in tables), sep="\n\n")
    forms = tables[1]
    ratio = forms["PTRAG, untrained"].unstack("controls")
    ratios = ratio[["time_key"]].to_numpy() / ratio[["pooled", "start only", "end only"]]
    print(json.dumps({"time_key over": ratios.round(3).to_dict()}))


if __name__ == "__main__":
    main()
