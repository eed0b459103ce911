"""Which conditions are held out?"""

import logging
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from ptrag_sc._constants import EMBEDDING_KEY
from ptrag_sc._validation import absent, check_key, check_whole, listed, unusable
from ptrag_sc.data import ConditionIndex, draw_split, read_labels, read_perturbations
from ptrag_sc.data._labels import control_names, label_text, read_sep
from ptrag_sc.data._lazy import load_tables
from ptrag_sc.data._mudata import require_anndata
from ptrag_sc.data._predicted_labels import LEFT_OUT, left_out
from ptrag_sc.data._user_keys import check_free, note_written

logger = logging.getLogger(__name__)

HOLDOUTS = ("pair", "perturbation", "cell_type")


def split(
    adata: AnnData,
    *,
    perturbation_key: str,
    cell_type_key: str,
    control: object,
    holdout: Literal["pair", "perturbation", "cell_type"] = "pair",
    test_cell_type: str | None = None,
    test_fraction: float = 0.2,
    val_fraction: float = 0.1,
    seed: int = 0,
    sep: str | None = "+",
    embedding_key: str = EMBEDDING_KEY,
    key_added: str = "split",
) -> None:
    """Hold out conditions, never cells, for testing and validation.

    Parameters
    ----------
    adata
        The screen.
    perturbation_key, cell_type_key
        ``obs`` columns.
    control
        Label of control cells, or a list of labels that count as one control; they are inputs in every split, so they
        are labelled ``train``.
    holdout
        What is unseen in the held-out conditions. ``"pair"``: the perturbation in this cell type; every perturbation
        keeps at least one training pair. ``"perturbation"``: the gene in every cell type, and all combinations that
        contain it. ``"cell_type"``: every perturbation of one cell type.
    test_cell_type
        With ``"pair"``, only pairs of this cell type are held out. With ``"cell_type"``, this cell type becomes
        ``test`` (None draws one).
    test_fraction, val_fraction
        Shares of the pairs (of ``test_cell_type``, if given) or of the genes. With ``"cell_type"`` only
        ``val_fraction`` is used: a share of the other cell types' pairs.
    seed
        Seed of the draw.
    sep
        Separator of combinations; None: labels are never split.
    embedding_key
        Key of ``uns`` with the gene embedding. Conditions of genes that it left out (``missing="drop"``) cannot be
        predicted: they are not held out but labelled ``train``, where models leave them out, with a warning.
    key_added
        ``obs`` column to write. An earlier split of this function is replaced, any other column is refused.

    Returns
    -------
    None
        Written is ``adata.obs[key_added]``: ``train``, ``val`` or ``test`` for every cell.

    Raises
    ------
    KeyError
        If a column does not exist.
    ValueError
        If a label is missing or unknown, a fraction is out of range, a screen of one cell type is to be split by pair
        or cell type, or ``key_added`` is a column that this function did not write.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.pp.split(
    ...     adata,
    ...     perturbation_key="perturbation",
    ...     cell_type_key="cell_type",
    ...     control="non-targeting",
    ...     test_fraction=0.3,
    ... )
    >>> sorted(adata.obs["split"].unique())
    ['test', 'train', 'val']
    """
    check_key(key_added, "pp.split", taken=(perturbation_key, cell_type_key))
    check_whole("seed", seed, "pp.split")
    require_anndata(adata, "ptrag_sc.pp.split", column=perturbation_key)
    check_free(adata, obs=[key_added])
    sep = read_sep(sep)
    load_tables(adata)
    perturbation = read_perturbations(adata.obs, perturbation_key, control=control, sep=sep)
    cell_type = read_labels(adata.obs, cell_type_key)
    # No batches, because a condition is held out in all of them.
    index = ConditionIndex.from_labels(perturbation, cell_type, None, control=control_names(control)[0])
    if test_cell_type is not None:
        test_cell_type = label_text(test_cell_type)
    _check(index.cell_types, holdout, test_cell_type, (test_fraction, val_fraction))
    table = index.conditions[~_left_out(adata, index, embedding_key, sep)]
    labels = draw_split(
        index.named(table),
        holdout=holdout,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
        seed=seed,
        test_cell_type=test_cell_type,
        sep=sep,
    )
    of_cell = np.full(index.n_obs, "train", dtype=object)  # (n,); control cells keep this label
    for p, t, label in zip(table["perturbation"], table["cell_type"], labels, strict=True):
        of_cell[index.rows(p, t)] = label
    note_written(adata, obs=[key_added])
    # All three categories exist even if no condition is in one of them.
    adata.obs[key_added] = pd.Categorical(of_cell, categories=["train", "val", "test"])


def _left_out(adata: AnnData, index: ConditionIndex, embedding_key: str, sep: str | None) -> np.ndarray:
    """Return which conditions (C,) have a gene that was left out of the gene embedding; a warning names them."""
    stored = adata.uns.get(embedding_key, {})
    excluded = stored.get("excluded", ()) if isinstance(stored, Mapping) else ()
    names = index.perturbations[index.conditions["perturbation"]]
    found = np.array([bool(left_out(name, excluded, sep)) for name in names], dtype=bool)
    if found.any():
        shown = listed(np.unique(names[found]))
        logger.warning("%d conditions are not held out, because a gene %s: %s.", found.sum(), LEFT_OUT, shown)
    return found


def _check(cell_types: np.ndarray, holdout: str, test_cell_type: str | None, fractions: tuple[float, float]) -> None:
    """Refuse what cannot be held out."""
    if holdout not in HOLDOUTS:
        raise ValueError(absent("holdout=", holdout, "the known values", HOLDOUTS, f"Pass one of {HOLDOUTS}."))
    # With one cell type a held-out pair or cell type leaves nothing of the perturbation, or nothing at all.
    if len(cell_types) == 1 and holdout != "perturbation":
        what, problem = f"holdout={holdout!r}", f"needs several cell types, there is only {str(cell_types[0])!r}"
        raise ValueError(unusable(what, "the data", problem, "Use holdout='perturbation'."))
    if test_cell_type is not None and holdout == "perturbation":
        problem = "has no meaning with holdout='perturbation', which holds genes out of every cell type"
        raise ValueError(unusable(f"test_cell_type={test_cell_type!r}", "the request", problem, "Leave it out."))
    if test_cell_type is not None and test_cell_type not in cell_types:
        remedy = "Correct test_cell_type=..."
        raise ValueError(absent("Cell type", test_cell_type, "the cell types of this object", cell_types, remedy))
    if not (min(fractions) >= 0 and sum(fractions) < 1):  # NaN is refused too
        what = f"test_fraction={fractions[0]} and val_fraction={fractions[1]}"
        raise ValueError(unusable(what, "the request", "leave no training conditions", "Let both sum to less than 1."))
