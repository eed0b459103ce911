"""Do memory and training sets see the control cells that were asked for?"""

import numpy as np
import pytest

import ptrag_sc
from ptrag_sc.data import matching_weights
from ptrag_sc.model._sets import training_sets
from screens import KEYS, SMALL, make_screen


def model_of(adata, **options):
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    return ptrag_sc.PTRAG(adata, **{**SMALL, **options})


def slow_mean_shift(adata, model, line, shares):
    """Mean over training conditions of a line; each batch's controls are mixed with all others' by its share."""
    x, obs = adata.X.toarray(), adata.obs

    def cells(gene, gem=None):
        rows = (obs["gene"] == gene) & (obs["line"] == line)
        return x[(rows if gem is None else rows & (obs["gem"] == gem)).to_numpy()]

    split, shifts = model.split_, []
    for gene in split.loc[(split["split"] == "train") & (split["cell_type"] == line), "perturbation"]:
        batch = obs.loc[(obs["gene"] == gene) & (obs["line"] == line), "gem"]
        control = sum(
            (batch == b).mean() * (s * cells("ctl", b).mean(0) + (1 - s) * cells("ctl").mean(0))
            for b, s in shares.items()
        )
        shifts.append(cells(gene).mean(0) - control)
    return np.mean(shifts, axis=0)


def test_the_memory_holds_shifts_against_the_controls_asked_for(tmp_path):
    adata = make_screen(n_obs=900)
    adata.obs["gem"] = np.random.default_rng(0).choice([f"b{i}" for i in range(6)], adata.n_obs)  # no batch shifts
    model = model_of(adata, control_matching="auto", memory="response")
    screen = model.read(adata)
    weights = matching_weights(screen.reader, screen.index, "auto")
    for t, line in enumerate(model.tables_.cell_types):
        rows = (adata.obs["line"] == line).to_numpy()
        shares = dict(zip(adata.obs["gem"][rows], weights[screen.index.batch[rows]], strict=True))
        assert min(shares.values()) < 0.9
        mean = model.module.memory.mean[t].numpy()
        np.testing.assert_allclose(mean, slow_mean_shift(adata, model, line, shares), atol=1e-5)
    model.save(tmp_path / "model")
    assert ptrag_sc.PTRAG.load(tmp_path / "model", adata=adata).init_params_["control_matching"] == "auto"


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_controls_of_a_set_come_from_its_batches_by_the_share(share):
    adata = make_screen(n_obs=2400)
    adata.obs.loc[adata.obs["gene"] == "G1", "gem"] = "b1"
    index = model_of(adata).read(adata).index
    split = index.named(index.conditions.assign(split="train"))
    split = split[split["perturbation"] == "G1"]  # no other set is looked at
    matching = np.full(index.batch.max() + 1, share)
    _, sets, _ = training_sets(index, split, matching=matching, set_size=8, batch_size=64, seed=0)
    is_b1, found, expected = (adata.obs["gem"] == "b1").to_numpy(), [], []
    for epoch in range(200):
        sets.set_epoch(epoch)
        for batch in sets:
            for control, kind in zip(batch.control, batch.cell_type, strict=True):
                found.append(is_b1[control].mean())
                expected.append(share + (1 - share) * is_b1[index.controls(kind)].mean())
    assert len(found) == 400
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.02)


def test_an_unknown_matching_is_refused():
    with pytest.raises(ValueError, match=r"control_matching=.*random"):
        model_of(make_screen(), control_matching="random")
