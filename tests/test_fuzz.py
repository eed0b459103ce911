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


class _Chance:
    """What is usual most of the time, and what is odd now and then."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def often(self, usual, *odd, share=0.06):
        if self.rng.random() >= share:
            return usual
        value = odd[self.rng.integers(len(odd))]
        note(f"odd: {value!r}")
        return value

    def one_of(self, *values):
        return values[self.rng.integers(len(values))]


def _values(chance, n, g):
    """A matrix (n, g): usually what the package asks for, else something that it must notice."""
    rng = chance.rng
    counts = rng.poisson(chance.one_of(0.3, 1.0, 20.0), (n, g)).astype(np.float64)
    logged = np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 1e4)
    odd = ("counts", "constant", "zeros", "negative", "huge", "tiny", "scaled", "two values")
    kind = chance.often("logged", *odd, share=0.12)
    values = {
        "logged": logged,
        "counts": counts,
        "constant": np.full((n, g), 1.5),
        "zeros": np.zeros((n, g)),
        "negative": logged - 3,
        "huge": logged * 1e30,
        "tiny": logged * 1e-30,
        "scaled": (logged - logged.sum(0) / max(n, 1)) / 0.7,
        "two values": np.where(logged > 1, 0.25, 0.75),
    }[kind]
    hole = chance.often(None, np.nan, np.inf, -np.inf, share=0.06)
    if hole is not None and values.size:
        values[rng.integers(n), rng.integers(g)] = hole
    if g > 1 and rng.random() < 0.3:
        values[:, 0] = 0
    return values


def _stored(chance, values):
    odd = ("csc", "float64", "int", "float16", "array", "fortran", "bool", "object", "big-endian", "float128")
    kind = chance.often(chance.one_of("csr", "dense"), *odd, share=0.4)
    single = values.astype(np.float32)
    makers = {
        "csr": sp.csr_matrix,
        "csc": sp.csc_matrix,
        "array": sp.csr_array,
        "dense": np.asarray,
        "fortran": np.asfortranarray,
    }
    if kind in makers:
        return makers[kind](single)
    if kind == "int":
        return np.nan_to_num(values, posinf=9, neginf=-9).clip(-1e9, 1e9).astype(np.int64)
    types = {"float16": np.float16, "bool": bool, "object": object, "big-endian": ">f4", "float128": np.longdouble}
    return values.astype(types.get(kind, np.float64))


def _labels(chance, n):
    rng = chance.rng
    names = list(rng.permutation(NAMES)[: chance.often(4, 0, 1, 8, share=0.2)])
    share = chance.often(0.4, 0.05, 0.0)
    if not names:
        share = 1.0
    labels = rng.choice(["ctl", *names], n, p=[share, *np.full(len(names), (1 - share) / max(len(names), 1))])
    odd = ("unused", "bytes", "empty", "missing", "number", "spaces", "nested")
    kind = chance.often(chance.one_of("text", "category"), *odd, share=0.15)
    column = labels.astype(object)
    if kind == "category":
        return pd.Categorical(labels)
    if kind == "unused":
        return pd.Categorical(labels, categories=[*sorted(set(labels)), "never", "unused+never"])
    if kind == "bytes":
        return np.array([label.encode() for label in labels], dtype=object)
    if kind == "number":
        return rng.integers(0, 3, n)
    wrong = {"empty": "", "missing": None, "spaces": " A ", "nested": ("A", "B")}
    if kind in wrong and n:
        column[rng.integers(n)] = wrong[kind]
    return column


def _index(chance, n, prefix):
    kind = chance.often("text", "numbers", "repeated", "unicode", "empty", "long")
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
    return names


def odd_screen(seed):
    """Return an odd AnnData, a table of vectors, how to set it up, and whether to train or to fit."""
    chance = _Chance(seed)
    rng = chance.rng
    n, g = chance.often(80, 0, 1, 2, 5, 20, 150, share=0.25), chance.often(12, 1, 2, 3, 30, share=0.25)
    types = ["K562", "RPE1", "β cell"][: chance.one_of(1, 2, 3)]
    obs = pd.DataFrame(index=_index(chance, n, "cell"))
    obs["gene"], obs["line"] = _labels(chance, n), rng.choice(types, n)
    obs["batch"] = rng.choice(["b1", "b2"], n)
    obs["split"] = rng.choice(["train", "train", "val", "test", chance.often("train", "other")], n)
    obs["extra"] = pd.array(rng.integers(0, 9, n), dtype="Int64")
    adata = AnnData(obs=obs, var=pd.DataFrame(index=_index(chance, g, "gene")))
    values, layer = _stored(chance, _values(chance, n, g)), chance.often(None, "logged")
    if layer is None:
        adata.X = values
        if rng.random() < 0.2:
            adata.raw = adata
    else:
        adata.layers[layer] = values
    vectors = rng.normal(size=(len(NAMES), chance.often(8, 1, 2)))
    if rng.random() < 0.1:
        vectors[1] = vectors[0]
    if n > 1 and rng.random() < 0.2:
        adata = adata[rng.permutation(n)[: n - 1]]  # a view
    setup = {
        "layer": layer,
        "batch_key": chance.often(None, "batch", share=0.4),
        "split_key": chance.often(None, "split", share=0.3),
        "sep": chance.often("+", None),
        "control": chance.often("ctl", "absent", ["ctl", "ctl2"]),
    }
    return adata, pd.DataFrame(vectors, index=NAMES), setup, rng.random() < 0.25


def _finite(cells):
    return bool(np.isfinite(cells.toarray() if sp.issparse(cells) else cells).all())


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
        model = predictor(adata).fit()
    seen = sorted({str(label) for label in adata.obs["gene"].astype(str)} & set(NAMES))
    predicted = ptrag_sc.tl.perturb(adata, model, seen[:2] or ["A"], n_cells=6, seed=0)
    assert _finite(predicted.X), "predictions that are not finite"
    ptrag_sc.tl.predict(adata, model)
    assert _finite(adata.obsm["ptrag"][adata.obs["ptrag_predicted"].to_numpy()]), (
        "cells said to be predicted are not finite"
    )
    reference = ptrag_sc.metrics.Reference.from_adata(adata)
    scores = ptrag_sc.benchmark.evaluate(adata, predicted, reference=reference)
    OUTCOMES["evaluated"] += 1
    assert not np.isinf(scores.select_dtypes("number")).any(axis=None), "infinite scores"
    ptrag_sc.tl.effect(predicted)
    row = predicted.obs.iloc[0]
    ptrag_sc.pl.effect(predicted, perturbation=str(row["gene"]), cell_type=str(row["line"]), show=False)
    if trained:
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
@given(st.integers(0, 2**63).map(odd_screen))
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
