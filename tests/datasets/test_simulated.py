import inspect
import time
from itertools import product

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import nbinom, norm

from ptrag_sc.datasets import _simulated, simulated
from ptrag_sc.datasets import _simulated_network as network_module
from ptrag_sc.datasets import _simulated_truth as truth_module

SMALL = {"n_cells": 1500, "n_genes": 60, "n_perturbations": 20, "n_cell_types": 3, "n_combinations": 6}
CONTROL = "non-targeting"
RMS_EFFECT, MEAN_LIBRARY = 0.3058692, 1064.0703  # of the default screen


@pytest.fixture(scope="module")
def small():
    return simulated(**SMALL)


@pytest.fixture(scope="module")
def default():
    return simulated()


def cube(adata, name="effects"):
    """Truth as (perturbations, cell types, genes), from the labels of its rows."""
    truth = adata.uns["truth"]
    conditions = truth["conditions"]
    perturbations, cell_types = conditions["perturbation"].unique(), list(truth["cell_types"])
    result = np.full((len(perturbations), len(cell_types), adata.n_vars), np.nan)
    rows = pd.Index(perturbations).get_indexer(conditions["perturbation"])
    result[rows, pd.Index(cell_types).get_indexer(conditions["cell_type"])] = truth[name]
    return perturbations, cell_types, result


def shifts(adata):
    """Batch-matched mean shifts (perturbations, cell types, genes) of the sampled cells and their squared errors."""
    perturbations, cell_types, result = cube(adata)
    x, labels = adata.X.toarray(), adata.obs.astype(str)
    means, errors = np.empty_like(result), np.empty_like(result)
    for t, cell_type in enumerate(cell_types):
        here = (labels["cell_type"] == cell_type).to_numpy()
        control = {}
        for b in labels["batch"][here].unique():
            cells = x[here & (labels["batch"] == b) & (labels["perturbation"] == CONTROL)]
            control[b] = cells.mean(0), cells.var(0) / len(cells)
        for p, perturbation in enumerate(perturbations):
            mine = here & (labels["perturbation"] == perturbation).to_numpy()
            share = labels["batch"][mine].value_counts(normalize=True)
            means[p, t] = x[mine].mean(0) - sum(w * control[b][0] for b, w in share.items())
            errors[p, t] = x[mine].var(0) / mine.sum() + sum(w**2 * control[b][1] for b, w in share.items())
    return means, errors


def nearest(adata, k=32):
    """Indices (P, k) of the nearest other single perturbations by cosine, and their names (P,)."""
    table = adata.uns["gene_embedding"]
    cosine = table["vectors"] @ table["vectors"].T
    np.fill_diagonal(cosine, -np.inf)
    return np.argsort(-cosine, axis=1)[:, : min(k, len(cosine) - 1)], np.asarray(table["genes"])


def relevance(adata):
    """Whether a candidate is relevant, (cell types, P, P), over single perturbations, from the long table."""
    names = pd.Index(adata.uns["gene_embedding"]["genes"])
    cell_types, table = pd.Index(adata.uns["truth"]["cell_types"]), adata.uns["truth"]["relevant"]
    table = table[table["perturbation"].isin(names) & table["candidate"].isin(names)]
    result = np.zeros((len(cell_types), len(names), len(names)), bool)
    rows = [names.get_indexer(table[c]) for c in ("perturbation", "candidate")]
    result[cell_types.get_indexer(table["cell_type"]), *rows] = True
    return result


def pearson(a, b):
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def assert_same_uns(a, b):
    for key, value in a.items():
        if isinstance(value, dict):
            assert_same_uns(value, b[key])
        elif isinstance(value, pd.DataFrame):
            assert list(value.columns) == list(b[key].columns)
            assert value.astype(str).to_numpy().tolist() == b[key].astype(str).to_numpy().tolist()
        else:
            np.testing.assert_array_equal(np.asarray(value), np.asarray(b[key]))
    assert set(a) == set(b)


def test_defaults_are_frozen(default):
    """Figures of later studies compare only while the default screen stays what it is."""
    parameters = inspect.signature(simulated).parameters
    assert {name: p.default for name, p in parameters.items()} == {
        "n_cells": 10_000,
        "n_genes": 500,
        "n_perturbations": 100,
        "n_cell_types": 3,
        "n_combinations": 0,
        "differentiating": False,
        "drift": 1.0,
        "seed": 0,
    }
    assert np.sqrt(np.mean(default.uns["truth"]["effects"] ** 2)) == pytest.approx(RMS_EFFECT, rel=1e-4)
    assert default.layers["counts"].sum() / default.n_obs == pytest.approx(MEAN_LIBRARY, rel=1e-4)


def test_same_seed_same_bits(small):
    again, other = simulated(**SMALL), simulated(**SMALL, seed=1)
    for name in ("data", "indices", "indptr"):
        for a, b in [(small.X, again.X), (small.layers["counts"], again.layers["counts"])]:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    pd.testing.assert_frame_equal(small.obs, again.obs)
    assert_same_uns(small.uns, again.uns)
    assert (small.X != other.X).nnz > 0
    assert not np.array_equal(small.uns["truth"]["effects"], other.uns["truth"]["effects"])


@pytest.mark.parametrize("chunk", [60 * 7, 60 * 1499, 60 * 1500])
def test_block_size_changes_nothing(small, monkeypatch, chunk):
    monkeypatch.setattr(_simulated, "CHUNK", chunk)
    assert (simulated(**SMALL).layers["counts"] != small.layers["counts"]).nnz == 0


def test_truth_depends_on_neither_cells_nor_combinations(small):
    other = simulated(**SMALL | {"n_cells": 400, "n_combinations": 0})
    singles = ~small.uns["truth"]["conditions"]["perturbation"].str.contains("+", regex=False).to_numpy()
    np.testing.assert_array_equal(small.uns["truth"]["effects"][singles], other.uns["truth"]["effects"])
    np.testing.assert_array_equal(small.uns["gene_embedding"]["vectors"], other.uns["gene_embedding"]["vectors"])


def test_expected_log_is_the_sum_over_counts_and_library_sizes():
    n_genes = 40
    grid, table = truth_module._expected_log(n_genes)
    library = network_module.COUNTS_PER_GENE * n_genes
    library = library * np.exp(network_module.LIBRARY_SD * norm.ppf((np.arange(400) + 0.5) / 400))
    counts, theta = np.arange(3000), network_module.DISPERSION
    for log_share in (-9.0, -5.0, -2.5, -1.0):
        slow = np.mean(
            [
                nbinom.pmf(counts, theta, theta / (theta + size * np.exp(log_share))) @ np.log1p(1e4 / size * counts)
                for size in library
            ]
        )
        assert np.interp(log_share, grid, table) == pytest.approx(slow, abs=2e-3)


def test_response_is_the_steady_state_of_the_network():
    """Iterate x <- D (A x - h) from 0 instead of inverting; without direct effects the response is L x."""
    rng = np.random.default_rng(3)
    network = network_module.draw_network(50, np.arange(30), 2, rng)
    network = network._replace(direct=np.zeros_like(network.direct))
    pairs = np.array([[2, 7]])
    screen = network_module.steady_states(network, pairs, rng)
    for t, active in enumerate(network.active):
        for p, hit in enumerate(network.hits):
            x = np.zeros_like(hit)
            for _ in range(80):
                x = active * (network.regulation @ x - hit)
            np.testing.assert_allclose(screen.response[t, p], network.loadings @ x, atol=1e-10)
    assert not screen.response[:, -1].any()  # the control


def test_effects_are_the_means_of_many_cells():
    adata = simulated(n_cells=60_000, n_genes=40, n_perturbations=5, n_cell_types=2, n_combinations=1)
    _, _, effects = cube(adata)
    means, errors = shifts(adata)
    z = (means - effects) / np.sqrt(errors)
    assert np.abs(z).max() < 4.5
    assert 0.8 < np.sqrt(np.mean(z**2)) < 1.2
    assert np.sqrt(np.mean(effects**2)) > 10 * np.sqrt(errors.mean())  # so a wrong truth would have been seen


def test_drift_and_effects_of_cells_that_differentiate_are_the_means_of_many_cells():
    adata = simulated(n_cells=60_000, n_genes=40, n_perturbations=5, n_cell_types=2, differentiating=True, drift=1.5)
    truth, obs = adata.uns["truth"], adata.obs
    cells = adata.X.toarray()
    control = (obs["perturbation"] == "non-targeting").to_numpy()
    assert (obs["time"][~control] == "end").all()
    z = []
    for t, name in enumerate(truth["cell_types"]):
        here = (obs["cell_type"] == name).to_numpy()
        at = {time: cells[control & here & (obs["time"] == time).to_numpy()] for time in ("start", "end")}
        assert abs(len(at["start"]) - len(at["end"])) <= 3  # of each of three batches
        error = sum(x.var(0) / len(x) for x in at.values())
        z.append((at["end"].mean(0) - at["start"].mean(0) - truth["drift"][t]) / np.sqrt(error))
        for (p, kind), effect in zip(truth["conditions"].to_numpy(), truth["effects"], strict=True):
            if kind == name:
                x = cells[here & (obs["perturbation"] == p).to_numpy()]
                error = x.var(0) / len(x) + at["end"].var(0) / len(at["end"])
                z.append((x.mean(0) - at["end"].mean(0) - effect) / np.sqrt(error))
    assert np.abs(z).max() < 4.5
    assert 0.8 < np.sqrt(np.mean(np.square(z))) < 1.2
    assert np.sqrt(np.mean(truth["drift"] ** 2)) > 0.3


def test_without_drift_the_cells_are_those_that_do_not_differentiate():
    shape = {"n_cells": 600, "n_genes": 30, "n_perturbations": 5, "n_cell_types": 2}
    plain, still = simulated(**shape), simulated(**shape, differentiating=True, drift=0.0)
    assert (plain.layers["counts"] != still.layers["counts"]).nnz == 0
    assert not still.uns["truth"]["drift"].any()
    assert "time" not in plain.obs
    assert "drift" not in plain.uns["truth"]
    with pytest.raises(ValueError, match="Argument drift"):
        simulated(**shape, differentiating=True, drift=-1.0)


LARGER = [pytest.param(*sizes, marks=pytest.mark.slow) for sizes in (*product([100, 150], [1, 2, 3, 8]), (1000, 2))]


@pytest.mark.parametrize(("n_perturbations", "n_cell_types"), [*product([20, 50], [1, 8]), (33, 3), *LARGER])
def test_share_of_relevant_candidates(n_perturbations, n_cell_types):
    n_cells = 4 * n_perturbations * n_cell_types
    shape = {"n_perturbations": n_perturbations, "n_cell_types": n_cell_types, "n_genes": 50, "n_cells": n_cells}
    adata = simulated(**shape)
    candidates, _ = nearest(adata)
    share = np.take_along_axis(relevance(adata), candidates[None], axis=2).mean()
    assert 0.15 <= share <= 0.25


def test_relevant_means_a_shared_active_module(small):
    truth = small.uns["truth"]
    modules = truth["perturbation_module"].groupby("perturbation")["module"].agg(set)
    assert set(modules.index) == set(truth["conditions"]["perturbation"])
    expected = set()
    for cell_type, on in zip(truth["cell_types"], truth["active"], strict=True):
        active = set(truth["modules"][on])
        for p, q in product(modules.index, repeat=2):
            if p != q and modules[p] & modules[q] & active:
                expected.add((p, cell_type, q))
    assert set(truth["relevant"].itertuples(index=False, name=None)) == expected


def test_relevance_depends_on_the_cell_type(default):
    relevant = relevance(default)
    assert np.mean((relevant != relevant[0]).any(axis=(0, 2))) > 0.6  # perturbations
    active = default.uns["truth"]["active"]
    assert (active.any(axis=0) & ~active.all(axis=0)).mean() > 0.5  # modules at work in some cell types only


def test_relevant_candidates_act_alike_and_the_others_do_not(default):
    _, _, effects = cube(default)
    candidates, _ = nearest(default)
    relevant = relevance(default)
    for t in range(effects.shape[1]):
        specific = effects[:, t] - effects[:, t].mean(axis=0)
        alike = pearson(specific[:, None], specific[candidates])
        chosen = np.take_along_axis(relevant[t], candidates, axis=1)
        assert alike[chosen].mean() > 0.6
        assert alike[~chosen].mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_selecting_the_relevant_candidates_pays(seed):
    """What the screen is for: on sampled cells of held-out pairs, oracle selection > all 32 neighbours > mean shift."""
    adata = simulated(seed=seed)
    means, _ = shifts(adata)
    candidates, _ = nearest(adata, 99)
    relevant = relevance(adata)
    held_out = np.random.default_rng(seed).random(means.shape[:2]) < 0.3
    scores = {"mean": [], "neighbours": [], "relevant": []}
    for p, t in np.argwhere(held_out):
        train = candidates[p][~held_out[candidates[p], t]][:32]
        centre = means[~held_out[:, t], t].mean(axis=0)
        chosen = train[relevant[t, p, train]]
        predicted = {"mean": centre, "neighbours": means[train, t].mean(axis=0)}
        predicted["relevant"] = means[chosen, t].mean(axis=0) if len(chosen) else centre
        for name, shift in predicted.items():
            specific = pearson(shift - centre, means[p, t] - centre) if shift is not centre else 0
            scores[name].append((pearson(shift, means[p, t]), specific))
    delta, specific = ({name: np.mean(v, axis=0)[i] for name, v in scores.items()} for i in range(2))
    assert 0.3 < delta["mean"] < 0.5
    assert delta["mean"] + 0.02 < delta["neighbours"] < delta["relevant"] - 0.1
    assert specific["mean"] + 0.15 < specific["neighbours"] < specific["relevant"] - 0.25


def test_combinations_interact(small):
    perturbations, _, effects = cube(small)
    _, _, interaction = cube(small, "interaction")
    row = {name: i for i, name in enumerate(perturbations)}
    pairs = [name for name in perturbations if "+" in name]
    assert len(set(pairs)) == 6
    for name in pairs:
        a, b = name.split("+")
        assert a < b
        additive = effects[row[a]] + effects[row[b]]
        np.testing.assert_allclose(interaction[row[name]], effects[row[name]] - additive, atol=1e-5)
        for t in range(effects.shape[1]):
            assert np.linalg.norm(interaction[row[name], t]) > 0.1 * np.linalg.norm(effects[row[name], t])
    assert not interaction[[row[name] for name in perturbations if "+" not in name]].any()


def test_expression_is_log1p_of_normalised_counts(small):
    counts = small.layers["counts"].toarray()
    np.testing.assert_array_equal(counts, np.round(counts))
    np.testing.assert_allclose(small.X.toarray(), np.log1p(counts / counts.sum(1, keepdims=True) * 1e4), rtol=1e-5)
    for matrix in (small.X, small.layers["counts"]):
        assert matrix.format == "csr"
        assert matrix.dtype == np.float32
        assert matrix.has_sorted_indices


def test_counts_are_overdispersed(default):
    """Library size and cell state alone give a squared variation of about .17; the negative binomial adds 1 / 4."""
    labels = default.obs
    cells = (labels["perturbation"] == CONTROL) & (labels["batch"] == labels["batch"].iloc[0])
    counts = default.layers["counts"][cells.to_numpy()].toarray()
    mean, variance = counts.mean(0), counts.var(0, ddof=1)
    common = mean > 3
    assert 0.3 < np.median((variance - mean)[common] / mean[common] ** 2) < 0.6


def test_cells_are_spread_evenly(small):
    obs = small.obs
    assert obs.index.is_unique
    assert (obs["perturbation"] == CONTROL).mean() == pytest.approx(0.125, abs=0.01)
    sizes = obs.groupby(["cell_type", "batch", "perturbation"], observed=True).size()
    control = sizes.index.get_level_values("perturbation") == CONTROL
    assert len(sizes) == 3 * 3 * (26 + 1)
    assert sizes[~control].max() - sizes[~control].min() <= 1
    assert sizes[control].max() - sizes[control].min() <= 1
    assert obs.groupby("batch", observed=True)["cell_type"].nunique().max() == 1


def test_fewest_cells_still_fill_every_batch():
    fewest = int(np.ceil((3 * 26 * 3 + 1) / 0.875))
    sizes = simulated(**SMALL | {"n_cells": fewest}).obs.groupby(["batch", "perturbation"], observed=True).size()
    assert len(sizes) == 3 * 3 * 27
    with pytest.raises(
        ValueError, match=rf"n_cells .* is {fewest - 1} for 78 conditions\. Pass .* at least {fewest}\."
    ):
        simulated(**SMALL | {"n_cells": fewest - 1})


def test_batches_shift_control_cells(default):
    labels = default.obs.astype(str)
    control = (labels["perturbation"] == CONTROL) & (labels["cell_type"] == "type_0")
    x = default.X[control.to_numpy()].toarray()
    batch = labels["batch"][control].to_numpy()
    centroids = np.stack([x[batch == b].mean(0) for b in np.unique(batch)])
    within = np.mean([x[batch == b].var(0) / (batch == b).sum() for b in np.unique(batch)], axis=0)
    assert centroids.var(0, ddof=1).mean() > 1.5 * within.mean()


def test_knock_down_shows_in_the_target(default):
    perturbations, _, effects = cube(default)
    assert set(perturbations) <= set(default.var_names)
    own = effects[np.arange(100), :, default.var_names.get_indexer(perturbations)]
    assert (own < 0).all()
    assert own.mean() < -0.9


def test_more_perturbations_than_genes():
    adata = simulated(n_cells=1000, n_genes=40, n_perturbations=60, n_cell_types=1)
    perturbed = set(adata.obs["perturbation"]) - {CONTROL}
    assert len(perturbed) == 60
    assert set(adata.var_names) < perturbed


def test_embedding_table(small):
    table = small.uns["gene_embedding"]
    assert set(table["genes"]) | {CONTROL} == {p for p in small.obs["perturbation"].unique() if "+" not in p}
    assert table["vectors"].shape == (20, 128)
    assert table["vectors"].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(table["vectors"], axis=1), 1, rtol=1e-6)
    assert table["source"] == "simulated"


@pytest.mark.parametrize(
    ("kind", "n_combinations"), [("h5ad", 0), ("h5ad", 6), pytest.param("zarr", 0, marks=pytest.mark.slow), ("zarr", 6)]
)
def test_round_trip(tmp_path, kind, n_combinations):
    adata = simulated(**SMALL | {"n_cells": 500, "n_combinations": n_combinations})
    path = tmp_path / f"screen.{kind}"
    getattr(adata, f"write_{kind}")(path)
    back = getattr(anndata, f"read_{kind}")(path)
    assert_same_uns(adata.uns, back.uns)
    assert (back.X != adata.X).nnz == 0
    assert (back.layers["counts"] != adata.layers["counts"]).nnz == 0
    assert back.obs.astype(str).equals(adata.obs.astype(str))


def test_ten_thousand_cells_take_under_five_seconds():
    start = time.process_time()
    simulated()
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"n_genes": 19}, r"n_genes .* is 19\. Pass n_genes of at least 20\."),
        ({"n_perturbations": 3}, r"n_perturbations .* is 3\. Pass n_perturbations of at least 4\."),
        ({"n_cell_types": 0}, r"n_cell_types .* is 0\. Pass n_cell_types of at least 1 and at most 8\."),
        ({"n_cell_types": 9}, r"n_cell_types .* is 9\. Pass n_cell_types of at least 1 and at most 8\."),
        ({"n_combinations": -1}, r"n_combinations .* is -1\. Pass n_combinations of at least 0 and at most 190\."),
        ({"n_combinations": 191}, r"n_combinations .* is 191\. Pass n_combinations of at least 0 and at most 190\."),
        ({"seed": -1}, r"seed .* is -1\. Pass seed of at least 0\."),
    ],
)
def test_impossible_sizes(argument, message):
    with pytest.raises(ValueError, match=f"Argument {message}"):
        simulated(**SMALL | argument)


@pytest.mark.parametrize("value", [1e4, "many", None, True])
def test_sizes_are_whole_numbers(value):
    with pytest.raises(TypeError, match=rf"n_cells in datasets\.simulated is {value!r}, .*\. Pass n_cells as an int\."):
        simulated(n_cells=value)
