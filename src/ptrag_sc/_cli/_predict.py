"""What would perturbations do to these control cells, in the shell?"""

import argparse
import logging
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import zarr
from anndata.io import read_elem

from ptrag_sc import PTRAG, tl
from ptrag_sc._cli._results import check_file, read_names, settings_file, write_settings, write_table
from ptrag_sc._cli._screens import read_query
from ptrag_sc._cli._shell import say, show_progress
from ptrag_sc._cli._train import VECTORS
from ptrag_sc._constants import DEFAULT_KEY
from ptrag_sc._validation import unusable
from ptrag_sc.data import components
from ptrag_sc.data._stream import STREAMED
from ptrag_sc.retrieval import read_embedding

logger = logging.getLogger(__name__)

N_SHOWN = 10  # genes, and conditions, that are printed


def predict(options: argparse.Namespace) -> None:
    """Predict virtual cells, the genes that change, and what the predictions rest on."""
    check_file(options.out, STREAMED, options)
    for table in (options.effects, options.support):
        check_file(table, (".csv",), options)
    perturbations, n_cells = requests(options)
    model = PTRAG.load(options.model, adata=False, accelerator=options.accelerator)
    adata = read_query(options.controls, model.keys_, options)
    vectors = _vectors(options, perturbations, model)
    asked: dict[str, Any] = {"cell_types": options.cell_types, "gene_embedding": vectors}
    # First, because these take seconds and the cells may take hours.
    effects = tl.predict_effects(adata, model, perturbations, level=options.level, **asked)
    seed = options.seed if options.sample else None
    form = {"out": options.out, "overwrite": options.overwrite, "progress": show_progress(options)}
    tl.perturb(adata, model, perturbations, n_cells=n_cells, seed=seed, **form, **asked)
    support = _support(options.out)
    written = [str(options.out)]
    for path, table in ((options.effects, by_size(effects)), (options.support, support)):
        if path is not None and table is not None:
            write_table(path, table)
            written.append(str(path))
    beside = settings_file(options.out)
    write_settings(beside, options, perturbations=perturbations, genes=len(model.genes_))
    say(options, f"\n{genes_in_words(effects)}\n")
    if support is not None:
        say(options, f"{support_in_words(support)}\n")
    logger.info("Written: %s.", ", ".join([*written, str(beside)]))


def requests(options: argparse.Namespace) -> tuple[list[str], Any]:
    """Return the perturbations that are asked for, and how many cells of each.

    Raises
    ------
    ValueError
        If a file names a perturbation twice, or a number that is no whole one.
    """
    if options.perturbations_file is None:
        return options.perturbations, options.n_cells
    table = read_names(options.perturbations_file)
    wanted = table["perturbation"].tolist()
    if "n_cells" not in table:
        return wanted, options.n_cells
    place = str(options.perturbations_file)
    if options.n_cells is not None:
        remedy = "Leave --n-cells out, or the column."
        raise ValueError(unusable("Column 'n_cells'", place, "is given beside --n-cells", remedy))
    numbers = pd.to_numeric(table["n_cells"], errors="coerce")
    if not (numbers.notna() & (numbers == numbers.round()) & (numbers > 0)).all():
        raise ValueError(unusable("Column 'n_cells'", place, "holds more than whole numbers above 0", "Correct it."))
    if len(set(wanted)) < len(wanted):
        raise ValueError(unusable("Column 'perturbation'", place, "names one twice", "Name each once."))
    return wanted, dict(zip(wanted, numbers.astype(int).tolist(), strict=True))


def _vectors(options: argparse.Namespace, perturbations: list[str], model: PTRAG) -> object:
    """Return the table of genes that was named, or the one that ``train`` left beside the model if it helps."""
    beside: Path = options.model / VECTORS
    if options.gene_embedding is not None or not beside.is_file():
        return options.gene_embedding
    genes = {gene for name in perturbations for gene in components(name, model.keys_.sep)}
    lacking = genes - set(model.tables_.embedding.genes)
    return beside if lacking & set(read_embedding(beside).genes) else None


def _support(path: Path) -> pd.DataFrame | None:
    """Return what stands beside virtual cells in a file about what they rest on."""
    place = f"uns/{DEFAULT_KEY}/support"
    if path.suffix == ".h5ad":
        with h5py.File(path, "r") as root:
            return read_elem(root[place]) if place in root else None
    root = zarr.open_group(path, mode="r")
    return read_elem(root[place]) if place in root else None


def by_size(effects: pd.DataFrame) -> pd.DataFrame:
    """Return a table of effects, the largest shifts of each condition first."""
    conditions = ["perturbation", "cell_type"]
    order = effects.assign(
        size=-effects["shift"].abs(), at=effects.groupby(conditions, observed=True, sort=False).ngroup()
    )
    return effects.loc[order.sort_values(["at", "size"], kind="stable").index]


def genes_in_words(effects: pd.DataFrame) -> str:
    """Return the genes that change most in each condition, as text."""
    lines = []
    found = by_size(effects).groupby(["perturbation", "cell_type"], observed=True, sort=False)
    for (perturbation, cell_type), table in list(found)[:N_SHOWN]:
        n_called = int(table["call"].sum())
        others = table[~table["own"]].head(N_SHOWN)
        shown = ", ".join(f"{row.gene} {row.shift:+.2f}" for row in others.itertuples())
        lines.append(
            f"{perturbation} in {cell_type}: {n_called} genes with an interval that leaves out 0; largest: {shown}."
        )
    if len(found) > N_SHOWN:
        lines.append(f"... {len(found)} conditions in all.")
    return "\n".join(lines)


def support_in_words(support: pd.DataFrame) -> str:
    """Return what each prediction rests on, as text."""
    lines = []
    for row in support.head(N_SHOWN).itertuples():
        text = f"{row.perturbation} in {row.cell_type} rests on {row.n_experiments} experiments"
        if "abstain" not in support:
            lines.append(f"{text}; without validation conditions nothing is known of its error.")
            continue
        expected = f"expected pearson_delta {row.expected_pearson_delta:.2f} ({row.pearson_delta_low:.2f} to "
        expected += f"{row.pearson_delta_high:.2f})"
        if pd.isna(row.expected_pearson_delta):
            expected = "unlike all conditions on which errors were measured"
        lines.append(f"{text}: {expected}{', so the model abstains' if row.abstain else ''}.")
    if len(support) > N_SHOWN:
        lines.append(f"... {len(support)} conditions in all.")
    return "\n".join(lines)
