"""Is the drift the shift of control cells from start to end, and are shifts measured at the end?"""

import numpy as np
import pytest

import ptrag_sc
from ptrag_sc.data import ConditionIndex, Drift, controls_at_end, learn_drift, read_screen, reference_means
from ptrag_sc.data._dataset import CellSetDataset
from ptrag_sc.data._fields import ScreenKeys
from ptrag_sc.data._requests import find_cell_types, request_cells, request_population
from ptrag_sc.data._set_sampler import CellSets
from ptrag_sc.data._shifts import control_means, mean_shifts

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
TIME = {"time_key": "time", "start": "start"}


def simulated(drift=1.0, n_cells=1200):
    shape = {"n_genes": 30, "n_perturbations": 8, "n_cell_types": 2}
    return ptrag_sc.datasets.simulated(n_cells=n_cells, **shape, differentiating=True, drift=drift)


def read(adata, **keys):
    return read_screen(adata, ScreenKeys(**KEYS, batch_key="batch", **keys))


@pytest.fixture(scope="module")
def adata():
    return simulated()


@pytest.fixture(scope="module")
def screen(adata):
    return read(adata, **TIME)


def masks(adata, name):
    """Which cells are control cells of a type at the start, and at the end."""
    obs = adata.obs
    control = ((obs["perturbation"] == "non-targeting") & (obs["cell_type"] == name)).to_numpy()
    return [control & (obs["time"] == time).to_numpy() for time in ("start", "end")]


def slow_drift(adata, name):
    """Observed drift and the share of it that is kept, cell by cell."""
    cells = adata.X.toarray().astype(float)
    start, end = masks(adata, name)
    batch = adata.obs["batch"].to_numpy()
    observed = np.mean([cells[i] - cells[start & (batch == batch[i])].mean(0) for i in np.flatnonzero(end)], axis=0)
    squares, freedom = 0.0, 0
    for side in (start, end):
        for b in np.unique(batch[side]):
            x = cells[side & (batch == b)]
            squares, freedom = squares + ((x - x.mean(0)) ** 2).sum(0), freedom + len(x) - 1
    error = squares / freedom * (1 / start.sum() + 1 / end.sum())
    between = max((observed**2 - error).mean(), 0)
    return observed, between / (between + error)


def test_drift_is_that_of_the_slow_way(adata, screen):
    drift = learn_drift(screen)
    assert drift.cell_types == ("type_0", "type_1")
    for name, mean in zip(drift.cell_types, drift.mean, strict=True):
        observed, kept = slow_drift(adata, name)
        np.testing.assert_allclose(mean, kept * observed, atol=1e-5)
    truth = adata.uns["truth"]["drift"]
    assert np.square(drift.mean - truth).mean() < 0.5 * np.square(truth).mean()


def test_shifts_are_measured_at_the_end_with_the_help_of_the_start(adata, screen):
    means = reference_means(screen)
    for t, name in enumerate(screen.index.cell_types):
        start, end = masks(adata, name)
        observed, kept = slow_drift(adata, name)
        at_end = adata.X[end].mean(0).A1
        further = start.sum() / (start | end).sum() * (1 - kept) * observed
        np.testing.assert_allclose(means.cell_type[t], at_end - further, atol=1e-5)
    plain = control_means(screen.reader, screen.index)
    of_batch = means.batch - plain.batch  # the same for all batches of a cell type
    types = np.unique(np.stack([screen.index.batch, screen.index.cell_type]), axis=1)[1]
    np.testing.assert_allclose(of_batch, (means.cell_type - plain.cell_type)[types], atol=1e-9)


def test_without_drift_nearly_all_controls_are_pooled():
    still = simulated(drift=0.0, n_cells=4000)
    timed, pooled = read(still, **TIME), read(still)
    error = np.square(reference_means(timed).cell_type - control_means(pooled.reader, pooled.index).cell_type).mean()
    alone = np.square(
        control_means(timed.reader, timed.index).cell_type - control_means(pooled.reader, pooled.index).cell_type
    )
    assert error < 0.1 * alone.mean()


def test_without_time_nothing_changes(adata):
    screen = read(adata)
    assert learn_drift(screen) is None
    before, after = control_means(screen.reader, screen.index), reference_means(screen)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert screen.index.is_source is screen.index.is_control


def test_predictions_start_at_the_start(adata, screen):
    index = screen.index
    at_start = (adata.obs["time"] == "start").to_numpy()
    for t in range(2):
        assert at_start[index.sources(t)].all()
        assert not at_start[index.controls(t)].any()
    labels = np.where(index.perturbation == index.control, 0, 1)
    request = request_cells(screen, labels, set_size=16, seed=None)
    assert at_start[request.source].all()
    assert (request.stays == at_start).all()
    population = request_population(screen, 1, [0, 1], n_cells=None, set_size=16, seed=None)
    assert set(population.rows) == set(np.flatnonzero(at_start))


def test_unknown_cell_types_and_those_without_an_end(screen, adata):
    drift = learn_drift(screen)
    np.testing.assert_allclose(drift.of(np.array(["new", "type_1"])), [drift.mean.mean(0), drift.mean[1]])
    both = drift.with_new(Drift(("type_1", "new"), np.zeros((2, 30))))
    assert both.cell_types == ("type_0", "type_1", "new")
    np.testing.assert_allclose(both.mean[:2], drift.mean)
    only = read(adata[adata.obs["time"] == "start"].copy(), **TIME)
    assert find_cell_types(only, None) == [0, 1]
    at_start = np.stack([adata.X[masks(adata, name)[0]].mean(0).A1 for name in drift.cell_types])
    np.testing.assert_allclose(controls_at_end(only, drift), at_start + drift.mean, atol=1e-5)


def test_training_sees_targets_without_the_drift(screen):
    drift = learn_drift(screen).of(screen.index.cell_types)
    rows, mask = np.array([[5, 6, 0], [7, 8, 9]]), np.array([[True, True, False], [True] * 3])
    sets = CellSets(np.array([1, 2]), np.array([1, 0]), np.zeros(2), rows, mask, rows, mask)
    batch = CellSetDataset(screen.reader, with_target=True, drift=drift)[sets]
    expected = (screen.reader.rows(rows.ravel()).reshape(2, 3, -1) - drift[[1, 0]][:, None]) * mask[..., None]
    np.testing.assert_allclose(batch["target_cells"].numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(
        batch["control_cells"].numpy(), screen.reader.rows(rows.ravel()).reshape(2, 3, -1) * mask[..., None]
    )


def test_the_shift_of_a_condition_is_against_the_end(adata, screen):
    conditions = screen.index.conditions.iloc[:1]
    shift = mean_shifts(screen.reader, screen.index, conditions).shift[0]
    named = screen.index.named(conditions).iloc[0]
    of_condition = (
        (adata.obs[["perturbation", "cell_type"]] == named[["perturbation", "cell_type"]]).all(axis=1)
    ).to_numpy()
    cells, batch, (_, end) = (
        adata.X.toarray().astype(float),
        adata.obs["batch"].to_numpy(),
        masks(adata, named["cell_type"]),
    )
    slow = np.mean([cells[i] - cells[end & (batch == batch[i])].mean(0) for i in np.flatnonzero(of_condition)], axis=0)
    np.testing.assert_allclose(shift, slow, atol=1e-5)


def changed(adata, column, value, where):
    other = adata.copy()
    other.obs[column] = other.obs[column].astype(str)
    other.obs.loc[where, column] = value
    return other


@pytest.mark.parametrize(
    ("keys", "change", "error", "words"),
    [
        ({"time_key": "time"}, None, ValueError, "Argument time_key in setup_anndata is given alone"),
        ({"start": "start"}, None, ValueError, "Argument start in setup_anndata is given alone"),
        ({"time_key": "day", "start": "start"}, None, KeyError, "day"),
        ({"time_key": "time", "start": "day 0"}, None, ValueError, r"Start 'day 0'.*found: 'end', 'start'"),
        (TIME, ("time", "later", 0), ValueError, r"several end times \('end', 'later'\)"),
        (TIME, ("time", "start", 1), ValueError, "has 1 perturbed cells at the start 'start'"),
    ],
)
def test_times_that_cannot_be_used(adata, keys, change, error, words):
    if change is not None:
        column, value, which = change
        kind = (adata.obs["perturbation"] != "non-targeting") if which else (adata.obs["time"] == "end")
        adata = changed(adata, column, value, adata.obs_names[kind.to_numpy()][:1])
    else:
        adata = adata.copy()
    with pytest.raises(error, match=words):
        ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, **keys)
    assert "_ptrag_sc" not in adata.uns


def test_a_cell_type_without_one_of_the_times(adata):
    lacking = adata[~((adata.obs["cell_type"] == "type_1") & (adata.obs["time"] == "start"))].copy()
    ptrag_sc.PTRAG.setup_anndata(lacking, **KEYS, **TIME)
    with pytest.raises(ValueError, match=r"Cell types 'type_1'.*lack control cells at the start or at the end"):
        ptrag_sc.PTRAG(lacking)
    model = ptrag_sc.baselines.MeanShift(lacking).fit()
    with pytest.raises(ValueError, match="has no control cells at the start"):
        ptrag_sc.tl.perturb(lacking, model, "A", cell_types="type_1")


def test_numbers_name_times():
    screen = simulated()
    screen.obs["day"] = np.where(screen.obs["time"] == "start", 0, 14)
    ptrag_sc.PTRAG.setup_anndata(screen, **KEYS, time_key="day", start=0)
    assert ScreenKeys.of(screen).start == "0"


def test_sources_and_controls_are_the_same_without_time():
    index = ConditionIndex.from_labels(["c", "A", "c"], ["t"] * 3, None, control="c")
    assert index.controls(0).tolist() == index.sources(0).tolist() == [0, 2]
