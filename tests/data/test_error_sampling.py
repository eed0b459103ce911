"""Are conditions drawn by the errors of their held-out cells, and by nothing else?"""

import numpy as np
import pytest
import scvi
from lightning.pytorch.callbacks import ModelCheckpoint

import ptrag_sc
from ptrag_sc.data import ConditionIndex, RandomSets
from ptrag_sc.data._error_sampling import ConditionErrors, guided_sets
from ptrag_sc.model._guided import MeasureErrors
from screens import SMALL, TRAIN


def make_sets(n=400):
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(n) < 5, "few", rng.choice(["ctl", "A", "B", "C", "D"], n))
    index = ConditionIndex.from_labels(labels, ["x"] * n, None, control="ctl")
    table = index.conditions
    return RandomSets(index, table, 1 + np.arange(len(table)), set_size=32, batch_size=2, seed=0)


def test_probability_follows_the_formula():
    errors = ConditionErrors(5)
    assert errors.probability() is None
    errors.update(np.array([1.0, 4.0, -1.0, 100.0, np.nan]))
    high = np.percentile([1, 4, -1, 100], 95)
    s = np.array([1, 4, 0, high])
    s = np.append(s, s.mean())
    np.testing.assert_allclose(errors.probability(), 0.8 * s / s.sum() + 0.2 / 5)
    assert errors.probability().sum() == pytest.approx(1)
    errors.update(np.array([3.0, np.nan, -1.0, 100.0, 2.0]))
    np.testing.assert_allclose(errors.average, [2, 4, -1, 100, 2])
    errors.update(np.array([-9.0, -9.0, -9.0, -900.0, -9.0]))
    np.testing.assert_allclose(errors.probability(), 0.2)


def rows_of(sampler):
    found = {}
    for sets in sampler:
        for q, rows, mask in zip(sets.query, sets.target, sets.target_mask, strict=True):
            found.setdefault(int(q), []).append(rows[mask])
    return found


def test_held_out_cells_are_never_trained_on():
    sets = make_sets()
    guided, probes, places = guided_sets(sets, ConditionErrors(len(sets.query)))
    few = list(sets.index.perturbations).index("few")
    held = {q: set(np.concatenate(rows)) for q, rows in rows_of(probes).items()}
    assert sorted(held) == (places + 1).tolist()
    assert few not in [sets.index.conditions["perturbation"].iloc[p] for p in places]
    for epoch in range(10):
        guided.set_epoch(epoch)
        for q, rows in rows_of(guided).items():
            p = sets.index.conditions["perturbation"].iloc[q - 1]
            assert set(np.concatenate(rows)) <= set(sets.index.rows(p, 0)) - held.get(q, set())
    assert sum(map(len, held.values())) == sum(round(0.2 * n) for n in sets.index.conditions["n_cells"] if n >= 10)


def test_conditions_are_visited_by_their_errors():
    errors = ConditionErrors(5)
    guided, _, _ = guided_sets(make_sets(), errors)
    assert sorted(q for q, rows in rows_of(guided).items() for _ in rows) == [1, 2, 3, 4, 5]
    errors.update(np.array([0.0, 0.0, 3.0, 1.0, 0.0]))
    count = np.zeros(5)
    for epoch in range(80):
        guided.set_epoch(epoch)
        for q, rows in rows_of(guided).items():
            count[q - 1] += len(rows)
            # Those of one epoch are other draws.
            assert len(rows) < 2 or len(rows[0]) < 32 or set(rows[0]) != set(rows[1])
    expected = errors.probability() * count.sum()
    assert (((count - expected) ** 2 / expected).sum()) < 20  # chi squared with 4 degrees of freedom


def test_ranks_share_the_epoch():
    errors = ConditionErrors(5)
    guided, _, _ = guided_sets(make_sets(), errors)
    errors.update(np.arange(5.0))
    whole = np.concatenate([s.query for s in guided])
    ranks = [np.concatenate([s.query for s in guided.for_rank(r, 2)]) for r in (0, 1)]
    joined = np.stack(ranks, axis=1).ravel()
    assert (joined[:5] == whole).all()


def test_a_resumed_training_goes_on_with_its_errors(screen, tmp_path, monkeypatch):
    monkeypatch.setattr(scvi.settings, "logging_dir", tmp_path)
    options = {**TRAIN, "condition_sampling": "error"}
    model = ptrag_sc.PTRAG(screen, **SMALL)
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True, filename="first", save_on_train_epoch_end=True)
    model.train(3, **options, callbacks=[saver], enable_checkpointing=True)
    errors = measured(model)
    assert np.isfinite(errors.average).any()
    again = ptrag_sc.PTRAG(screen, **SMALL)
    loaded = []
    monkeypatch.setattr(ConditionErrors, "load_state_dict", lambda self, state: loaded.append(state["average"]))
    again.train(4, **options, ckpt_path=str(tmp_path / "last.ckpt"))
    np.testing.assert_array_equal(loaded[0], errors.average)


def measured(model):
    (callback,) = [c for c in model.trainer.callbacks if isinstance(c, MeasureErrors)]
    assert callback.probes.index is not model  # its screen holds the held-out cells only
    return callback.errors


def test_unknown_way_of_sampling(screen):
    with pytest.raises(ValueError, match="condition_sampling="):
        ptrag_sc.PTRAG(screen, **SMALL).train(1, **TRAIN, condition_sampling="best")
