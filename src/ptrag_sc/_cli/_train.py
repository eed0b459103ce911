"""How is a model trained in the shell, and how does one see what it is worth?"""

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData

from ptrag_sc import PTRAG, baselines, benchmark, pl, tl
from ptrag_sc._cli._preparation import Prepared, prepare
from ptrag_sc._cli._report import means, verdict
from ptrag_sc._cli._results import SETTINGS, check_folder, write_figure, write_settings, write_table
from ptrag_sc._cli._shell import say, show_progress
from ptrag_sc._constants import MODEL_FILE
from ptrag_sc._validation import unusable
from ptrag_sc.data import Predictor, ScreenKeys, read_screen, read_split
from ptrag_sc.data._files import write_beside
from ptrag_sc.data._requests import require_controls
from ptrag_sc.model._tables import read_embedding_table, usable_conditions

logger = logging.getLogger(__name__)

SCORES = "scores.csv"
VECTORS = "gene_embedding.npz"
PICTURES = ("training", "benchmark", "effect", "embedding", "retrieval", "retrieval_matrix", "support")
WRITTEN = (MODEL_FILE, SCORES, VECTORS, *(f"{picture}.png" for picture in PICTURES))
DRAWN = ("pearson_delta", "pearson_delta_pert", "effect_slope")  # the metrics of means; scores.csv has all
PICTURED = 40  # held-out perturbations that cells are generated of for pictures
CELLS = 500  # of each


def train(options: argparse.Namespace) -> None:
    """Hold out conditions, train, score beside baselines, and write all of it."""
    check_folder(options.out, WRITTEN, overwrite=options.overwrite)
    prepared = prepare(options, options.screen)
    train_and_score(prepared, options)


def train_and_score(prepared: Prepared, options: argparse.Namespace) -> PTRAG:
    """Train on a prepared screen, score, write results, and return the model."""
    adata = prepared.adata
    tested = known_conditions(adata)
    model = fit(adata, options)
    scores = score(adata, {"PTRAG": lambda adata, seed: model, **fitted_baselines(adata)}, options)
    summary = benchmark.summary(scores)
    say(options, f"\nHeld-out test conditions, mean of {len(tested)}:\n{means(summary)}\n\n{verdict(summary)}\n")
    out: Path = options.out
    model.save(out, overwrite=True)
    table = prepared.vectors
    write_beside(out / VECTORS, partial(np.savez_compressed, genes=table.genes, vectors=table.vectors))
    write_table(out / SCORES, scores)
    pictures = draw(adata, model, tested, summary, out)
    write_settings(out / SETTINGS, options, n_cells=adata.n_obs, n_genes=adata.n_vars, pictured=pictures.pictured)
    names = [MODEL_FILE, SCORES, VECTORS, *pictures.names, SETTINGS]
    logger.info("Written to %s: %s.", out, ", ".join(names))
    return model


def known_conditions(adata: AnnData) -> pd.DataFrame:
    """Return the test conditions: ``perturbation``, ``cell_type`` and ``n_cells``.

    Raises
    ------
    ValueError
        If a cell type has no controls, or nothing is left to test.
    """
    keys = ScreenKeys.of(adata)
    screen = read_screen(adata, keys)
    for cell_type in range(len(screen.index.cell_types)):
        require_controls(screen, cell_type)
    table = usable_conditions(
        screen.index, read_embedding_table(adata, keys), read_split(adata, keys), keys=keys, seed=0
    )
    tested = screen.index.named(table[table["split"] == "test"])
    if tested.empty:
        place = f"adata.obs[{keys.split_key!r}]"
        remedy = "Raise test_fraction=..., or label conditions 'test' in the column of split_key=..."
        raise ValueError(unusable("The split", place, "holds out no test condition with a gene embedding", remedy))
    return tested


def fit(adata: AnnData, options: argparse.Namespace) -> PTRAG:
    """Train a model."""
    scvi.settings.seed = options.seed
    memory = None if options.memory == "none" else options.memory
    model = PTRAG(adata, retrieval=options.retrieval, memory=memory, n_candidates=options.n_candidates)
    model.train(
        options.max_epochs,
        accelerator=options.accelerator,
        devices=options.devices,
        enable_progress_bar=show_progress(options),
    )
    logger.info("Trained for %d epochs.", len(model.history["train_loss"]))
    return model


def fitted_baselines(adata: AnnData) -> dict[str, Callable[[AnnData, int], Predictor]]:
    """Return the methods that the model is compared with; :func:`ptrag_sc.benchmark.compare` adds floors."""
    methods: dict[str, Callable[[AnnData, int], Predictor]] = {
        "NearestPerturbations": lambda adata, seed: baselines.NearestPerturbations(adata).fit(),
        "KernelRidge": lambda adata, seed: baselines.KernelRidge(adata).fit(),
    }
    split = read_split(adata, ScreenKeys.of(adata))
    if split is not None and (split == "val").any():
        methods["Stacked"] = lambda adata, seed: baselines.Stacked(adata).fit()
    else:
        logger.info("Stacked is left out: its weights need validation conditions.")
    return methods


def score(adata: AnnData, methods: dict[str, Any], options: argparse.Namespace) -> pd.DataFrame:
    """Return the scores of every method on the test conditions."""
    return benchmark.compare(adata, methods, seeds=(options.seed,), progress=show_progress(options))


class Pictures(dict[str, Callable[..., Any]]):
    """Plot functions by name, and the condition that they show."""

    pictured: str = ""

    @property
    def names(self) -> list[str]:
        """Names of the files."""
        return [f"{name}.png" for name in self]


def draw(adata: AnnData, model: PTRAG, tested: pd.DataFrame, summary: pd.DataFrame, out: Path) -> Pictures:
    """Draw training, scores, and the held-out condition with the largest observed shift."""
    shown = tested.nlargest(PICTURED, "n_cells")
    types = shown["cell_type"].unique()
    n_cells = min(CELLS, _fewest_controls(adata, types))
    virtual = tl.perturb(adata, model, shown["perturbation"].unique(), cell_types=types, n_cells=n_cells)
    assert isinstance(virtual, AnnData)  # no file was named
    tl.effect(adata, predicted=virtual)
    effect = virtual.uns["ptrag"]["effect"]
    size = effect["conditions"].assign(size=np.linalg.norm(effect["observed"], axis=1))
    largest = shown[["perturbation", "cell_type"]].merge(size).nlargest(1, "size")
    one = dict(zip(("perturbation", "cell_type"), largest[["perturbation", "cell_type"]].iloc[0], strict=True))
    pictures = Pictures(
        training=partial(pl.training, model),
        benchmark=partial(pl.benchmark, summary, metrics=DRAWN),
        effect=partial(pl.effect, virtual, **one),
        embedding=partial(pl.embedding, adata, predicted=virtual, **one),
    )
    if not virtual.uns["ptrag"]["retrieval"].empty:
        pictures["retrieval"] = partial(pl.retrieval, virtual, perturbation=one["perturbation"])
        pictures["retrieval_matrix"] = partial(pl.retrieval_matrix, virtual, cell_type=one["cell_type"])
    if model.support_ is not None:
        pictures["support"] = partial(pl.support, virtual)
    pictures.pictured = f"{one['perturbation']} in {one['cell_type']}, the largest observed shift"
    for name, plot in pictures.items():
        write_figure(out / f"{name}.png", plot)
    for name in set(PICTURES) - set(pictures):  # an earlier run may have written it
        (out / f"{name}.png").unlink(missing_ok=True)
    logger.info("Pictures show %s.", pictures.pictured)
    return pictures


def _fewest_controls(adata: AnnData, cell_types: np.ndarray) -> int:
    """Return the smallest number of control cells that any of these cell types has."""
    index = read_screen(adata, ScreenKeys.of(adata)).index
    codes = np.flatnonzero(np.isin(index.cell_types, cell_types))
    return min(len(index.sources(int(t))) for t in codes)
