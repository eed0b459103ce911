"""Does every public function that takes data pass the gate, for every kind of awkward input?

Rows are functions, columns are kinds, and each cell is a test or a reason why it does not apply. A new public function
that takes data needs a row: a call in ``CALLS``, or the row that covers it in ``COVERED``.
"""

import inspect
import tempfile
from typing import Any, NamedTuple

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scvi
from mudata import MuData

import ptrag_sc
from ptrag_sc.data._mudata import as_anndata
from test_package_structure import public

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}
OTHERS = {"split_key": "split", "batch_key": "batch"}
CONTROL = KEYS["control"]
MODALITIES = {"layer": "rna", "perturbation_key": "guides", "cell_type_key": "rna", "batch_key": "rna"}
SMALL = {"n_candidates": 3, "n_hidden": 8, "n_layers": 1, "n_heads": 1}
HERE = {"cell_type": "type_0"}
MINE = {"obs": "mine_source", "obsm": "mine", "layers": "mine", "uns": "mine", "var": "mine"}


class Case(NamedTuple):
    """A screen of one kind, with what was fitted to it or, for queries, to the plain one."""

    adata: Any
    keys: dict
    model: Any = None
    ptrag: Any = None
    reference: Any = None
    virtual: Any = None

    @property
    def genes(self):
        """Two perturbations, one of them a combination in another order than the canonical one."""
        return GENES[0], "+".join(reversed(PAIR.split("+")))

    def prepared(self):
        """The object with a prediction and its effects; made once."""
        if "ptrag" not in self.adata.obsm:
            ptrag_sc.tl.predict(self.adata, self.model, counts=False)
            ptrag_sc.tl.effect(self.adata)
        return self.adata


def plain():
    adata = ptrag_sc.datasets.simulated(
        n_cells=480, n_genes=40, n_perturbations=14, n_cell_types=2, n_combinations=2, seed=0
    )
    ptrag_sc.pp.split(adata, **KEYS, test_fraction=0.1, val_fraction=0.1)
    adata.obs[MINE["obs"]] = np.arange(adata.n_obs)
    adata.obsm[MINE["obsm"]] = np.ones((adata.n_obs, 2))
    adata.layers[MINE["layers"]] = adata.X.copy()
    adata.var[MINE["var"]] = np.arange(adata.n_vars)
    adata.uns[MINE["uns"]] = {"n": 1}
    return adata


PLAIN = plain()
PAIR = next(name for name in sorted(PLAIN.obs["perturbation"].unique()) if "+" in name)
GENES = [name for name in sorted(PLAIN.obs["perturbation"].unique()) if "+" not in name and name != CONTROL]


UNKNOWN = sorted(
    PLAIN.obs.loc[(PLAIN.obs["split"] != "train") & (PLAIN.obs["cell_type"] == "type_0"), "perturbation"].unique()
)


def virtual_cells(adata, model):
    return ptrag_sc.tl.perturb(adata, model, [GENES[0], "+".join(reversed(PAIR.split("+")))], counts=False)


def fitted(adata, keys):
    scvi.settings.seed = 0
    model = ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=2).fit()
    reference = ptrag_sc.metrics.Reference.from_adata(adata)
    return Case(adata, keys, model, ptrag_sc.PTRAG(adata, **SMALL), reference, virtual_cells(adata, model))


def set_up(adata, keys):
    ptrag_sc.PTRAG.setup_anndata(adata, **keys)
    return fitted(adata, keys)


def relabelled():
    """Other order of genes, blanks, bytes, another type of every column, several labels of the control."""
    adata = PLAIN.copy()
    text = adata.obs["perturbation"].astype(str).replace({PAIR: " + ".join(reversed(PAIR.split("+")))})
    text = text.to_numpy(dtype=object)
    text[np.flatnonzero(text == CONTROL)[::2]] = b"other control "
    adata.obs["perturbation"] = text
    adata.obs["cell_type"] = pd.array(adata.obs["cell_type"].astype(str) + " ", dtype="string[pyarrow]")
    adata.obs["batch"] = adata.obs["batch"].astype(object)
    return adata, {**KEYS, **OTHERS, "control": [CONTROL, "other control"]}


def modal():
    """A MuData: labels of perturbations in one modality, expression in another, the split above both."""
    rna = PLAIN.copy()
    guides = anndata.AnnData(np.ones((rna.n_obs, 2)), obs=rna.obs[["perturbation"]].copy())
    mdata = MuData({"rna": rna, "guides": guides})
    mdata.uns["gene_embedding"] = rna.uns.pop("gene_embedding")
    mdata.obs["split"] = rna.obs["split"].to_numpy()
    rna.obs = rna.obs[["cell_type", "batch", MINE["obs"]]].copy()
    keys = {**KEYS, **OTHERS, "modalities": MODALITIES}
    ptrag_sc.PTRAG.setup_mudata(mdata, **keys)
    return fitted(mdata, keys)


def counted(case):
    adata = case.adata.copy()
    adata.X = adata.X.expm1().ceil()
    return case._replace(adata=adata)


def lacking(case):
    adata = case.adata[:, 4:].copy()
    adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    adata.var["symbol"] = case.adata.var_names[4:]
    return case._replace(adata=adata)


def bare(case):
    """Control cells without the columns that prediction does not need."""
    adata = case.adata[(case.adata.obs["perturbation"] == CONTROL).to_numpy()].copy()
    adata.obs = adata.obs[["cell_type"]].copy()
    return case._replace(adata=adata)


@pytest.fixture(scope="module")
def cases():
    found = {"plain": set_up(PLAIN.copy(), {**KEYS, **OTHERS})}
    found["labels"] = set_up(*relabelled())
    found["mudata"] = modal()
    for name, change in (("scale", counted), ("genes", lacking), ("query", bare)):
        found[name] = change(found["plain"])
    return found


def nearest(adata, seed):
    return ptrag_sc.baselines.NearestPerturbations(adata, n_neighbors=2).fit()


def conditions(adata):
    keys = ptrag_sc.data.ScreenKeys.of(adata)
    index = ptrag_sc.data.read_screen(adata, keys).index
    return index.named(index.conditions)["n_cells"]


def again(case):
    """Set up a copy of the object."""
    adata = case.adata.copy()
    adata.uns.pop("_scvi_uuid", None)
    keys = {name: key for name, key in case.keys.items() if name != "modalities"}
    (ptrag_sc.PTRAG.setup_mudata if isinstance(adata, MuData) else ptrag_sc.PTRAG.setup_anndata)(adata, **case.keys)
    return adata, keys


def embedded(case):
    adata = case.adata.copy()
    table = dict(zip(PLAIN.uns["gene_embedding"]["genes"], PLAIN.uns["gene_embedding"]["vectors"], strict=True))
    control = case.keys["control"]
    ptrag_sc.pp.gene_embedding(adata, table, perturbation_key="perturbation", control=control, key_added="new")
    return adata.uns["new"]["vectors"]


def drawn(case):
    adata = case.adata.copy()
    options = {name: case.keys[name] for name in KEYS} | {"test_fraction": 0.2, "seed": 3, "key_added": "new"}
    ptrag_sc.pp.split(adata, **options)
    return (adata.obs["new"] == "test").to_numpy()


def extended(case):
    """Add one perturbation to the memory of a model that was built without it."""
    known = case.model.adata
    obs = as_anndata(known, case.model.keys_).obs
    part = known[(obs["perturbation"].astype(str) != GENES[0]).to_numpy()].copy()
    scvi.settings.seed = 0
    model = ptrag_sc.PTRAG(again(case._replace(adata=part))[0], **SMALL)
    model.extend_memory(case.adata)
    return model.module.memory.entries.numpy().sum((0, 1))


def scored(case):
    metrics = ["pearson_delta", "variance_ratio", "pds_cosine"]
    return ptrag_sc.benchmark.evaluate(case.adata, case.virtual, reference=case.reference, metrics=metrics)["value"]


def written(case):
    with tempfile.TemporaryDirectory() as folder:
        files = ptrag_sc.benchmark.to_cell_eval(case.adata, case.virtual, folder, reference=case.reference, **HERE)
        return anndata.read_h5ad(files.real).X.toarray()


def plot(function, case, **options):
    drawing = function(case.prepared(), show=False, **options)
    points = [np.asarray(part.get_offsets(), dtype=float) for part in drawing.collections[:1]]
    plt.close("all")
    return points[0] if points else None


def condition(case):
    return {"perturbation": case.genes[1], "cell_type": "type_0"}


CALLS = {
    "PTRAG.setup_anndata": lambda c: conditions(again(c)[0]),
    "PTRAG": lambda c: ptrag_sc.PTRAG(again(c)[0], **SMALL).tables_.basis,
    "PTRAG.predict": lambda c: c.model.predict(c.adata, perturbations=c.genes, counts=False).X,
    "PTRAG.get_retrieval": lambda c: c.ptrag.get_retrieval(c.adata, perturbations=c.genes)["similarity"],
    "PTRAG.extend_memory": extended,
    "baselines.MeanShift": lambda c: (
        ptrag_sc.baselines.MeanShift(c.adata).fit().predict(perturbations=c.genes[0], counts=False).X
    ),
    "metrics.Reference.from_adata": lambda c: ptrag_sc.metrics.Reference.from_adata(c.adata).centre,
    "pp.gene_embedding": embedded,
    "pp.split": drawn,
    "tl.predict": lambda c: ptrag_sc.tl.predict(c.adata, c.model, key_added="again") or c.adata.obsm["again"].toarray(),
    "tl.perturb": lambda c: virtual_cells(c.adata, c.model).X,
    "tl.predict_effects": lambda c: ptrag_sc.tl.predict_effects(c.adata, c.model, c.genes)["shift"],
    "tl.effect": lambda c: ptrag_sc.tl.effect(c.prepared()) or c.adata.uns["ptrag"]["effect"]["observed"],
    "tl.effect_table": lambda c: ptrag_sc.tl.effect_table(c.prepared(), perturbation=c.genes[1])["shift"],
    "tl.explain_error": lambda c: ptrag_sc.tl.explain_error(c.adata, c.virtual, reference=c.reference)[
        "squared_error"
    ].sort_values(),
    "tl.rank_perturbations": lambda c: ptrag_sc.tl.rank_perturbations(
        c.adata, c.model, pd.Series(dict.fromkeys(PLAIN.var_names[10:20], 1.0)), **HERE
    ).select_dtypes(float),
    "tl.design": lambda c: ptrag_sc.tl.design(c.adata, c.model, 1, candidates=UNKNOWN, **HERE)["variance_reduction"],
    "tl.design_curve": lambda c: ptrag_sc.tl.design_curve(
        c.adata, c.model, n_perturbations=[4], n_repeats=1, **HERE
    ).select_dtypes(float),
    "tl.power": lambda c: ptrag_sc.tl.power(
        c.adata, None, n_repeats=2, n_perturbations=[5], n_cells=[6], **HERE
    ).select_dtypes(float),
    "tl.batch_layout": lambda c: ptrag_sc.tl.batch_layout(c.adata).select_dtypes(float),
    "tl.diagnose": lambda c: ptrag_sc.tl.diagnose(c.adata) or c.adata.uns["diagnose"]["findings"]["value"],
    "tl.retrieval": lambda c: (
        ptrag_sc.tl.retrieval(c.adata, c.ptrag, perturbations=c.genes, key_added="found")
        or c.adata.uns["found"]["retrieval"]["similarity"]
    ),
    "benchmark.evaluate": scored,
    "benchmark.to_cell_eval": written,
    "benchmark.split_half": lambda c: ptrag_sc.benchmark.split_half(c.adata, 0).predicted.X.toarray(),
    "benchmark.interpolated_duplicate": lambda c: ptrag_sc.benchmark.interpolated_duplicate(c.adata, 0).predicted.X,
    "benchmark.null_error": lambda c: ptrag_sc.benchmark.null_error(c.adata, c.model, reference=c.reference)["value"],
    "benchmark.compare": lambda c: ptrag_sc.benchmark.compare(
        c.adata, {"n": nearest}, seeds=[0], metrics=["pearson_delta"], n_cells=50, progress=False
    )["value"],
    "pl.embedding": lambda c: plot(ptrag_sc.pl.embedding, c, **condition(c)),
    "pl.effect": lambda c: plot(ptrag_sc.pl.effect, c, **condition(c)),
    "pl.predicted_effects": lambda c: plot(ptrag_sc.pl.predicted_effects, c, **condition(c)),
    "pl.retrieval": lambda c: plot(ptrag_sc.pl.retrieval, c, perturbation=c.genes[1]),
    "pl.retrieval_matrix": lambda c: plot(ptrag_sc.pl.retrieval_matrix, c, perturbations=[*c.genes, GENES[1]]),
    "pl.design": lambda c: plot(ptrag_sc.pl.design, c, model=c.model, n_perturbations=[4], n_repeats=1, **HERE),
}

# Functions whose reading of data is that of a row above.
COVERED = {
    "PTRAG.setup_mudata": "PTRAG.setup_anndata",
    "PTRAG.load": "PTRAG.setup_anndata",
    **dict.fromkeys(
        ["PTRAG.virtual_cells", "PTRAG.read", "PTRAG.run", "PTRAG.canonical_labels", "PTRAG.resolve", "PTRAG.nameable"],
        "PTRAG.predict",
    ),
    **dict.fromkeys(["PTRAG.expected_shifts", "PTRAG.shift_blocks"], "tl.predict_effects"),  # after PTRAG.read
    **{
        f"baselines.{name}": "baselines.MeanShift"
        for name in ("Additive", "KernelRidge", "LinearShift", "NearestPerturbations", "NoEffect", "PerturbationMean")
    },
    "baselines.Stacked": "baselines.MeanShift",
    "benchmark.pertpy_metric": "benchmark.evaluate",
    "metrics.Reference": "metrics.Reference.from_adata",
    "metrics.Reference.matched_control": "benchmark.evaluate",
    "pl.diagnose": "tl.diagnose",
    "pl.support": "tl.predict",
    "pl.explain_error": "tl.explain_error",
    "datasets.select_training_genes": "pp.split",  # reads counts and the column of the split
    "datasets.write_store": "pp.split",  # reads labels; the matrix is copied
    "datasets.genept": "pp.gene_embedding",
}
TAKING_DATA = {
    "adata",
    "mdata",
    "real",
    "predicted",
    "perturbation",
    "perturbations",
    "cell_type",
    "cell_types",
    "genes",
}
RESULTS = "draws what a function of tl has read"
OWN = "reads the object's own genes"
LABELS = "reads labels only"
MEASURED = "needs perturbed cells"
DRAWN = [name for name in CALLS if name.startswith("pl.") and name not in ("pl.embedding", "pl.design")]
SET_UP = [
    "PTRAG.setup_anndata",
    "PTRAG",
    "baselines.MeanShift",
    "metrics.Reference.from_adata",
    "tl.diagnose",
    "tl.batch_layout",
    "tl.power",
    "benchmark.compare",
    "benchmark.split_half",
    "benchmark.interpolated_duplicate",
]
STARTING_FROM_CONTROLS = [
    "PTRAG.predict",
    "PTRAG.get_retrieval",
    "tl.predict",
    "tl.perturb",
    "tl.predict_effects",
    "tl.rank_perturbations",
    "tl.retrieval",
    "benchmark.null_error",
]
NO_EXPRESSION = ["pp.gene_embedding", "pp.split", "tl.effect_table"]
DOES_NOT_APPLY = {
    "labels": {},
    "mudata": dict.fromkeys(["pp.gene_embedding", "pp.split"], "asks for one modality, see test_mudata.py"),
    "keys": {},
    "scale": {**dict.fromkeys(DRAWN, RESULTS), **dict.fromkeys(NO_EXPRESSION, LABELS)} | {"pl.embedding": RESULTS},
    "genes": {**dict.fromkeys(DRAWN, RESULTS), **dict.fromkeys(NO_EXPRESSION, LABELS), **dict.fromkeys(SET_UP, OWN)},
    "query": {name: MEASURED for name in CALLS if name not in STARTING_FROM_CONTROLS},
}
CELLS = [(name, kind) for kind, exempt in DOES_NOT_APPLY.items() for name in CALLS if name not in exempt]


@pytest.fixture(scope="module")
def expected(cases):
    """What each function returns for the plain screen; computed once."""
    found = {}

    def of(name):
        if name not in found:
            found[name] = CALLS[name](cases["plain"])
        return found[name]

    return of


def check_same(name, case, expected):
    result = CALLS[name](case)
    if result is None:
        assert expected is None
    else:
        np.testing.assert_allclose(np.asarray(result, float), np.asarray(expected, float), atol=1e-5)


def check_keys(adata):
    for slot, name in MINE.items():
        found, before = (getattr(each, slot)[name] for each in (adata, PLAIN))
        if slot == "layers":
            found, before = found.toarray(), before.toarray()
        np.testing.assert_array_equal(np.asarray(found), np.asarray(before))


@pytest.mark.parametrize(("name", "kind"), CELLS)
def test_a_function_passes_the_gate(name, kind, cases, expected):
    if kind in ("labels", "mudata"):
        check_same(name, cases[kind], expected(name))
    elif kind == "keys":
        expected(name)
        check_keys(cases["plain"].adata)
    elif kind == "scale":
        with pytest.raises(ValueError, match="holds raw counts"):
            CALLS[name](cases["scale"])
    elif kind == "genes":
        with pytest.raises((KeyError, ValueError), match=r"lacks 40 of|share no gene|are not in adata.var_names"):
            CALLS[name](cases["genes"])
    else:
        CALLS[name](cases["query"])


def is_row(name, thing):
    """Whether a public function or method takes data, labels or genes, and not arrays as metrics do."""
    if name.startswith("metrics.") and "Reference" not in name:
        return False
    owner = name.rpartition(".")[0]
    if owner.startswith("baselines."):  # methods of all predictors are those of PTRAG
        return False
    return not TAKING_DATA.isdisjoint(inspect.signature(thing).parameters)


def test_every_public_function_that_takes_data_has_a_row():
    rows = {name for name, thing in public().items() if is_row(name, thing)}
    listed = set(CALLS) | set(COVERED)
    assert rows <= listed, "add a call to CALLS, or name the row that covers it in COVERED"
    assert set(COVERED.values()) <= set(CALLS)
    assert not set(CALLS) & set(COVERED)
    assert all(set(exempt) <= set(CALLS) for exempt in DOES_NOT_APPLY.values())
