"""Are cells that are predicted piece by piece, or a few of them only, those of one call in one piece?"""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import ptrag_sc
from ptrag_sc.data import _pieces, _predictor, _run
from ptrag_sc.tl._chosen import chosen_rows
from screens import KEYS, make_screen


@pytest.fixture
def in_small_pieces(monkeypatch):
    """Pieces of a few sets, and buffers that rows straddle."""
    monkeypatch.setattr(_run, "CHUNK", 5)
    monkeypatch.setattr(_predictor.Predictor, "_prediction_batch_size", 2)
    monkeypatch.setattr(_pieces, "BUFFER", 700)
    monkeypatch.setattr(_pieces, "AT_ONCE", 64)


@pytest.fixture(scope="module")
def adata():
    """Cells to predict, which no test changes."""
    screen = make_screen(n_obs=240)
    ptrag_sc.PTRAG.setup_anndata(screen, **KEYS, batch_key="gem")
    return screen


@pytest.fixture
def whole(trained, adata, in_small_pieces):
    """All cells predicted."""
    return ptrag_sc.tl.predict(adata, trained, copy=True)


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


NAMED = ["cell200", "cell3", "cell77"]
SOME = [3, 77, 200]
CHOICES = {
    "mask": (lambda a: (a.obs["gene"] == "G1").to_numpy(), "G1"),
    "series": (lambda a: a.obs["gene"] == "G1", "G1"),
    "shuffled series": (lambda a: (a.obs["gene"] == "G1").sample(frac=1, random_state=0), "G1"),
    "series of objects": (lambda a: (a.obs["gene"] == "G1").astype(object), "G1"),
    "list of bool": (lambda a: (a.obs["gene"] == "G1").tolist(), "G1"),
    "gaps": (lambda a: pd.Series(a.obs["gene"] == "G1", dtype="boolean").where(a.obs["gene"] != "G2"), "G1"),
    "names": (lambda a: NAMED, SOME),
    "a name twice": (lambda a: (*NAMED, NAMED[0]), SOME),
    "array of names": (lambda a: np.array(NAMED), SOME),
    "index": (lambda a: a.obs_names[[200, 3, 77]], SOME),
    "series of names": (lambda a: pd.Series(NAMED, dtype="string"), SOME),
    "categories": (lambda a: pd.Categorical(NAMED), SOME),
    "rows": (lambda a: [200, 3, 77], SOME),
    "set of rows": (lambda a: {200, 3, 77}, SOME),
    "unsigned rows": (lambda a: np.array(SOME, dtype=np.uint8), SOME),
    "one name": (lambda a: a.obs_names[5], [5]),
    "one row": (lambda a: np.int64(7), [7]),
    "range": (lambda a: range(5), [0, 1, 2, 3, 4]),
    "all": (lambda a: None, range(240)),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_chosen(adata, choice):
    choose, rows = CHOICES[choice]
    if rows == "G1":
        rows = np.flatnonzero(adata.obs["gene"] == "G1")
    assert np.flatnonzero(chosen_rows(adata.obs_names, choose(adata), "tl.predict")).tolist() == list(rows)


@pytest.mark.parametrize("choice", ["G1", "ctl", None])
def test_chosen_cells_are_those_of_the_whole_call(trained, adata, whole, in_small_pieces, choice):
    rows = np.array(SOME) if choice is None else np.flatnonzero(adata.obs["gene"] == choice)
    found = ptrag_sc.tl.predict(adata, trained, cells=rows, copy=True)
    for name in ("ptrag", "ptrag_counts", "ptrag_retrieval"):
        assert_same_rows(found.obsm[name], whole.obsm[name], rows)
    assert np.flatnonzero(found.obs["ptrag_predicted"]).tolist() == rows.tolist()
    source = whole.obs["ptrag_source"].astype(object).where(found.obs["ptrag_predicted"])
    assert found.obs["ptrag_source"].astype(object).equals(source)
    conditions = set(map(tuple, adata.obs.iloc[rows].query("gene != 'ctl'")[["gene", "line"]].astype(str).to_numpy()))
    tables = [found.uns["ptrag"]["retrieval"], found.uns["ptrag"]["support"]]
    if conditions:
        tables.append(found.uns["ptrag"]["effects"]["conditions"])
    for table in tables:
        assert set(map(tuple, table[["perturbation", "cell_type"]].to_numpy())) == conditions
    if choice == "G1":  # every cell of these conditions was generated: their means are those of all
        every = whole.uns["ptrag"]["retrieval"]
        every = every[every["perturbation"] == "G1"].reset_index(drop=True)
        pd.testing.assert_frame_equal(found.uns["ptrag"]["retrieval"], every)


def test_few_conditions_cost_few_sets(adata):
    mean, n_sets = ptrag_sc.baselines.MeanShift(adata).fit(), []
    mean.set_size_, mean._prediction_batch_size = 8, 2
    predict_batch = mean.predict_batch
    mean.predict_batch = lambda batch, sets, *args, **state: (
        n_sets.append(len(sets.query)) or predict_batch(batch, sets, *args, **state)
    )
    ptrag_sc.tl.predict(adata, mean, copy=True)
    every = sum(n_sets)
    n_sets.clear()
    ptrag_sc.tl.predict(adata, mean, cells=adata.obs["gene"] == "G1", copy=True)
    assert 0 < sum(n_sets) < every / 3


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
        ([True, False], ValueError, "is a mask of 2 values, for 240 cells"),
        (np.ones((240, 1), dtype=bool), ValueError, "has 2 dimensions"),
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
