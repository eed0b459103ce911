"""Which perturbations lead a ranking, what are they known by, and how well does such a ranking work?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ptrag_sc._docs import documented
from ptrag_sc._validation import absent, check_whole, unusable
from ptrag_sc.pl._finish import (
    CONTROL_COLOUR,
    LINE_COLOUR,
    OBSERVED_COLOUR,
    PREDICTED_COLOUR,
    SMALL,
    Drawn,
    canvas,
    finish,
)

NEEDED = ("perturbation", "rank", "score", "expected_accuracy", "lower", "upper", "evidence", "far")
LOOK = {  # marker, colour and text for each kind of evidence
    "measured": ("o", OBSERVED_COLOUR, "measured here"),
    "other cell type": ("s", "#009E73", "measured in another cell type"),
    "embedding": ("D", PREDICTED_COLOUR, "gene embedding alone"),
    "none": ("X", CONTROL_COLOUR, "nothing"),
}
FAR = ", far"  # said of a gene embedding that is unlike all measured ones
ROW = 0.24  # inches of one perturbation
COLUMN = 165  # typographic points of the column with the evidence


@documented
def ranking(
    table: pd.DataFrame,
    *,
    signature: str | None = None,
    n_top: int = 20,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Best perturbations of a ranking: their score, what they are known by, and how accurate their prediction may be.

    A dot is the score of a perturbation; its shape and colour say what it is known by. An open dot is farther from all
    that was measured ("far") than what the ranking was checked on. The column on the right is the expected accuracy
    with its 90 % interval: the correlation of predicted and true deviation from the mean shift. The title says how
    often measured perturbations were found when they were left out; an AUROC of 0.5 is chance.

    Parameters
    ----------
    table
        Result of :func:`ptrag_sc.tl.rank_perturbations`.
    signature
        The signature to draw, if the table has several.
    n_top
        Number of perturbations.
    {plot_parameters}

    Returns
    -------
    Axes or Figure
        The axes, or the figure if ``return_fig`` is True.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If the table is empty, the signature is not in it, or ``signature`` is needed.

    Examples
    --------
    >>> import ptrag_sc
    >>> ptrag_sc.pl.ranking(ptrag_sc.tl.rank_perturbations(adata, model, wanted, cell_type="THP-1"))  # doctest: +SKIP
    """
    check_whole("n_top", n_top, "pl.ranking", minimum=1)
    rows = _rows(table, signature)
    shown = rows.sort_values("rank", kind="stable").head(n_top)
    given = ax is not None
    ax = canvas(ax, (9.0, 1.5 + ROW * len(shown)))
    y = np.arange(len(shown))
    score = shown["score"].to_numpy(float)
    far = shown["far"].to_numpy(bool)
    evidence = shown["evidence"].astype(str).to_numpy()
    for name, (marker, colour, _) in LOOK.items():
        for is_far, fill in ((False, colour), (True, "none")):
            here = (evidence == name) & (far == is_far)
            ax.scatter(score[here], y[here], s=42, marker=marker, facecolors=fill, edgecolors=colour, zorder=2)
    ax.axvline(0, color=CONTROL_COLOUR, lw=0.8, zorder=0)
    ax.set_yticks(y, shown["perturbation"].astype(str), fontsize=SMALL)
    ax.set(ylim=(len(y) - 0.5, -0.5), xlabel="score: agreement of the predicted shift with the wanted change")
    ax.grid(axis="y", color="0.93", lw=0.8)
    ax.set_axisbelow(True)
    ax.margins(x=0.08)
    ax.locator_params(axis="x", nbins=6)
    ax.spines[["top", "right"]].set_visible(False)
    _write(ax, 0, "known by", [_known_by(row.evidence, row.far) for row in shown.itertuples()])
    _write(ax, COLUMN, "expected accuracy", [_accuracy(row) for row in shown.itertuples()])
    name = "" if signature is None else f"{signature}: "
    ax.set_title(
        f"{name}{len(shown)} best of {len(rows)} candidates\n{_recovery(table)}", loc="left", fontsize=SMALL + 1, pad=18
    )
    return finish(ax, given=given, show=show, return_fig=return_fig)


def _rows(table: pd.DataFrame, signature: str | None) -> pd.DataFrame:
    """Return the rows of one signature."""
    if lacking := [name for name in NEEDED if name not in table]:
        remedy = "Pass the table of ptrag_sc.tl.rank_perturbations."
        raise KeyError(absent("Column", lacking[0], "the ranking", table.columns, remedy))
    if table.empty:
        raise ValueError(unusable("The ranking", "pl.ranking", "is empty", "Rank at least one candidate."))
    known = list(dict.fromkeys(table["signature"].astype(str))) if "signature" in table else []
    if signature is None:
        if len(known) > 1:
            raise ValueError(absent("signature=", signature, "the ranking", known, "Pass one of them as signature=..."))
        return table
    if signature not in known:
        remedy = "Pass one of them, or leave signature=None if there is only one."
        raise ValueError(absent("Signature", signature, "the ranking", known, remedy))
    return table[table["signature"].astype(str) == signature]


def _write(ax: Axes, distance: float, title: str, texts: list[str]) -> None:
    """Write a column of texts, one for each row, at a distance (typographic points) to the right of the axes."""
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL, "color": LINE_COLOUR}
    ax.annotate(title, (1.02, 1), (distance, 4), xycoords="axes fraction", **style)
    for y, text in enumerate(texts):
        ax.annotate(text, (1.02, y), (distance, 0), xycoords=("axes fraction", "data"), va="center", **style)


def _known_by(evidence: str, far: bool) -> str:
    return LOOK[str(evidence)][2] + (FAR if far else "")


def _accuracy(row: Any) -> str:
    if np.isfinite(row.expected_accuracy):
        return f"{row.expected_accuracy:.2f}  ({row.lower:.2f} to {row.upper:.2f})"
    if row.evidence == "measured":
        return "measured"
    return "not known"


def _recovery(table: pd.DataFrame) -> str:
    """Return how well perturbations that were left out were found, one line for each kind of evidence."""
    found = table.attrs.get("recovery") or []  # files do not keep attrs
    if not found:
        return "how well such a ranking works is not known"
    lines = [
        f"check: {one['n']} left out, found with AUROC {one['auroc']:.2f} ({LOOK[one['evidence']][2]})" for one in found
    ]
    return "\n".join(lines)
