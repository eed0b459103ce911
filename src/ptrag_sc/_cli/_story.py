"""What happened in the demo, in words that follow from its numbers?"""

from textwrap import fill
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc import PTRAG
from ptrag_sc._cli._report import MAIN
from ptrag_sc._constants import DEFAULT_KEY

WIDTH = 110
N_GENES = 4  # that are named
NEXT = """Next, with your own screen:
  ptrag-sc train screen.h5ad --out model --perturbation-key COLUMN --control LABEL --cell-type-key COLUMN \\
      --normalize --gene-embedding FILE
  ptrag-sc predict model screen.h5ad --perturbations GENE --out virtual.h5ad --effects effects.csv"""
SHOWN = {"PTRAG": "PTRAG", "NearestPerturbations": "neighbours", "KernelRidge": "KernelRidge", "Stacked": "Stacked"}
SHOWN |= {"mean shift": "mean shift", "split half": "ceiling"}


class Told(NamedTuple):
    """What the story is about."""

    adata: AnnData  # the screen, with the observed effects
    model: PTRAG  # from which the first of ``asked`` and all of ``quiet`` were held out
    virtual: AnnData  # what it predicts for these
    effects: pd.DataFrame  # the same as a table of genes
    scores: pd.DataFrame  # of compare; in split s the s-th of ``asked`` is held out
    asked: tuple[str, ...]
    quiet: tuple[str, ...]


def story(told: Told) -> str:
    """Return the story, a paragraph for each question."""
    parts = (_asked, _answered, _did, _predicted, _observed, _better)
    text = [fill(part(told), WIDTH) for part in parts]
    return "\n".join([*text, _table(told), fill(_abstained(told), WIDTH), NEXT])


def _asked(told: Told) -> str:
    name = told.asked[0]
    hidden = (told.adata.obs["perturbation"].astype(str) == name).sum()
    split = told.model.split_["split"].value_counts()
    return (
        f"Asked: what does the knock-out of {name} do to THP-1 cells? Its {hidden:,} cells were hidden, like those of "
        f"{' and '.join(told.quiet)}. The model learned from {split['train']} other knock-outs of this screen "
        f"(Papalexi et al. 2021; {told.adata.n_obs:,} cells, {told.adata.n_vars} genes), and measured its errors on "
        f"{split['val']} more."
    )


def _answered(told: Told) -> str:
    table = told.virtual.uns[DEFAULT_KEY]["retrieval"]
    found = table[table["perturbation"] == told.asked[0]].sort_values("weight", ascending=False)
    parts = [f"{r.candidate} (weight {r.weight:.2f}, similarity {r.similarity:.2f})" for r in found.itertuples()]
    return f"Who answered: the knock-outs whose genes are described most alike: {', '.join(parts)}."


def _shifts(told: Told) -> pd.DataFrame:
    """Return predicted and observed shift of each gene but the target, the largest predicted first."""
    found = told.virtual.uns[DEFAULT_KEY]["effect"]
    row = int(np.flatnonzero(found["conditions"]["perturbation"] == told.asked[0])[0])
    table = told.effects[(told.effects["perturbation"] == told.asked[0]) & ~told.effects["own"]]
    observed = pd.Series(found["observed"][row], index=np.asarray(found["genes"], dtype=str))
    table = table.assign(gene=table["gene"].astype(str))
    table["observed"] = observed.reindex(table["gene"]).to_numpy()
    return table.sort_values("shift", key=np.abs, ascending=False)


def _did(told: Told) -> str:
    top = _shifts(told).head(N_GENES)
    shown = ", ".join(f"{row.neighbour} changed {row.gene} by {row.neighbour_shift:+.2f}" for row in top.itertuples())
    return f"What they did (differences of mean log expression): {shown}."


def _predicted(told: Told) -> str:
    top = _shifts(told).head(N_GENES)
    shown = ", ".join(f"{row.gene} {row.shift:+.2f} ({row.lower:+.2f} to {row.upper:+.2f})" for row in top.itertuples())
    return f"So predicted, with the interval that 9 of 10 observed shifts lie in: {shown}."


def _observed(told: Told) -> str:
    table = _shifts(told)
    shown = ", ".join(f"{row.gene} {row.observed:+.2f}" for row in table.head(N_GENES).itertuples())
    within = ((table["observed"] >= table["lower"]) & (table["observed"] <= table["upper"])).mean()
    conditions = told.virtual.uns[DEFAULT_KEY]["effect"]["conditions"].set_index("perturbation")
    row = conditions.loc[told.asked[0]]
    return (
        f"Observed in the hidden cells: {shown}. Over all genes the predicted and the observed shift correlate by "
        f"{row['pearson_delta']:.2f} (effect.png); the prediction has {row['effect_slope']:.0%} of the observed size, "
        f"because it is cautious, and {within:.0%} of the genes lie in their interval."
    )


def _correlations(told: Told) -> pd.DataFrame:
    """Return the correlation of every method: the asked one by one, then the mean of the quiet ones."""
    scores = told.scores[told.scores["metric"] == MAIN]
    scores = scores[(scores["truth"] == "all") | (scores["kind"] == "ceiling")]
    wide = scores.pivot_table(index="perturbation", columns="method", values="value")[list(SHOWN)].rename(columns=SHOWN)
    rows = wide.loc[list(told.asked)]
    rows.loc["/".join(told.quiet)] = wide.loc[list(told.quiet)].mean()
    rows.index.name = rows.columns.name = None
    return rows


def _table(told: Told) -> str:
    return str(_correlations(told).round(2).to_string(na_rep="-"))


def _better(told: Told) -> str:
    own = _correlations(told).loc[list(told.asked)].mean()
    others = own.drop(["PTRAG", "mean shift", "ceiling"])
    return (
        f"Who is better? Each of {', '.join(told.asked)} was held out once and answered by the others: PTRAG "
        f"{own['PTRAG']:.2f} on average, the best other method ({others.idxmax()}) {others.max():.2f}, the mean of all "
        f"knock-outs {own['mean shift']:.2f}. Three knock-outs cannot tell these apart. The ceiling is what halves of "
        "the same cells agree by."
    )


def _abstained(told: Told) -> str:
    support = told.virtual.uns[DEFAULT_KEY]["support"].set_index("perturbation")
    halves = told.scores[(told.scores["method"] == "split half") & (told.scores["metric"] == MAIN)]
    halves = halves.groupby("perturbation")["value"].mean()
    parts = []
    for name in told.quiet:
        row = support.loc[name]
        word = "abstained" if row["abstain"] else "did not abstain"
        expected = f"{word}; expected {row['expected_pearson_delta']:.2f}"
        parts.append(f"{name} ({expected}, halves of its own cells agree by {halves[name]:.2f})")
    text = f"When it abstained: the knock-outs {' and '.join(parts)} change hardly anything."
    row = support.loc[told.asked[0]]
    if row["abstain"]:
        low, high = row["pearson_delta_low"], row["pearson_delta_high"]
        text += (
            f" It abstained for {told.asked[0]} too (expected {row['expected_pearson_delta']:.2f}, {low:.2f} to "
            f"{high:.2f}): most knock-outs of this screen have no effect, so the model cannot know beforehand that "
            "this one has."
        )
    return text
