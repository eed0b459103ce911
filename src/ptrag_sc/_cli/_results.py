"""How are results written: all checked before the work begins, each complete or not at all, settings beside them?"""

import argparse
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import ptrag_sc
from ptrag_sc._validation import unusable
from ptrag_sc.data._files import check_target, make_folder, write_beside

SETTINGS = "settings.json"
DPI = 150
NOT_SETTINGS = ("flags", "inputs", "screens", "module", "traceback", "quiet", "no_progress")


def check_folder(folder: Path, names: Iterable[str], *, overwrite: bool) -> None:
    """Make the folder of the results, and refuse if one of them is there already.

    Raises
    ------
    FileExistsError
        If a result exists and ``overwrite`` is False.
    NotADirectoryError
        If a file stands in the folder's place.
    """
    make_folder(folder)
    existing = [name for name in (*names, SETTINGS) if (folder / name).exists()]
    if existing and not overwrite:
        remedy = "Pass --overwrite or another --out."
        raise FileExistsError(unusable(repr(existing[0]), str(folder), "exists", remedy))


def check_file(path: Path | None, suffixes: tuple[str, ...], options: argparse.Namespace) -> None:
    """Refuse a result that cannot be written.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError
        As :func:`ptrag_sc.data._files.check_target`.
    """
    if path is not None:
        check_target(path, suffixes=suffixes, overwrite=options.overwrite)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as csv; the file replaces an earlier one in one step."""
    write_beside(path, partial(table.to_csv, index=False))


def write_figure(path: Path, draw: Callable[..., Any]) -> None:
    """Draw, and write the figure."""
    figure = draw(show=False, return_fig=True)
    write_beside(path, partial(figure.savefig, dpi=DPI, bbox_inches="tight"))
    plt.close(figure)


def settings_file(path: Path) -> Path:
    """Return where the settings of one result are written."""
    return path.with_name(f"{path.name}.settings.json")


def write_settings(path: Path, options: argparse.Namespace, **further: object) -> None:
    """Write the command, its arguments and the version as JSON."""
    given = {name: value for name, value in vars(options).items() if name not in (*NOT_SETTINGS, "command")}
    content = {"command": options.command, "version": ptrag_sc.__version__, "arguments": given, **further}
    text = json.dumps(content, indent=2, default=str)
    write_beside(path, lambda part: part.write_text(f"{text}\n", encoding="utf-8"))


def read_names(path: Path) -> pd.DataFrame:
    """Return the names in a file: one per line, or a table with a column ``perturbation``.

    Raises
    ------
    ValueError
        If the file holds no name, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(unusable("The file", str(path), "is no text", "Pass one name per line, or a csv.")) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    head = next(iter(lines), "")
    sep = "\t" if "\t" in head else ","
    columns = [part.strip().strip('"') for part in head.split(sep)]
    if "perturbation" in columns:
        # A gene may be called NA or NAN: only empty fields are missing.
        how: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "encoding": "utf-8-sig"}
        table = pd.read_csv(path, sep=sep, skipinitialspace=True, dtype={"perturbation": str}, **how)
        table.columns = table.columns.str.strip()
    elif sep in head:
        problem = f"is a table without a column 'perturbation' (it has {', '.join(columns)})"
        raise ValueError(unusable("The file", str(path), problem, "Name the column 'perturbation'."))
    else:
        table = pd.DataFrame({"perturbation": np.array(lines, dtype=object)})
    table = table.dropna(subset="perturbation")
    table = table.assign(perturbation=[name.strip() for name in table["perturbation"]])
    if table.empty:
        raise ValueError(unusable("The file", str(path), "holds no name", "Write one perturbation per line."))
    return table
