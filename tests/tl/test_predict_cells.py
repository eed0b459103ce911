"""Are cells that are predicted piece by piece, or a few of them only, those of one call in one piece?"""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import ptrag_sc
from ptrag_sc.data import _pieces, _predictor, _run
from screens import KEYS, make_screen


@pytest.fixture
def in_small_pieces(monkeypatch):
    """Pieces of a few sets, and buffers that rows straddle."""
    monkeypatch.setattr(_run, "CHUNK", 5)
    monkeypatch.setattr(_predictor.Predictor, "_prediction_batch_size", 2)
    monkeypatch.setattr(_pieces, "BUFFER", 700)
    monkeypatch.setattr(_pieces, "AT_ONCE", 64)


@pytest.fixture
def adata():
    screen = make_screen(n_obs=240)
    ptrag_sc.PTRAG.setup_anndata(screen, **KEYS, batch_key="gem")
    return screen


def assert_same_rows(found, expected, rows):
    """Bitwise equal in some rows, and nothing in the others."""
    others = np.setdiff1d(np.arange(expected.shape[0]), rows)
    if not sp.issparse(expected):
        np.testing.assert_array_equal(found[rows], expected[rows])
        assert np.isnan(found[others]).all()
        return
    assert found.shape == expected.shape
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found[rows], part), getattr(expected[rows], part))
        assert getattr(found, part).dtype == getattr(expected, part).dtype
    assert found[others].nnz == 0


@pytest.mark.parametrize("counts", ["auto", False])
def test_pieces_are_the_whole(trained, adata, in_small_pieces, counts):
    """The oracle answers the whole request at once, as a dense matrix."""
    answers = []

    def at_once(run, request, chosen=None):
        answers.append((run.answer(request), request))
        return answers[-1][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptrag_sc.tl._predict.answer", at_once)
        expected = ptrag_sc.tl.predict(adata, trained, counts=counts, seed=3, copy=True)
    found = ptrag_sc.tl.predict(adata, trained, counts=counts, seed=3, copy=True)
    assert len(answers[0][1].planned) > 2 * trained._prediction_batch_size
    assert set(found.obsm) == set(expected.obsm)
    assert ("ptrag_counts" in found.obsm) == (counts == "auto")
    for name in expected.obsm:
        assert_same_rows(found.obsm[name], expected.obsm[name], np.arange(adata.n_obs))
    if counts == "auto":
        one, other = found.obsm["ptrag"], found.obsm["ptrag_counts"]
        assert not np.shares_memory(one.indices, other.indices)  # eliminate_zeros of one would break the other
        assert not np.shares_memory(one.indptr, other.indptr)
    pd.testing.assert_frame_equal(found.uns["ptrag"]["retrieval"], expected.uns["ptrag"]["retrieval"])


def some_names(adata):
    return list(adata.obs_names[[200, 3, 77]])


CHOICES = {
    "mask": lambda a: (a.obs["gene"] == "G1").to_numpy(),
    "series": lambda a: a.obs["gene"] == "G1",
    "shuffled series": lambda a: (a.obs["gene"] == "G1").sample(frac=1, random_state=0),
    "mask with gaps": lambda a: pd.Series(a.obs["gene"] == "G1", dtype="boolean").where(a.obs["gem"] == "b1"),
    "list of bool": lambda a: (a.obs["gene"] == "G1").tolist(),
    "names": some_names,
    "index": lambda a: a.obs_names[[200, 3, 77]],
    "one name": lambda a: a.obs_names[5],
    "rows": lambda a: [200, 3, 77],
    "one row": lambda a: np.int64(7),
    "range": lambda a: range(5),
    "control": lambda a: a.obs["gene"] == "ctl",
}


@pytest.mark.parametrize("choice", CHOICES)
def test_chosen_cells_are_those_of_the_whole_call(trained, adata, in_small_pieces, choice):
    expected = ptrag_sc.tl.predict(adata, trained, copy=True)
    cells = CHOICES[choice](adata)
    found = ptrag_sc.tl.predict(adata, trained, cells=cells, copy=True)
    rows = {
        "mask with gaps": lambda: np.flatnonzero((adata.obs["gene"] == "G1") & (adata.obs["gem"] == "b1")),
        "one name": lambda: np.array([5]),
        "one row": lambda: np.array([7]),
        "range": lambda: np.arange(5),
        "control": lambda: np.flatnonzero(adata.obs["gene"] == "ctl"),
    }
    if choice in rows:
        rows = rows[choice]()
    else:
        rows = np.flatnonzero(adata.obs["gene"] == "G1") if "names" not in choice else np.array([3, 77, 200])
        if choice in ("index", "rows"):
            rows = np.array([3, 77, 200])
    for name in ("ptrag", "ptrag_counts", "ptrag_retrieval"):
        assert_same_rows(found.obsm[name], expected.obsm[name], rows)
    assert np.flatnonzero(found.obs["ptrag_predicted"]).tolist() == rows.tolist()
    source = expected.obs["ptrag_source"].astype(object).where(found.obs["ptrag_predicted"])
    assert found.obs["ptrag_source"].astype(object).equals(source)
    conditions = adata.obs.iloc[rows].query("gene != 'ctl'")[["gene", "line"]].astype(str).to_numpy().tolist()
    for table in (found.uns["ptrag"]["retrieval"], found.uns["ptrag"]["support"]):
        described = table[["perturbation", "cell_type"]].drop_duplicates().to_numpy().tolist()
        assert sorted(described) == sorted(map(list, set(map(tuple, conditions))))
    if conditions:
        kept = found.uns["ptrag"]["effects"]["conditions"].to_numpy().tolist()
        assert sorted(kept) == sorted(map(list, set(map(tuple, conditions))))


def test_a_whole_condition_has_the_retrieval_of_the_whole_call(trained, adata):
    """Where every cell of a condition was generated, its means are those of all."""
    expected = ptrag_sc.tl.predict(adata, trained, copy=True).uns["ptrag"]["retrieval"]
    chosen = adata.obs["gene"] == "G1"
    found = ptrag_sc.tl.predict(adata, trained, cells=chosen, copy=True).uns["ptrag"]["retrieval"]
    expected = expected[expected["perturbation"] == "G1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected)


def test_few_conditions_cost_few_sets(trained, adata, in_small_pieces, monkeypatch):
    n_sets = []
    predict_batch = type(trained).predict_batch

    def counted(self, batch, sets, *args, **kwargs):
        n_sets.append(len(sets.query))
        return predict_batch(self, batch, sets, *args, **kwargs)

    monkeypatch.setattr(type(trained), "predict_batch", counted)
    ptrag_sc.tl.predict(adata, trained, copy=True)
    whole = sum(n_sets)
    n_sets.clear()
    ptrag_sc.tl.predict(adata, trained, cells=adata.obs["gene"] == "G1", copy=True)
    assert 0 < sum(n_sets) < whole / 3


def test_smooth_baselines_and_control_cells_under_a_perturbation(adata):
    mean = ptrag_sc.baselines.MeanShift(adata).fit()
    for options in ({"counts": False}, {"perturbation": "G3"}, {"perturbation": "G3", "counts": False}):
        expected = ptrag_sc.tl.predict(adata, mean, copy=True, **options)
        rows = np.flatnonzero((adata.obs["gene"] == "ctl") & (adata.obs["line"] == "K562"))
        found = ptrag_sc.tl.predict(adata, mean, cells=rows, copy=True, **options)
        assert_same_rows(found.obsm["ptrag"], expected.obsm["ptrag"], rows)


@pytest.mark.parametrize(
    ("cells", "error", "message"),
    [
        ([True, False], ValueError, r"is a mask of shape \(2,\), for 240 cells"),
        (np.ones((240, 1), dtype=bool), ValueError, "is a mask of shape"),
        (np.zeros(240, dtype=bool), ValueError, "means no cell. Leave cells=None"),
        ([], ValueError, "means no cell"),
        (["cell3", "cell999"], KeyError, "Cell 'cell999' is not in adata.obs_names"),
        ([3, 240], KeyError, "Row 240 in cells is not between 0 and 239"),
        ([-1], KeyError, "Row -1 in cells"),
        ([0.5], TypeError, "holds float"),
        (3.0, TypeError, "holds float"),
        ([None], TypeError, "cells in tl.predict holds"),
        (np.zeros((2, 2), dtype=int), ValueError, "has 2 dimensions"),
        (pd.Series([True] * 240), ValueError, "whose index holds other names"),
    ],
)
def test_choices_that_mean_nothing(adata, cells, error, message):
    mean = ptrag_sc.baselines.MeanShift(adata).fit()
    with pytest.raises(error, match=message):
        ptrag_sc.tl.predict(adata, mean, cells=cells)
    assert not adata.obsm


def test_perturbed_cells_have_no_prediction_under_another_perturbation(adata):
    mean = ptrag_sc.baselines.MeanShift(adata).fit()
    with pytest.raises(ValueError, match=r"The cells in cells are none that can be predicted. Pass control cells"):
        ptrag_sc.tl.predict(adata, mean, perturbation="G3", cells=adata.obs["gene"] == "G1")
