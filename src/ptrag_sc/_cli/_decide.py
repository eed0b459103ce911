"""What should a lab do next, in the shell: which perturbation, which ones to measure, how many?"""

import argparse
import logging
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from ptrag_sc import PTRAG, baselines, tl
from ptrag_sc._cli._options import COLUMNS
from ptrag_sc._cli._preparation import registered
from ptrag_sc._cli._results import check_file, read_names, settings_file, write_settings, write_table
from ptrag_sc._cli._screens import read_query
from ptrag_sc._cli._shell import say
from ptrag_sc._validation import absent, listed, unusable
from ptrag_sc.data import Predictor, ScreenKeys, read_labels

logger = logging.getLogger(__name__)

N_SHOWN = 10


def rank(options: argparse.Namespace) -> None:
    """Rank perturbations by how well they would bring about a wanted change."""
    check_file(options.out, (".csv",), options)
    _only_one(options, "signature", "up or down", "cells")
    adata, model = _screen_and_model(options)
    table = tl.rank_perturbations(
        adata,
        model,
        _signature(options, adata),
        cell_type=_cell_type(options, adata),
        candidates=_names(options.candidates, options.candidates_file),
        reverse=options.reverse,
        score=options.score,
        gene_embedding=options.gene_embedding,
    )
    recovery = table.attrs.get("recovery", [])
    columns = ["perturbation", "score", "expected_accuracy", "nearest", "evidence"]
    text = table[columns].head(N_SHOWN).to_string(index=False)
    checked = "\n".join(
        f"{row['evidence']}: AUROC {row['auroc']:.2f} over {row['n']} perturbations." for row in recovery
    )
    if checked:
        checked = f"\n\nWould the perturbation behind a measured effect have been found?\n{checked}"
    _write(options, table, f"{text}{checked}", recovery=recovery, recovery_from=table.attrs.get("recovery_from"))


def design(options: argparse.Namespace) -> None:
    """Choose the perturbations whose measurement would tell most."""
    check_file(options.out, (".csv",), options)
    adata, model = _screen_and_model(options)
    cell_type = _cell_type(options, adata)
    candidates = _names(options.candidates, options.candidates_file)
    if candidates is None:
        known = model.known_conditions_
        measured = set(known.loc[known["cell_type"] == cell_type, "perturbation"]) | set(options.measured)
        candidates = [name for name in model.nameable(adata, options.gene_embedding) if name not in measured]
    costs = None
    if options.costs is not None:
        costs = _costs(options.costs)
    table = tl.design(
        adata,
        model,
        options.n,
        cell_type=cell_type,
        candidates=candidates,
        targets=_names(options.targets, options.targets_file),
        space=options.space,
        measured=options.measured,
        include=options.include,
        exclude=options.exclude,
        costs=costs,
        budget=options.budget,
        gene_embedding=options.gene_embedding,
    )
    _write(options, table, table.head(N_SHOWN).to_string(index=False), **table.attrs)


def power(options: argparse.Namespace) -> None:
    """Estimate how well unseen perturbations are predicted from a screen of another size."""
    check_file(options.out, (".csv",), options)
    adata, model = _screen_and_model(options)
    table = tl.power(
        adata,
        None if options.model is None else model,
        cell_type=_cell_type(options, adata),
        n_perturbations=options.n_perturbations,
        n_cells=options.n_cells,
        budget=options.budget,
        n_repeats=options.n_repeats,
        space=options.space,
        seed=options.seed,
        gene_embedding=options.gene_embedding,
    )
    best = table.attrs.get("best")
    text = table.round(3).to_string(index=False)
    if best:
        text = f"{text}\n\nBest for {options.budget} cells: {best['n_perturbations']} x {best['n_cells']} cells."
    _write(options, table, text, **table.attrs)


def _screen_and_model(options: argparse.Namespace) -> tuple[AnnData, Predictor]:
    """Return a screen, and the saved model that is named or a kernel ridge of all that was measured."""
    if options.model is not None:
        keys = PTRAG.load(options.model, adata=False, accelerator="cpu").keys_
        adata = read_query(options.screen, keys, options)
        return adata, PTRAG.load(options.model, adata=adata, accelerator="cpu")
    for name, default in COLUMNS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    adata = registered(options, options.screen, split_key=options.split_key, embed=True)
    return adata, baselines.KernelRidge(adata).fit()


def _cell_type(options: argparse.Namespace, adata: AnnData) -> str:
    """Return the cell type that was named, or the only one."""
    if options.cell_type is not None:
        return str(options.cell_type)
    key = ScreenKeys.of(adata).cell_type_key
    found = sorted(set(read_labels(adata.obs, key)))
    if len(found) != 1:
        problem = f"holds several cell types ({listed(found)})"
        raise ValueError(unusable("The screen", str(options.screen), problem, "Pass --cell-type."))
    logger.info("Cell type %r, the only one.", found[0])
    return str(found[0])


def _names(names: list[str] | None, path: Path | None) -> list[str] | None:
    """Return the names that were given, one by one or in a file."""
    if path is None:
        return names
    return [*(names or []), *read_names(path)["perturbation"]]


def _only_one(options: argparse.Namespace, *ways: str) -> None:
    """Refuse a change that is given in no way, or in several."""
    given = [options.signature is not None, bool(options.up or options.down), options.cells is not None]
    if sum(given) != 1:
        problem = "is not given" if not any(given) else "is given in several ways"
        remedy = "Pass one of --signature, --up with --down, and --cells."
        raise ValueError(unusable("The wanted change", "the arguments", problem, remedy))


def _signature(options: argparse.Namespace, adata: AnnData) -> Any:
    """Return the wanted change in a form that :func:`ptrag_sc.tl.rank_perturbations` knows."""
    if options.cells is not None:
        column, *groups = options.cells
        labels = pd.Series(read_labels(adata.obs, column))
        for label in groups:
            if label not in set(labels):
                place = f"obs[{column!r}] of {options.screen}"
                raise KeyError(absent("Label", label, place, labels.unique(), "Correct --cells."))
        return tuple((labels == label).to_numpy() for label in groups)
    if options.signature is None:
        return {side: names for side in ("up", "down") if (names := getattr(options, side))}
    table = pd.read_csv(options.signature, sep=None, engine="python")
    first, *others = table.columns
    if len(others) == 1:
        return table.set_index(first)[others[0]]
    if pd.api.types.is_numeric_dtype(table[first]) or not all(map(pd.api.types.is_numeric_dtype, table[others].dtypes)):
        return table  # of differential expression
    return table.set_index(first)


def _costs(path: Path) -> pd.Series:
    table = read_names(path)
    if "cost" not in table:
        found = ", ".join(map(str, table.columns))
        raise KeyError(unusable("The file", str(path), f"has no column 'cost' (it has {found})", "Add it."))
    return table.set_index("perturbation")["cost"]


def _write(options: argparse.Namespace, table: pd.DataFrame, text: str, **further: object) -> None:
    """Write a table and its settings, and print its beginning."""
    write_table(options.out, table)
    beside = settings_file(options.out)
    write_settings(beside, options, **further)
    say(options, f"\n{text}\n")
    logger.info("Written: %s, %s.", options.out, beside)
