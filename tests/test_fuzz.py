"""Does whatever AnnData a user brings end in finite results, or in an error of this package that says what to do?

Run with ``make fuzz``. ``PTRAG_SC_FUZZ=2000`` sets how many screens are drawn.
"""

import logging
import os
import traceback
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import ptrag_sc

N_EXAMPLES = int(os.environ.get("PTRAG_SC_FUZZ", "100"))
DOCUMENTED = (ValueError, KeyError, TypeError, FloatingPointError)
PACKAGE = str(Path(ptrag_sc.__file__).parent)
KEYS = {"perturbation_key": "gene", "control": "ctl", "cell_type_key": "line"}
NAMES = ["A", "B", "A+B", "B + C", "C", "β-actin", "HLA-DRA", "naïve gene", "1", "ctl2", "☃"]
pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]
OUTCOMES = Counter()
BASELINES = ("MeanShift", "Additive", "NearestPerturbations", "LinearShift", "PerturbationMean", "NoEffect")


def _values(draw, rng, n, g):
    """A matrix (n, g): usually what the package asks for, else something that it must notice."""
    counts = rng.poisson(draw(st.sampled_from([0.1, 1.0, 20.0])), (n, g)).astype(np.float64)
    kind = draw(st.sampled_from(["logged"] * 6 + ["counts", "constant", "zeros", "negative", "huge", "tiny", "scaled"]))
    note(f"values: {kind}")
    totals = np.maximum(counts.sum(1, keepdims=True), 1)
    logged = np.log1p(counts / totals * 1e4)
    values = {
        "logged": logged,
        "counts": counts,
        "constant": np.full((n, g), 1.5),
        "zeros": np.zeros((n, g)),
        "negative": logged - 3,
        "huge": logged * 1e30,
        "tiny": logged * 1e-30,
        "scaled": (logged - logged.sum(0) / max(n, 1)) / 0.7,
    }[kind]
    hole = draw(st.sampled_from([None] * 8 + [np.nan, np.inf, -np.inf]))
    if hole is not None and values.size:
        note(f"hole: {hole}")
        values[rng.integers(n), rng.integers(g)] = hole
    if g > 1 and draw(st.booleans()):
        values[:, 0] = 0
    return values


def _stored(draw, values):
    kinds = ["csr", "csc", "dense", "float64", "int", "float16", "coo", "fortran", "bool", "object"]
    kind = draw(st.sampled_from(["csr", "dense", *kinds]))
    note(f"storage: {kind}")
    single = values.astype(np.float32)
    if kind in ("csr", "csc"):
        return sp.csr_matrix(single) if kind == "csr" else sp.csc_matrix(single)
    if kind == "coo":
        return sp.csr_array(single)
    if kind == "int":
        return np.nan_to_num(values, posinf=9, neginf=-9).clip(-1e9, 1e9).astype(np.int64)
    if kind == "fortran":
        return np.asfortranarray(single)
    as_type = {"float64": np.float64, "float16": np.float16, "bool": bool, "object": object}
    return values.astype(as_type.get(kind, np.float32))


def _labels(draw, rng, n):
    names = draw(st.lists(st.sampled_from(NAMES), min_size=0, max_size=6, unique=True))
    share = draw(st.sampled_from([0.4, 0.4, 0.4, 0.05, 0.0]))
    labels = rng.choice(["ctl", *names], n, p=[share, *np.full(len(names), (1 - share) / len(names))] if names else None)
    kind = draw(st.sampled_from(["text"] * 4 + ["category", "unused", "bytes", "empty", "missing", "number", "spaces"]))
    note(f"labels: {kind} {names}")
    column = pd.Series(labels.astype(object))
    if kind == "category":
        column = column.astype("category")
    elif kind == "unused":
        column = pd.Categorical(labels, categories=[*sorted(set(labels)), "never", "unused+never"])
    elif kind == "bytes":
        column = column.map(str.encode)
    elif kind in ("empty", "missing", "spaces") and n:
        column[int(rng.integers(n))] = {"empty": "", "missing": None, "spaces": " A "}[kind]
    elif kind == "number":
        column = pd.Series(rng.integers(0, 3, n))
    return np.asarray(column, dtype=object) if kind != "unused" else column


def _index(draw, n, prefix):
    kind = draw(st.sampled_from(["text"] * 5 + ["numbers", "repeated", "unicode", "empty", "long"]))
    names = [f"{prefix}{i}" for i in range(n)]
    if kind == "numbers":
        names = [str(i) for i in range(n)]
    elif kind == "repeated" and n > 1:
        names[1] = names[0]
    elif kind == "unicode":
        names = [f"{name}é☃" for name in names]
    elif kind == "empty" and n:
        names[0] = ""
    elif kind == "long" and n:
        names[0] *= 500
    note(f"index of {prefix}: {kind}")
    return names


@st.composite
def screens(draw):
    """An odd AnnData, how to set it up, and what to do with it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.sampled_from([0, 1, 2, 5, 30, 80, 80, 150]))
    g = draw(st.sampled_from([1, 2, 5, 12, 12, 30]))
    note(f"{n} cells, {g} genes")
    n_types = draw(st.sampled_from([1, 2, 2, 3]))
    obs = pd.DataFrame(index=_index(draw, n, "cell"))
    obs["gene"] = _labels(draw, rng, n)
    obs["line"] = rng.choice(["K562", "RPE1", "β cell"][:n_types], n)
    obs["batch"] = rng.choice(["b1", "b2"], n)
    obs["split"] = rng.choice(["train", "val", "test", draw(st.sampled_from(["train", "train", "other"]))], n)
    obs["extra"] = pd.array(rng.integers(0, 9, n), dtype="Int64")
    adata = AnnData(obs=obs, var=pd.DataFrame(index=_index(draw, g, "gene")))
    values = _stored(draw, _values(draw, rng, n, g))
    layer = draw(st.sampled_from([None, None, None, "logged"]))
    if layer is None:
        adata.X = values
    else:
        adata.layers[layer] = values
    vectors = rng.normal(size=(len(NAMES), draw(st.sampled_from([1, 4, 8]))))
    if draw(st.integers(0, 9)) == 0:
        vectors[1] = vectors[0]
    table = pd.DataFrame(vectors, index=NAMES)
    if layer is None and draw(st.integers(0, 4)) == 0:
        adata.raw = adata
    if n > 1 and draw(st.integers(0, 4)) == 0:
        adata = adata[rng.permutation(n)[: n - 1]]  # a view
        note("a view")
    setup = {"layer": layer, "batch_key": draw(st.sampled_from([None, "batch"]))}
    setup["split_key"] = draw(st.sampled_from([None, None, "split"]))
    setup["sep"] = draw(st.sampled_from(["+", "+", "+", None]))
    setup["control"] = draw(st.sampled_from(["ctl"] * 5 + ["absent", ["ctl", "ctl2"]]))
    return adata, table, setup, draw(st.integers(0, 5)) == 0


def _finite(adata):
    x = adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)
    return bool(np.isfinite(x).all())


def _whole_way(adata, table, setup, trained):
    """Set up, fit or train one step, predict, evaluate, plot; the results are finite."""
    keys = {**KEYS, **setup}
    labels = {name: keys[name] for name in ("perturbation_key", "control", "sep")}
    ptrag_sc.pp.gene_embedding(adata, table, **labels, missing="drop")
    ptrag_sc.PTRAG.setup_anndata(adata, **keys)
    if trained:
        model = ptrag_sc.PTRAG(adata, n_candidates=2, n_hidden=8, n_layers=1, n_heads=2)
        quiet = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu"}
        model.train(1, max_steps=1, set_size=8, batch_size=4, **quiet)
        assert all(bool(tensor.isfinite().all()) for tensor in model.module.state_dict().values())
    else:
        predictor = getattr(ptrag_sc.baselines, BASELINES[adata.n_obs % len(BASELINES)])
        predictor.setup_anndata(adata, **keys)
        model = predictor(adata).fit()
    seen = sorted({str(label) for label in adata.obs["gene"].astype(str)} & set(NAMES))
    predicted = ptrag_sc.tl.perturb(adata, model, seen[:2] or ["A"], n_cells=6, seed=0)
    assert _finite(predicted), "predictions that are not finite"
    ptrag_sc.tl.predict(adata, model)
    found = np.asarray(adata.obsm["ptrag"])[adata.obs["ptrag_predicted"].to_numpy()]
    assert np.isfinite(found).all(), "cells said to be predicted are not finite"
    reference = ptrag_sc.metrics.Reference.from_adata(adata)
    scores = ptrag_sc.benchmark.evaluate(adata, predicted, reference=reference)
    OUTCOMES["evaluated"] += 1
    assert not np.isinf(scores.select_dtypes("number")).any(axis=None), "infinite scores"
    ptrag_sc.pl.support(predicted, show=False)


@settings(
    max_examples=N_EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    report_multiple_bugs=True,
    suppress_health_check=list(HealthCheck),
)
@given(screens())
def test_odd_screens(drawn):
    adata, table, setup, trained = drawn
    outcome = "finite"
    logging.disable(logging.CRITICAL)
    try:
        _whole_way(adata, table, setup, trained)
    except DOCUMENTED as error:
        outcome = type(error).__name__
        place = traceback.extract_tb(error.__traceback__)[-1].filename
        assert place.startswith(PACKAGE), f"{outcome} of {place}: {error}"
        assert len(str(error)) > 20, f"{outcome} without a message: {error}"
    finally:
        logging.disable(logging.NOTSET)
        plt.close("all")
    OUTCOMES[outcome] += 1




def test_enough_screens_came_through():
    """If all were refused, nothing behind the set-up would have been tried."""
    evaluated = OUTCOMES.pop("evaluated", 0)
    print(dict(OUTCOMES))
    assert min(evaluated, OUTCOMES["finite"]) >= 0.1 * OUTCOMES.total(), OUTCOMES
