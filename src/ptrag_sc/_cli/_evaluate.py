"""How good are predicted cells, in the shell, and what are they compared with?"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

import ptrag_sc
from ptrag_sc import PTRAG, benchmark
from ptrag_sc._cli._preparation import DRAWN, keys_of
from ptrag_sc._cli._results import check_file, settings_file, write_settings, write_table
from ptrag_sc._cli._screens import on_scale, read_file
from ptrag_sc._cli._shell import say
from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc._validation import listed, unusable
from ptrag_sc.data import as_names, canonical_labels, read_labels, read_perturbations
from ptrag_sc.metrics import Reference

logger = logging.getLogger(__name__)

CONDITION = ["perturbation", "cell_type"]


class Compared(NamedTuple):
    """What is compared, and what the scores refer to."""

    real: AnnData
    predicted: AnnData
    reference: Reference
    split: pd.Series  # of each real condition, by perturbation and cell type
    centre: str  # in words


def evaluate(options: argparse.Namespace) -> None:
    """Score predicted cells against real ones."""
    check_file(options.out, (".csv",), options)
    folder = options.cell_eval
    if folder is not None and not options.overwrite and any(folder.rglob("*.h5ad")):
        remedy = "Pass --overwrite or another folder."
        raise FileExistsError(unusable("A file of --cell-eval", str(folder), "exists", remedy))
    compared = _read(options)
    real, predicted, reference, split, centre = compared
    scores = benchmark.evaluate(real, predicted, reference=reference, metrics=options.metrics)
    pairs = pd.MultiIndex.from_frame(scores[CONDITION].astype(str))
    scores.insert(2, "split", split.reindex(pairs).to_numpy())
    write_table(options.out, scores)
    written = [options.out]
    if options.cell_eval is not None:
        written += _cell_eval(compared, scores["cell_type"].unique(), options)
    beside = settings_file(options.out)
    write_settings(beside, options, centre=centre)
    wide = scores.pivot_table(index="metric", columns=["split", "cell_type"], values="value", sort=False, dropna=False)
    n = scores.drop_duplicates(CONDITION)["split"].value_counts()
    counted = ", ".join(f"{count} {name}" for name, count in n.items())
    say(options, f"\nMean over conditions ({counted}):\n{wide.round(3).to_string()}\n\n{centre}\n")
    logger.info("Written: %s.", ", ".join(map(str, [*written, beside])))


def _read(options: argparse.Namespace) -> Compared:
    real, counts_layer = on_scale(read_file(options.real, modality=options.modality), options, options.real)
    predicted = _in_real_columns(read_file(options.predicted, modality=options.modality), options)
    model = None
    if options.reference_from is not None:
        model = PTRAG.load(options.reference_from, adata=False, accelerator="cpu")
        real = _genes_of(real, model.genes_, options.real)
    split_key = options.split_key
    if split_key is None:
        split_key = DRAWN
        real.obs[DRAWN] = _labelled(real, predicted, model, options)
    ptrag_sc.PTRAG.setup_anndata(
        real,
        **keys_of(options),
        batch_key=options.batch_key,
        split_key=split_key,
        layer=options.layer,
        counts_layer=counts_layer,
    )
    reference = Reference.from_adata(real)
    split = _conditions(real, options).assign(split=real.obs[split_key].astype(str).to_numpy())
    split = split.drop_duplicates(CONDITION).set_index(CONDITION)["split"]
    split = split[split.index.get_level_values(0) != options.control]
    n_train = int((split == "train").sum())
    centre = f"The centre of pearson_delta_pert is the mean of the {n_train} training conditions of obs[{split_key!r}]."
    if model is not None:
        reference, centre = _centred(reference, model, n_train)
    elif options.split_key is None:
        centre = f"No split was named: the centre of pearson_delta_pert is the mean of {n_train} conditions not scored."
        if not n_train:
            problem = "No split was named and all real conditions are scored: the centre of pearson_delta_pert is"
            centre = f"{problem} the control mean. Pass --split-key or --reference-from for another one."
    return Compared(real, predicted, reference, split, centre)


def _conditions(adata: AnnData, options: argparse.Namespace) -> pd.DataFrame:
    """Return perturbation and cell type of every cell (n,), canonical."""
    labels = read_perturbations(adata.obs, options.perturbation_key, control=options.control, sep=options.sep)
    return pd.DataFrame(
        {"perturbation": labels.astype(str), "cell_type": read_labels(adata.obs, options.cell_type_key)}
    )


def _labelled(real: AnnData, predicted: AnnData, model: PTRAG | None, options: argparse.Namespace) -> np.ndarray:
    """Return the split of every real cell (n,): that of the model, or test for what is scored."""
    conditions = pd.MultiIndex.from_frame(_conditions(real, options))
    if model is not None:
        known = model.split_.set_index(CONDITION)["split"]
        of_cell = known.reindex(conditions).fillna("test").to_numpy(dtype=object)
    else:
        labels = read_labels(predicted.obs, options.perturbation_key)
        labels = canonical_labels(labels, control=options.control, sep=options.sep).astype(str)
        scored = pd.MultiIndex.from_arrays([labels, read_labels(predicted.obs, options.cell_type_key)])
        of_cell = np.where(conditions.isin(scored), "test", "train").astype(object)
    of_cell[conditions.get_level_values(0) == options.control] = "train"
    return of_cell


def _in_real_columns(predicted: AnnData, options: argparse.Namespace) -> AnnData:
    """Return predicted cells with the columns of the real ones; predictions of this package name their own."""
    params = predicted.uns.get(DEFAULT_KEY, {}).get("params", {})
    for argument in ("perturbation_key", "cell_type_key", "batch_key"):
        own, wanted = params.get(argument), getattr(options, argument)
        if wanted is not None and own is not None and own in predicted.obs and wanted not in predicted.obs:
            predicted.obs[wanted] = predicted.obs[own]
    return predicted


def _genes_of(real: AnnData, genes: np.ndarray, path: Path) -> AnnData:
    """Return real cells with the genes of a model.

    Raises
    ------
    KeyError
        If some are missing.
    """
    missing = sorted(set(as_names(genes)) - set(as_names(real.var_names)))
    if missing:
        problem = f"lacks {len(missing)} of the {len(genes)} genes of the model ({listed(missing)})"
        raise KeyError(unusable("The file", str(path), problem, "Pass the genes of the model, or --split-key."))
    return real[:, as_names(genes)].copy()


def _centred(reference: Reference, model: PTRAG, n_train: int) -> tuple[Reference, str]:
    """Return a reference whose centre is that of a model's training conditions, and its words."""
    memory = model.tables_.memory
    if memory is None:  # it keeps no shifts: what the real cells show of its training conditions is taken
        words = f"the mean of the {n_train} training conditions of the model that the real cells show"
        if not n_train:
            words = "the control mean, because the real cells show no training condition of the model"
        return reference, f"The centre of pearson_delta_pert is {words}."
    centre = reference.centre.copy()  # (T, G)
    for t, name in enumerate(reference.cell_types):
        if name in model.tables_.cell_types:
            centre[t] = reference.control[t] + memory.mean[model.tables_.cell_types.index(name)].numpy()
    n_known = len(model.split_[model.split_["split"] == "train"])
    words = f"The centre of pearson_delta_pert is the mean of the {n_known} conditions that the model was trained on."
    return replace(reference, centre=centre), words


def _cell_eval(compared: Compared, cell_types: np.ndarray, options: argparse.Namespace) -> list[Path]:
    """Write the files of cell-eval2, for several cell types into one folder each."""
    written = []
    for cell_type in cell_types:
        folder = options.cell_eval if len(cell_types) == 1 else options.cell_eval / str(cell_type)
        files = benchmark.to_cell_eval(
            compared.real,
            compared.predicted,
            folder,
            reference=compared.reference,
            cell_type=str(cell_type),
            seed=options.seed,
            overwrite=options.overwrite,
        )
        written += [files.real, files.predicted]
    return written
