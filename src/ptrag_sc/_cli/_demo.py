"""What does the package do, on a real screen, in about a minute?

Each of three knock-outs of the interferon pathway is held out in turn and predicted from the others; two knock-outs
without an effect are held out every time, to see whether the model says that it knows nothing.
"""

import argparse
import logging
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData

from ptrag_sc import PTRAG, baselines, benchmark, datasets, pl, tl
from ptrag_sc._cli import _train
from ptrag_sc._cli._preparation import prepare
from ptrag_sc._cli._report import means
from ptrag_sc._cli._results import SETTINGS, check_folder, write_figure, write_settings, write_table
from ptrag_sc._cli._screens import read_file
from ptrag_sc._cli._shell import say, show_progress
from ptrag_sc._cli._story import Told, story
from ptrag_sc._constants import MODEL_FILE
from ptrag_sc.data import CellReader
from ptrag_sc.data._files import write_beside
from ptrag_sc.data._reader import as_row_matrix

logger = logging.getLogger(__name__)

ASKED = ("JAK2", "IFNGR1", "STAT1")  # of one pathway: each is held out once
QUIET = ("CD86", "CAV1")  # held out always: their knock-out changes nothing
CONTROL = "non-targeting"
KEYS = {"perturbation_key": "perturbation", "control": CONTROL, "cell_type_key": "cell_type"}
METRICS = ("pearson_delta", "pearson_delta_pert", "effect_slope", "energy_distance")
N_CANDIDATES = 4  # of a dozen: the nearest relatives
MAX_EPOCHS = 25
CELLS = 500
VIRTUAL, EFFECTS, SCORES, MODEL = "virtual.h5ad", "effects.csv", "scores.csv", "model"
PICTURES = ("effect", "embedding", "retrieval", "predicted_effects", "benchmark", "support")
RESULT = "predicted.h5ad"  # of demo --adata


def demo(options: argparse.Namespace) -> None:
    """Tell the story of one prediction on the real screen of the package, or train on the screen that is named."""
    if options.adata is not None:
        own_screen(options)
        return
    names = [VIRTUAL, EFFECTS, SCORES, f"{MODEL}/{MODEL_FILE}", *(f"{picture}.png" for picture in PICTURES)]
    check_folder(options.out, names, overwrite=options.overwrite)
    adata = datasets.papalexi()
    models = {seed: _fitted(adata, seed, options) for seed in reversed(range(len(ASKED)))}  # ends with the first split
    model = models[0]
    scores = _scores(adata, models, options)
    perturbations = [ASKED[0], *QUIET]
    virtual = tl.perturb(adata, model, perturbations, n_cells=CELLS)
    assert isinstance(virtual, AnnData)  # no file was named
    tl.effect(adata, predicted=virtual)
    effects = tl.predict_effects(adata, model, perturbations)
    summary = benchmark.summary(scores)
    told = Told(adata, model, virtual, effects, scores, ASKED, QUIET)
    say(options, f"\n{story(told)}\n\nMean of all held-out conditions:\n{means(summary)}\n")
    model.save(options.out / MODEL, overwrite=True)
    write_beside(options.out / VIRTUAL, virtual.write_h5ad)
    write_table(options.out / EFFECTS, effects)
    write_table(options.out / SCORES, scores)
    one: dict[str, Any] = {"perturbation": ASKED[0], "cell_type": "THP-1"}
    pictures: dict[str, Any] = {
        "effect": partial(pl.effect, virtual, **one),
        "embedding": partial(pl.embedding, adata, predicted=virtual, **one),
        "retrieval": partial(pl.retrieval, virtual, perturbation=ASKED[0]),
        "predicted_effects": partial(pl.predicted_effects, virtual, **one),
        "benchmark": partial(pl.benchmark, summary, metrics=METRICS[:2]),
        "support": partial(pl.support, virtual),
    }
    for name in PICTURES:
        write_figure(options.out / f"{name}.png", pictures[name])
    write_settings(options.out / SETTINGS, options)
    shown = ", ".join([VIRTUAL, EFFECTS, SCORES, f"{MODEL}/", *(f"{name}.png" for name in PICTURES)])
    say(options, f"Written to {options.out}: {shown}.")


def _split(adata: AnnData, seed: int) -> None:
    """Hold out one of the asked and all quiet knock-outs; every second other one is for validation."""
    labels = adata.obs["perturbation"].astype(str)
    others = sorted(set(labels) - {CONTROL, *ASKED, *QUIET})
    split = np.where(labels.isin(others[::2]), "val", "train")
    adata.obs["split"] = np.where(labels.isin([ASKED[seed], *QUIET]), "test", split)


def _fitted(adata: AnnData, seed: int, options: argparse.Namespace) -> PTRAG:
    _split(adata, seed)
    PTRAG.setup_anndata(adata, **KEYS, batch_key="batch", split_key="split", counts_layer="counts")
    scvi.settings.seed = options.seed
    model = PTRAG(adata, n_candidates=N_CANDIDATES)
    model.train(MAX_EPOCHS, enable_progress_bar=show_progress(options))
    return model


def _scores(adata: AnnData, models: dict[int, PTRAG], options: argparse.Namespace) -> pd.DataFrame:
    """Return scores of the models and of simple methods, on the same splits."""
    methods = {
        "PTRAG": lambda adata, seed: models[seed],
        "NearestPerturbations": lambda adata, seed: baselines.NearestPerturbations(adata).fit(),
        "KernelRidge": lambda adata, seed: baselines.KernelRidge(adata).fit(),
        "Stacked": lambda adata, seed: baselines.Stacked(adata).fit(),
    }
    how: dict[str, Any] = {
        "seeds": sorted(models),
        "metrics": METRICS,
        "n_cells": CELLS,
        "progress": show_progress(options),
    }
    return benchmark.compare(adata, methods, split=_split, **how)


def own_screen(options: argparse.Namespace) -> None:
    """Train on a user's screen, as the first release did: ``ptrag-sc train`` does the same and more."""
    line = f"ptrag-sc train {options.adata} --out {options.out} --perturbation-key {options.perturbation_key} "
    line += f"--control {options.control} --cell-type-key {options.cell_type_key}"
    logger.warning("demo --adata will go with the next release. Use: %s", line)
    check_folder(options.out, (*_train.WRITTEN, RESULT), overwrite=options.overwrite)
    options.normalize = options.normalize or _holds_counts(options)
    prepared = prepare(options, options.adata)
    model = _train.train_and_score(prepared, options)
    adata = prepared.adata
    tl.predict(adata, model)
    tl.effect(adata)
    write_beside(options.out / RESULT, adata.write_h5ad)
    logger.info("Written too: %s.", RESULT)


def _holds_counts(options: argparse.Namespace) -> bool:
    """Return whether X holds whole numbers: the first release normalised these unasked."""
    matrix = read_file(options.adata, modality=options.modality).X
    if matrix is None or options.layer is not None or options.counts_layer is not None:
        return False
    return all((values == np.rint(values)).all() for values in CellReader(as_row_matrix(matrix)).values())
