"""Are cells, conditions and splits what the labels say?"""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from ptrag_sc.data import ConditionIndex, canonical, components, condition_split, draw_split, read_perturbations


def make_index(seed=0, n=300):
    rng = np.random.default_rng(seed)
    labels = {
        "perturbation": rng.choice(["ctl", "A", "B", "C", "A+B"], n),
        "cell_type": rng.choice(["x", "y"], n),
        "batch": rng.choice(["1", "2", "3"], n),
    }
    return ConditionIndex.from_labels(*labels.values(), control="ctl"), pd.DataFrame(labels)


def test_canonical_labels():
    assert canonical("B+A", "+") == canonical("A+B", "+") == "A+B"
    assert canonical("B_A", "_") == "A_B"
    assert components("C+ A", "+") == ("A", "C")
    for label, sep in (("A+A", "+"), ("A+", "+"), ("", "+")):
        with pytest.raises(ValueError, match=r"Label"):
            canonical(label, sep)


def test_index_equals_a_search_over_labels():
    index, obs = make_index()
    table = index.named(index.conditions)
    assert "ctl" not in set(table["perturbation"])
    for (p, t, n), (cp, ct, _) in zip(table.to_numpy(), index.conditions.to_numpy(), strict=True):
        expected = np.flatnonzero((obs["perturbation"] == p) & (obs["cell_type"] == t))
        np.testing.assert_array_equal(index.rows(cp, ct), expected)
        assert n == len(expected)
    assert set(zip(table["perturbation"], table["cell_type"], strict=True)) == set(
        obs[obs["perturbation"] != "ctl"][["perturbation", "cell_type"]].itertuples(index=False, name=None)
    )
    np.testing.assert_array_equal(
        index.controls(1), np.flatnonzero((obs["perturbation"] == "ctl") & (obs["cell_type"] == "y"))
    )
    assert len(index.rows(len(index.perturbations), 0)) == 0


def test_a_batch_name_shared_by_two_cell_types_is_two_batches():
    index, obs = make_index()
    pairs = obs["cell_type"] + obs["batch"]
    assert len(np.unique(index.batch)) == pairs.nunique() == 6
    assert pd.DataFrame({"code": index.batch, "pair": pairs}).drop_duplicates().shape[0] == 6


def test_labels_that_cannot_be_used():
    obs = pd.DataFrame({"p": ["ctl", "A", None]}, index=["c0", "c1", "c2"])
    with pytest.raises(ValueError, match=r"missing \(NaN\) for 1 cells, the first being 'c2'"):
        read_perturbations(obs, "p", control="ctl", sep="+")
    with pytest.raises(
        ValueError, match=r"Control label 'nt' does not occur in adata.obs\['p'\] \(found: 'A', 'ctl'\)"
    ):
        read_perturbations(obs.iloc[:2], "p", control="nt", sep="+")
    with pytest.raises(KeyError, match=r"Column 'q' does not occur"):
        read_perturbations(obs, "q", control="ctl", sep="+")


def named(n_genes=30, types=("x", "y", "z"), combinations=()):
    names = [f"g{i:02d}" for i in range(n_genes)] + list(combinations)
    return pd.DataFrame([(p, t) for p in names for t in types], columns=["perturbation", "cell_type"])


@pytest.mark.parametrize("seed", range(3))
def test_pairs_keep_every_perturbation_in_training(seed):
    table = named()
    labels = draw_split(table, holdout="pair", test_fraction=0.4, val_fraction=0.1, seed=seed)
    counts = pd.Series(labels).value_counts()
    assert counts["test"] == 36
    assert counts["val"] == 9
    assert set(table["perturbation"][labels == "train"]) == set(table["perturbation"])


def test_pairs_of_one_cell_type():
    table = named()
    split = {"holdout": "pair", "test_fraction": 0.64, "val_fraction": 0.1, "seed": 0, "test_cell_type": "y"}
    labels = draw_split(table, **split)
    assert set(table["cell_type"][labels != "train"]) == {"y"}
    assert (labels == "test").sum() == round(0.64 * 30)
    np.testing.assert_array_equal(labels, draw_split(table, **split))
    assert (labels != draw_split(table, **{**split, "seed": 1})).any()


def test_a_perturbation_of_one_cell_type_only_is_never_a_held_out_pair():
    table = pd.concat([named(), pd.DataFrame({"perturbation": ["only"], "cell_type": ["y"]})], ignore_index=True)
    for seed in range(5):
        labels = draw_split(table, holdout="pair", test_fraction=0.9, val_fraction=0.05, seed=seed, test_cell_type="y")
        assert labels[-1] == "train"


def test_held_out_genes_are_out_everywhere_combinations_included():
    table = named(combinations=["g00+g01", "g02+g03", "g04+g05"])
    for seed in range(5):
        labels = draw_split(table, holdout="perturbation", test_fraction=0.3, val_fraction=0.2, seed=seed)
        of = {}
        for p, label in zip(table["perturbation"], labels, strict=True):
            for gene in components(p, "+"):
                of.setdefault(gene, set()).add(label)
        tested = {p for p, label in zip(table["perturbation"], labels, strict=True) if label == "test" and "+" not in p}
        trained = {
            g
            for p, label in zip(table["perturbation"], labels, strict=True)
            if label == "train"
            for g in components(p, "+")
        }
        assert len(tested) == 9
        assert tested.isdisjoint(trained)


def test_a_combination_of_a_test_gene_and_a_validation_gene_is_tested():
    """Validation conditions choose the weights, so none of them may contain a gene of the test set."""
    genes = [f"g{i:02d}" for i in range(30)]
    table = named(combinations=[f"{a}+{b}" for a, b in combinations(genes, 2)])
    labels = draw_split(table, holdout="perturbation", test_fraction=0.3, val_fraction=0.3, seed=0)
    of = dict(zip(table["perturbation"], labels, strict=True))
    met = set()
    for a, b in combinations(genes, 2):
        both = {of[a], of[b]}
        met.add(frozenset(both))
        assert of[f"{a}+{b}"] == next(split for split in ("test", "val", "train") if split in both)
    assert frozenset({"test", "val"}) in met


def test_held_out_cell_type():
    table = named()
    labels = draw_split(table, holdout="cell_type", test_fraction=0.2, val_fraction=0.1, seed=0, test_cell_type="z")
    assert set(labels[table["cell_type"] == "z"]) == {"test"}
    assert (labels[table["cell_type"] != "z"] == "val").sum() == 6
    drawn = draw_split(table, holdout="cell_type", test_fraction=0.2, val_fraction=0.1, seed=0)
    assert table["cell_type"][drawn == "test"].nunique() == 1


def test_split_is_read_per_condition():
    index, _ = make_index()
    labels = np.full(index.n_obs, "train", dtype=object)
    labels[index.rows(1, 0)] = "test"
    table = index.named(condition_split(index, labels, place="adata.obs['split']"))
    assert table.query("split == 'test'")[["perturbation", "cell_type"]].to_numpy().tolist() == [["A+B", "x"]]
    labels[index.rows(1, 0)[0]] = "val"
    with pytest.raises(ValueError, match=r"'A.B in x'.*is split between 'test', 'val'"):
        condition_split(index, labels, place="adata.obs['split']")
    labels[0] = "valid"
    with pytest.raises(ValueError, match=r"Split value 'valid' does not occur"):
        condition_split(index, labels, place="adata.obs['split']")
