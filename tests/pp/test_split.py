"""Does the split hold out what was asked for, and refuse what has no meaning?"""

import numpy as np
import pytest

import ptrag_sc
from screens import make_screen

KEYS = {"perturbation_key": "gene", "cell_type_key": "line", "control": "ctl"}


def test_labels_stand_in_obs_and_never_cut_a_condition():
    adata = make_screen()
    ptrag_sc.pp.split(adata, **KEYS, test_fraction=0.3, val_fraction=0.1, seed=1, key_added="fold")
    groups = adata.obs.groupby(["gene", "line"], observed=True)["fold"]
    assert (groups.nunique() == 1).all()
    counts = groups.first().drop("ctl").value_counts()
    assert counts.to_dict() == {"train": 12, "test": 6, "val": 2}
    assert (adata.obs.loc[adata.obs["gene"] == "ctl", "fold"] == "train").all()
    again = make_screen()
    ptrag_sc.pp.split(again, **KEYS, test_fraction=0.3, val_fraction=0.1, seed=1)
    assert (again.obs["split"].to_numpy() == adata.obs["fold"].to_numpy()).all()


def test_b_plus_a_is_held_out_with_a_plus_b():
    adata = make_screen()
    labels = adata.obs["gene"].astype(str).to_numpy()
    rows = np.flatnonzero(labels == "G0+G1")[::2]
    labels[rows] = "G1+G0"
    adata.obs["gene"] = labels
    ptrag_sc.pp.split(adata, **KEYS, test_fraction=0.4)
    both = adata.obs[adata.obs["gene"].isin(["G0+G1", "G1+G0"])]
    assert (both.groupby("line", observed=True)["split"].nunique() == 1).all()


@pytest.mark.parametrize("holdout", ["pair", "cell_type"])
def test_one_cell_type_cannot_be_split_by_cell_type(holdout):
    adata = make_screen()
    adata.obs["line"] = "K562"
    with pytest.raises(ValueError, match=r"there is only 'K562'. Use holdout='perturbation'"):
        ptrag_sc.pp.split(adata, **KEYS, holdout=holdout)
    assert "split" not in adata.obs
    ptrag_sc.pp.split(adata, **KEYS, holdout="perturbation")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"holdout": "gene"}, ValueError, r"holdout= 'gene' does not occur"),
        ({"test_cell_type": "HeLa"}, ValueError, r"Cell type 'HeLa' does not occur .*'K562', 'RPE1'"),
        (
            {"holdout": "perturbation", "test_cell_type": "RPE1"},
            ValueError,
            r"has no meaning with holdout='perturbation'",
        ),
        ({"test_fraction": 0.9, "val_fraction": 0.2}, ValueError, r"leave no training conditions"),
        ({"test_fraction": float("nan")}, ValueError, r"leave no training conditions"),
        ({"seed": -1}, ValueError, r"seed=-1 in pp.split is below 0"),
        ({"key_added": "gene"}, ValueError, r"key_added='gene' in pp.split is the name of an input"),
        ({"test_fraction": -0.1}, ValueError, r"leave no training conditions"),
        ({"control": "nt"}, ValueError, r"Control label 'nt' does not occur"),
        ({"perturbation_key": "guide"}, KeyError, r"Column 'guide' does not occur"),
    ],
)
def test_what_cannot_be_split(options, error, message):
    with pytest.raises(error, match=message):
        ptrag_sc.pp.split(make_screen(), **{**KEYS, **options})
