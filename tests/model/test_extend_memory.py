"""Does a memory learn of new experiments as if it had been built with them, and does nothing else change?"""

import numpy as np
import pandas as pd
import pytest
import torch

import ptrag_sc
from baselines.oracles import slow_shifts
from own_targets import slow_controls, slow_masked, slow_shares, targeted_screen, targets
from screens import KEYS, SMALL, make_screen, train_small

MEMORY = {"memory": "response"}


@pytest.fixture(scope="module")
def screen():
    adata = make_screen(n_obs=900)
    adata.obs["line"] = np.where(np.arange(adata.n_obs) % 3 == 2, "HepG2", adata.obs["line"])
    return adata


def part_of(screen, kept):
    """Return the cells of some conditions, and all controls."""
    rows = (screen.obs["gene"] == "ctl") | kept
    part = screen[rows.to_numpy()].copy()
    ptrag_sc.PTRAG.setup_anndata(part, **KEYS, batch_key="gem")
    return part


@pytest.fixture(scope="module")
def known(screen, tmp_path_factory):
    """Folder of a trained model that saw neither G7 nor HepG2, and its data."""
    adata = screen[((screen.obs["gene"] != "G7") & (screen.obs["line"] != "HepG2")).to_numpy()].copy()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    folder = tmp_path_factory.mktemp("known") / "model"
    train_small(adata, max_epochs=2, **MEMORY).save(folder)
    return folder, adata


@pytest.fixture
def model(known):
    """A fresh copy of that model, which may be extended."""
    folder, adata = known
    return ptrag_sc.PTRAG.load(folder, adata.copy(), accelerator="cpu")


def test_weights_and_old_entries_stay_and_new_ones_are_the_observed_shifts(screen, model):
    weights = {name: tensor.clone() for name, tensor in model.module.named_parameters()}
    before = model.module.memory
    model.extend_memory(screen)
    after = model.module.memory
    for name, tensor in model.module.named_parameters():
        assert torch.equal(tensor, weights[name])
    n, n_types = before.n_cells.shape
    for name in ("entries", "n_cells"):
        assert torch.equal(
            getattr(after, name)[:n, :n_types][before.n_cells > 0], getattr(before, name)[before.n_cells > 0]
        )
    for name in ("mean", "between", "controls"):
        assert torch.equal(getattr(after, name)[:n_types], getattr(before, name))
    assert set(model.candidates_) == {*(f"G{i}" for i in range(8)), "G0+G1", "G2+G3"}
    assert model.tables_.cell_types == ("K562", "RPE1", "HepG2")
    k = list(model.candidates_).index("G7")
    x, obs = screen.X.toarray(), screen.obs
    for t, line in enumerate(model.tables_.cell_types):
        cells = obs[(obs["gene"] == "G7") & (obs["line"] == line)]
        control = {
            b: x[((obs["gene"] == "ctl") & (obs["line"] == line) & (obs["gem"] == b)).to_numpy()] for b in ("b1", "b2")
        }
        shift = x[obs.index.get_indexer(cells.index)].mean(0) - np.mean(
            [control[b].mean(0) for b in cells["gem"]], axis=0
        )
        deviation = (shift - after.mean[t].numpy()) @ after.directions.numpy().T
        kept = after.entries[k, t].numpy() / deviation
        assert ((kept > -1e-4) & (kept < 1)).all() and kept.max() > 0.5  # shrunk, each direction by its reliability
        assert int(after.n_cells[k, t]) == len(cells)


def test_a_memory_extended_by_all_of_a_cell_type_holds_what_one_built_with_it_holds(screen, model):
    """Up to the directions, which were fixed before."""
    model.extend_memory(screen)
    whole = ptrag_sc.PTRAG(part_of(screen, screen.obs["gene"] != "ctl"), **{**SMALL, **MEMORY})
    split = whole.split_.assign(split="train")  # its own split held some out
    built = {tuple(row) for row in split[["perturbation", "cell_type"]].to_numpy()}
    held = {
        (model.candidates_[p], model.tables_.cell_types[t])
        for p, t in (model.module.memory.n_cells > 0).nonzero().tolist()
    }
    missing = {(r.perturbation, r.cell_type) for r in model.split_[model.split_["split"] == "val"].itertuples()}
    assert held | missing == built


def test_what_was_added_is_retrieved_predicted_and_saved(screen, model, tmp_path):
    model.extend_memory(screen)
    table = model.get_retrieval(screen, perturbations="G7", cell_types="K562")
    assert table.iloc[0]["candidate"] == "G7"  # its own response in the other cell types
    assert "G7" in set(model.get_retrieval(screen, perturbations=["G0", "G1"])["candidate"])
    model.save(tmp_path / "model")
    again = ptrag_sc.PTRAG.load(tmp_path / "model", screen, accelerator="cpu")
    asked = {"perturbations": ["G7", "G0"], "cell_types": ["K562", "HepG2"], "counts": False}
    np.testing.assert_array_equal(model.predict(screen, **asked).X, again.predict(screen, **asked).X)


def test_the_order_of_extensions_does_not_count(screen, model, tmp_path):
    model.save(tmp_path / "model")
    other = ptrag_sc.PTRAG.load(tmp_path / "model", False, accelerator="cpu")
    model.extend_memory(screen)
    for line in ("HepG2", "RPE1", "K562"):
        other.extend_memory(screen[screen.obs["line"] == line].copy())
    asked = {"perturbations": ["G7", "G0"], "counts": False}
    np.testing.assert_allclose(model.predict(screen, **asked).X, other.predict(screen, **asked).X, atol=1e-5)


def test_added_conditions_count_as_seen_and_test_conditions_stay_out(screen):
    adata = screen[screen.obs["line"] != "HepG2"].copy()
    adata.obs["split"] = np.where(
        adata.obs["gene"] == "G7", "test", np.where(adata.obs["gene"] == "G6", "val", "train")
    )
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
    model = ptrag_sc.PTRAG(adata, **{**SMALL, **MEMORY})
    with pytest.raises(ValueError, match="hold no condition that the memory lacks"):
        model.extend_memory(adata)
    del adata.obs["split"]
    model.extend_memory(adata)
    assert "G7" in set(model.trained_on_["perturbation"])
    assert (model.split_.groupby(["perturbation", "cell_type"]).size() == 1).all()


def test_a_condition_of_a_single_cell_stays_out(screen, model, caplog):
    rows = np.flatnonzero((screen.obs["gene"] == "G7") & (screen.obs["line"] == "K562"))[1:]
    model.extend_memory(screen[np.setdiff1d(np.arange(screen.n_obs), rows)].copy())
    n_cells = model.module.memory.n_cells[list(model.candidates_).index("G7")].tolist()
    assert n_cells[0] == 0 < min(n_cells[1:])  # K562 and the others
    assert "Left 1 conditions of a single cell out of the memory." in caplog.text


def test_experiments_without_controls_in_their_batch_are_named(screen, model, caplog):
    new = screen[((screen.obs["gene"] != "ctl") | (screen.obs["gem"] == "b1")).to_numpy()].copy()
    model.extend_memory(new)
    assert "of the perturbed cells are in a batch without control cells" in caplog.text


def test_bad_requests(screen, model):
    with pytest.raises(ValueError, match="no memory"):
        ptrag_sc.PTRAG(part_of(screen, screen.obs["gene"] != "G7"), **SMALL).extend_memory(screen)
    new = screen.copy()
    new.obs["gene"] = new.obs["gene"].astype(str).replace("G7", "NEW1").astype("category")
    with pytest.raises(KeyError, match="NEW1"):
        model.extend_memory(new)
    assert "NEW1" not in model.candidates_
    vector = pd.DataFrame(np.ones((1, 30)), index=["NEW1"])
    model.extend_memory(new, gene_embedding=vector)
    assert "NEW1" in model.candidates_


@pytest.fixture(scope="module")
def targeted(tmp_path_factory):
    """A screen with measured targets, and the folder of an untrained model that saw neither G7 nor HepG2."""
    adata = targeted_screen(n_obs=900)
    adata.obs["line"] = np.where(np.arange(adata.n_obs) % 3 == 2, "HepG2", adata.obs["line"])
    known = adata[((adata.obs["gene"] != "G7") & (adata.obs["line"] != "HepG2")).to_numpy()].copy()
    ptrag_sc.PTRAG.setup_anndata(known, **KEYS, batch_key="gem", split_key="split")
    folder = tmp_path_factory.mktemp("targeted") / "model"
    ptrag_sc.PTRAG(known, **{**SMALL, **MEMORY}).save(folder)
    return folder, adata


def extended(folder, adata):
    model = ptrag_sc.PTRAG.load(folder, False, accelerator="cpu")
    before = model.own_effects_
    model.extend_memory(adata)
    return model, before


@pytest.mark.shapes
def test_own_targets_of_new_experiments_are_masked_and_learned(targeted):
    """The mean shift that the memory keeps stands for the others of a known cell type; a new one has its own share."""
    folder, adata = targeted
    model, before = extended(folder, adata)
    shifts, controls, genes = slow_shifts(adata), slow_controls(adata), list(adata.var_names)
    memory, names = model.module.memory, list(model.candidates_)
    k, g = names.index("G7"), genes.index("G7")
    directions = memory.directions.numpy()
    alone = model.own_effects_.alone.set_index(["gene", "cell_type"])["effect"]
    for t, line in enumerate(("K562", "RPE1")):
        mean = memory.mean[t].numpy()
        shift = shifts["G7", line].copy()
        assert shift[g] < mean[g] - 0.3
        assert alone["G7", line] == pytest.approx(shift[g] - mean[g], abs=1e-5)
        shift[g] = mean[g]
        deviation = directions @ (shift - mean)
        kept = memory.entries[k, t].numpy() / deviation  # shrunk, each direction by its reliability
        assert ((kept > -1e-3) & (kept < 1)).all()
    assert {t: model.own_effects_.shares[t] for t in before.shares} == before.shares
    assert model.own_effects_.pooled == before.pooled
    new = {key: s for key, s in shifts.items() if key[1] == "HepG2"}
    assert model.own_effects_.shares["HepG2"] == pytest.approx(slow_shares(new, controls, genes)[0]["HepG2"], abs=1e-5)
    masked = slow_masked(new, genes)
    t = model.tables_.cell_types.index("HepG2")
    np.testing.assert_allclose(memory.mean[t], np.mean(list(masked.values()), axis=0), atol=1e-5)
    for line, label in (("K562", "G0+G7"), ("HepG2", "G5+G7")):
        predicted = model.predict(adata, perturbations=label, cell_types=line, counts=False)
        rest = model.own_effects_
        model.own_effects_ = None
        without = model.predict(adata, perturbations=label, cell_types=line, counts=False)
        model.own_effects_ = rest
        change = (predicted.X - without.X).mean(0)
        parts = [genes.index(gene) for gene in label.split("+")]
        np.testing.assert_allclose(change[parts], [alone[gene, line] for gene in label.split("+")], atol=1e-5)
        np.testing.assert_allclose(np.delete(change, parts), 0, atol=1e-6)


def test_own_falls_of_new_experiments_reach_no_entry(targeted):
    folder, adata = targeted
    far = adata.copy()
    x, genes = far.X.toarray(), list(far.var_names)
    for i, label in enumerate(far.obs["gene"].astype(str)):
        x[i, targets(label, genes)] += 4
    far.X = x
    (first, _), (second, _) = (extended(folder, each) for each in (adata, far))
    for name in ("entries", "mean", "between"):
        torch.testing.assert_close(
            getattr(first.module.memory, name), getattr(second.module.memory, name), atol=1e-4, rtol=1e-3
        )
    moved = [m.own_effects_.alone.set_index(["gene", "cell_type"])["effect"]["G7", "K562"] for m in (first, second)]
    assert moved[1] == pytest.approx(moved[0] + 4, abs=1e-3)
