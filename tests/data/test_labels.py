"""Is a label the same however it is written, and is the control told from genes?"""

import anndata
import numpy as np
import pandas as pd
import pytest

import ptrag_sc
from ptrag_sc.data import ConditionIndex, ScreenKeys, canonical_labels, condition_split, read_labels, read_perturbations
from ptrag_sc.data._labels import components, named_perturbations, read_sep
from screens import KEYS, make_screen

TEXT = ["ctl", "A", "A+B", "ctl"]
WAYS = {
    "str": lambda names: pd.Series(names, dtype=str),
    "object": lambda names: pd.Series(names, dtype=object),
    "categorical": lambda names: pd.Categorical(names),
    "numpy strings": lambda names: pd.Series(np.array([np.str_(name) for name in names], dtype=object)),
    "bytes": lambda names: pd.Series([name.encode() for name in names], dtype=object),
    "string": lambda names: pd.array(names, dtype="string"),
    "pyarrow": lambda names: pd.array(names, dtype="string[pyarrow]"),
    "arrow dictionary": lambda names: pd.Series(names, dtype="category").astype("string[pyarrow]").astype("category"),
    "blanks": lambda names: pd.Series([f" {name.replace('+', ' + ')}\t" for name in names]),
    "other order": lambda names: pd.Series(["+".join(reversed(name.split("+"))) for name in names]),
}


def obs(values):
    return pd.DataFrame({"p": values}, index=[f"c{i}" for i in range(len(values))])


@pytest.mark.parametrize("way", WAYS)
def test_text_is_the_same_in_every_form(way):
    table = obs(TEXT)
    table["p"] = pd.Series(WAYS[way](TEXT)).set_axis(table.index)
    found = read_perturbations(table, "p", control="ctl", sep="+")
    assert found.tolist() == ["ctl", "A", "A+B", "ctl"]
    assert all(type(name) is str for name in found)


@pytest.mark.parametrize("kind", [int, float, "Int64", "int64[pyarrow]", "category", object, bool])
@pytest.mark.parametrize("control", [0, 0.0, "0", np.int64(0), b"0", ["0"], (0,)])
def test_numbers_are_the_same_in_every_form(kind, control):
    numbers = [0, 1, 1, 0]
    if kind is bool:
        numbers, control = [False, True, True, False], False
    found = read_perturbations(obs(pd.Series(numbers).astype(kind).to_numpy()), "p", control=control, sep="+")
    assert found.tolist() == (["False", "True", "True", "False"] if kind is bool else ["0", "1", "1", "0"])


def test_a_whole_number_stays_one_beside_missing_values():
    table = obs([3.0, np.nan, 1.0])
    assert read_labels(table.dropna(), "p").tolist() == ["3", "1"]
    for missing, message in ((np.nan, r"missing \(NaN\) for 1 cells"), (" ", "are blank for 1 cells")):
        with pytest.raises(ValueError, match=message):
            read_labels(obs(["a", missing]), "p")


def test_a_column_that_cannot_be_read():
    twice = pd.DataFrame([["a", "b"]], columns=["p", "p"])
    with pytest.raises(ValueError, match=r"Column 'p' in adata.obs is the name of 2 columns"):
        read_labels(twice, "p")

    class Dataset2D:  # the table of a file that was opened lazily
        columns = ("p",)

    with pytest.raises(TypeError, match=r"is a lazy Dataset2D. Read the file with .* or pass adata.to_memory\(\)"):
        read_labels(Dataset2D(), "p")


def test_labels_are_never_split_without_a_separator():
    assert components("NKX2-1", None) == ("NKX2-1",)
    assert canonical_labels([" A+B "], control="ctl", sep=None).tolist() == ["A+B"]
    assert read_sep(" + ") == "+"
    assert read_sep(" ") == " "
    with pytest.raises(ValueError, match=r"sep='' in the request is empty. Pass sep=None if labels are never split"):
        read_sep("")
    with pytest.raises(TypeError, match="sep=5"):
        read_sep(5)


@pytest.mark.parametrize(
    ("labels", "control"),
    [
        (["CTRL", "A + CTRL"], "CTRL"),
        (["CTRL", "CTRL+A"], "CTRL"),
        (["n0+n0", "A+n0"], "n0+n0"),
        (["n0+n1", "A+n0"], "n1+n0"),
        (["n0+n0", "n0"], "n0+n0"),
        (["ntc1", "ntc2", "A+ntc2"], ["ntc1", "ntc2"]),
    ],
)
def test_a_control_that_is_joined_to_a_gene_is_refused(labels, control):
    with pytest.raises(ValueError, match="join a gene and the control"):
        read_perturbations(obs(labels), "p", control=control, sep="+")
    # without combinations they are labels like others
    assert len(read_perturbations(obs(labels), "p", control=labels[0], sep=None)) == len(labels)


def test_several_labels_count_as_one_control():
    labels = ["ntc2", "A", "ntc1", "ntc1 + ntc2"]
    control = ["ntc1", "ntc2", "ntc2+ntc1"]
    found = read_perturbations(obs(labels), "p", control=control, sep="+")
    assert found.tolist() == ["ntc1", "A", "ntc1", "ntc1"]
    with pytest.raises(ValueError, match="Control label 'nct' does not occur"):
        read_perturbations(obs(labels), "p", control=[*control, "nct"], sep="+")
    for nothing in ([], "", " "):
        with pytest.raises(ValueError, match="names no label"):
            read_perturbations(obs(labels), "p", control=nothing, sep="+")


def test_names_in_a_call():
    labels = {"control": ["ntc1", "ntc2"], "sep": "+"}
    assert named_perturbations(["B+A", " A + B", 3, np.int64(3)], **labels) == ("A+B", "3")
    for held in ("ntc2", "A+ntc2", "ntc1"):
        with pytest.raises(ValueError, match="hold the control 'ntc1'"):
            named_perturbations([held], **labels)
    with pytest.raises(ValueError, match="are empty"):
        named_perturbations([], **labels)


def test_every_form_of_a_screen_gives_the_same_effects(tmp_path):
    """Order of genes, blanks, type of the column and several controls at once, through a file and a saved set-up."""
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    expected = ptrag_sc.baselines.MeanShift(adata).fit().predict(perturbations=["G0", "G0+G1"], counts=False)
    other = make_screen()
    rng = np.random.default_rng(0)
    renamed = {"G0+G1": " G1 +G0 ", "G2+G3": "G3+G2"}
    text = other.obs["gene"].astype(str).replace(renamed).to_numpy(dtype=object)
    text[text == "ctl"] = rng.choice(["ctl", "ntc 1", "ntc2"], (text == "ctl").sum())
    other.obs["gene"] = pd.array(text, dtype="string[pyarrow]")
    keys = {**KEYS, "control": ["ctl", "ntc 1", "ntc2"]}
    ptrag_sc.PTRAG.setup_anndata(other, **keys)
    other.obs["gene"] = other.obs["gene"].astype("category")
    other.write_h5ad(tmp_path / "screen.h5ad")
    other = anndata.read_h5ad(tmp_path / "screen.h5ad")
    assert ScreenKeys.of(other).controls == ("ctl", "ntc 1", "ntc2")
    fitted = ptrag_sc.baselines.MeanShift(other).fit()
    found = fitted.predict(perturbations=["G0", "G1 + G0"], counts=False)
    np.testing.assert_array_equal(found.X, expected.X)
    assert sorted(found.obs["gene"].unique()) == ["G0", "G0+G1"]
    ptrag_sc.tl.predict(other, fitted)
    ptrag_sc.tl.effect(other)
    assert set(ptrag_sc.tl.effect_table(other, perturbation="G1+G0")["perturbation"]) == {"G0+G1"}
    scores = ptrag_sc.benchmark.evaluate(
        other, found, reference=ptrag_sc.metrics.Reference.from_adata(other), metrics=["pearson_delta"]
    )
    assert set(scores["perturbation"]) == {"G0", "G0+G1"}


def test_a_screen_without_combinations(tmp_path):
    adata = make_screen(combinations=False)
    adata.obs["gene"] = [f"{name}+x" if name != "ctl" else "ctl" for name in adata.obs["gene"]]
    table = {f"G{i}+x": np.eye(8)[i] for i in range(8)}
    ptrag_sc.pp.gene_embedding(adata, table, perturbation_key="gene", control="ctl", sep=None)
    ptrag_sc.pp.split(adata, **KEYS, holdout="perturbation", test_fraction=0.3, sep=None)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split", sep=None)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    assert ScreenKeys.of(anndata.read_h5ad(tmp_path / "screen.h5ad")).sep is None
    model = ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=2).fit()
    virtual = ptrag_sc.tl.perturb(adata, model, "G3+x")
    assert set(ptrag_sc.tl.effect_table(virtual)["perturbation"]) == {"G3+x"}


def test_values_of_a_split():
    labels = np.array(["ctl", "A", "A", "ctl"])
    index = ConditionIndex.from_labels(labels, ["x"] * 4, None, control="ctl")
    found = condition_split(index, np.array(["", "test", "test", "val"]), place="adata.obs['s']")
    assert found["split"].tolist() == ["test"]
    with pytest.raises(ValueError, match=r"Split value 'valid' .*'train', 'val', 'test'\) \(found: 'test', 'valid'\)"):
        condition_split(index, np.array(["test", "valid", "valid", "test"]), place="adata.obs['s']")
    with pytest.raises(ValueError, match=r"'A in x' .* without a label .* only control cells need no label"):
        condition_split(index, np.array(["train", "", "", "train"]), place="adata.obs['s']")
    adata = make_screen()
    adata.obs["s"] = pd.Series("train", index=adata.obs_names).where(adata.obs["gene"] != "ctl")
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="s")
    assert len(ptrag_sc.baselines.MeanShift(adata).fit().trained_on_) == 20
