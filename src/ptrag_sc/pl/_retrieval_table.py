"""Which rows and values of the retrieval table does a plot draw, and how are their names written?"""

from collections.abc import Iterable, Sequence

import pandas as pd
from anndata import AnnData
from matplotlib.axis import Axis

from ptrag_sc._validation import absent, unknown, unusable
from ptrag_sc.pl._finish import SMALL, result

COLOURS = "viridis_r"  # dark = near, so that near candidates are visible on white


def retrieval_table(adata: AnnData, key: str) -> pd.DataFrame:
    """Return the retrieval table with plain string labels (files bring them back as categories).

    Raises
    ------
    KeyError
        If there is no retrieval table.
    ValueError
        If it is empty.
    """
    table = result(adata, key, "retrieval")
    if len(table) == 0:
        problem = "is empty: the model predicted without retrieval"
        remedy = "Train with retrieval='gumbel' or retrieval='attention'."
        raise ValueError(unusable("Retrieval", f"adata.uns[{key!r}]['retrieval']", problem, remedy))
    return table.astype(dict.fromkeys(["perturbation", "cell_type", "candidate"], str))


def check_value(value: str, known: Iterable[str], table: pd.DataFrame, argument: str) -> None:
    """Refuse a value that the plot does not know or the table does not have.

    Raises
    ------
    ValueError
        If it is one of these.
    """
    found = [name for name in known if name in table]
    if value not in found:
        raise ValueError(absent("Value", value, "the retrieval table", found, f"Pass one of these as {argument}=..."))


def is_in(table: pd.DataFrame, column: str, names: Sequence[str]) -> pd.Series:
    """Return which rows have a label among ``names``.

    Raises
    ------
    ValueError
        If a name has no row.
    """
    known = table[column].unique()
    missing = [name for name in names if name not in known]
    if missing:
        what = column.replace("_", " ").capitalize()
        remedy = "Pass names that were predicted (see its retrieval table)."
        raise ValueError(unknown(what, missing, "the predicted conditions", known, remedy))
    return table[column].isin(names)


def wide(table: pd.DataFrame, rows: str, columns: str, value: str) -> pd.DataFrame:
    """Return one value of the table as a matrix; NaN if the table has no row for a pair."""
    return table.pivot(index=rows, columns=columns, values=value)


def name_ticks(axis: Axis, names: Sequence[str], n_labels: int) -> None:
    """Write at most ``n_labels`` of the names, at equal steps."""
    step = max(1, -(-len(names) // max(1, n_labels)))  # rounded up
    axis.set_ticks(range(0, len(names), step), list(names[::step]), fontsize=SMALL)
    axis.set_tick_params(length=0 if step == 1 else 3)  # ticks are needed only if they are not all labelled


def inches(names: Iterable[str]) -> float:
    """Return the space that the longest of the names needs as a tick label."""
    return 0.1 * max((len(name) for name in names), default=0)
