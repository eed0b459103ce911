"""Does a call change what another call uses: the object, the settings, the random numbers, the model?"""

import hashlib
import signal
import warnings
from dataclasses import fields, is_dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import scvi
import torch

import ptrag_sc
from screens import KEYS, TRAIN


@pytest.fixture(scope="module")
def screen():
    adata = ptrag_sc.datasets.simulated(n_cells=500, n_genes=40, n_perturbations=14, n_cell_types=2, seed=0)
    adata.obs = adata.obs.rename(columns={"perturbation": "gene", "cell_type": "line"})
    adata.obs["gene"] = adata.obs["gene"].cat.rename_categories({"non-targeting": "ctl"})
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    return adata


@pytest.fixture(scope="module")
def model(screen):
    scvi.settings.seed = 0
    model = ptrag_sc.PTRAG(screen, n_candidates=4, n_hidden=16, n_layers=1)
    model.train(1, **TRAIN)
    return model


@pytest.fixture(scope="module")
def baseline(screen):
    return ptrag_sc.baselines.MeanShift(screen).fit()


def digest(thing):
    """Return something that is equal where content is equal."""
    if isinstance(thing, dict):
        return {str(key): digest(value) for key, value in sorted(thing.items(), key=lambda item: str(item[0]))}
    if isinstance(thing, list | tuple):
        return [digest(value) for value in thing]
    if is_dataclass(thing):
        return {field.name: digest(getattr(thing, field.name)) for field in fields(thing)}
    if isinstance(thing, pd.DataFrame):
        return [digest(thing.index), *((name, digest(thing[name])) for name in thing)]
    if isinstance(thing, pd.Series | pd.Index):
        return [str(thing.dtype), repr(thing.tolist())]
    if sp.issparse(thing):
        return [digest(part) for part in (thing.data, thing.indices, thing.indptr)]
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().numpy()
    if isinstance(thing, np.ndarray):
        content = repr(thing.tolist()).encode() if thing.dtype == object else thing.tobytes()
        return [thing.shape, hashlib.sha256(content).hexdigest()]
    return repr(thing)


def of_object(adata):
    slots = {name: dict(getattr(adata, name)) for name in ("obsm", "varm", "obsp", "layers", "uns")}
    return {"X": digest(adata.X), "obs": digest(adata.obs), "var": digest(adata.var), **digest(slots)}


def of_settings():
    scvi_settings = {name: repr(getattr(scvi.settings, name)) for name in ("seed", "batch_size", "logging_dir")}
    cudnn = torch.backends.cudnn
    return {
        "scvi": scvi_settings,
        "scanpy": [sc.settings.verbosity, str(sc.settings.figdir), sc.settings.n_jobs],
        "plots": digest(dict(plt.rcParams)),
        "torch": [torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), cudnn.benchmark],
        "algorithms": [torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()],
        "numpy": [np.geterr(), np.get_printoptions()],
        "pandas": [pd.get_option("mode.copy_on_write"), pd.get_option("display.max_rows")],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "warnings": list(warnings.filters),
    }


def of_random_numbers():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    # Not those of Python's random: in tests, the checks of shapes draw from them.
    return {"torch": digest(torch.get_rng_state()), "numpy": [kind, digest(keys), rest]}


NAME = str(
    ptrag_sc.datasets.simulated(n_cells=100, n_genes=40, n_perturbations=14, n_cell_types=2, seed=0).uns[
        "gene_embedding"
    ]["genes"][0]
)
LEARNT = ("recoveries_", "effect_errors_")  # learnt when first asked for, as documented; answers are the same


def of_model(model):
    own = {name: value for name, value in vars(model).items() if name.endswith("_") and name not in LEARNT}
    found = {"attributes": digest(own)}
    if hasattr(model, "module"):
        found["weights"] = digest(dict(model.module.state_dict()))
        found["modes"] = [part.training for part in model.module.modules()]
        found["attributes of parts"] = [sorted(vars(part)) for part in model.module.modules()]
        found["registry"] = digest(model.adata_manager.registry)
    return found


def signature(model):
    return {name: float(i % 5 - 2) for i, name in enumerate(model.genes_)}


def refused(model):
    with pytest.raises(ValueError, match="precision="):
        model.train(1, **TRAIN, precision="64-true")


CALLS = {
    "predict": lambda a, m, _: m.predict(perturbations=[NAME]),
    "predict, sampled": lambda a, m, _: m.predict(perturbations=[NAME], seed=3, nonnegative=True),
    "tl.predict on a copy": lambda a, m, _: ptrag_sc.tl.predict(a, m, copy=True, seed=1),
    "tl.perturb": lambda a, m, path: ptrag_sc.tl.perturb(a, m, NAME, out=path / "cells.h5ad"),
    "tl.predict_effects": lambda a, m, _: ptrag_sc.tl.predict_effects(a, m, NAME),
    "tl.rank_perturbations": lambda a, m, _: ptrag_sc.tl.rank_perturbations(a, m, signature(m), cell_type="type_0"),
    "benchmark.evaluate": lambda a, m, _: ptrag_sc.benchmark.evaluate(
        a,
        m.predict(perturbations=[NAME]),
        reference=ptrag_sc.metrics.Reference.from_adata(a),
        metrics=["pearson_delta"],
    ),
    "tl.diagnose": lambda a, m, _: ptrag_sc.tl.diagnose(a.copy()),
    "baseline": lambda a, m, _: ptrag_sc.baselines.NearestPerturbations(a).fit().predict(perturbations=[NAME]),
    "datasets.simulated": lambda a, m, _: ptrag_sc.datasets.simulated(
        n_cells=100, n_genes=20, n_perturbations=4, n_cell_types=1
    ),
    "pl.effect": lambda a, m, _: ptrag_sc.pl.predicted_effects(
        ptrag_sc.tl.predict_effects(a, m, NAME),
        perturbation=NAME,
        cell_type="type_0",
        show=False,
    ),
}
OF_PTRAG = {
    "get_retrieval": lambda a, m, _: m.get_retrieval(perturbations=[NAME], null="random"),
    "save and load": lambda a, m, path: m.save(path / "model") or ptrag_sc.PTRAG.load(path / "model", False),
    "pl.training": lambda a, m, _: ptrag_sc.pl.training(m, show=False),
    "a training that is refused": lambda a, m, _: refused(m),
}
BOTH = [*((name, "model") for name in [*CALLS, *OF_PTRAG]), *((name, "baseline") for name in CALLS)]


@pytest.mark.parametrize(("call", "kind"), BOTH)
def test_a_call_changes_nothing_that_another_uses(screen, tmp_path, call, kind, request):
    predictor = request.getfixturevalue(kind)
    watched = {
        "object": lambda: of_object(screen),
        "settings": of_settings,
        "random numbers": of_random_numbers,
        "model": lambda: of_model(predictor),
    }
    before = {name: look() for name, look in watched.items()}
    {**CALLS, **OF_PTRAG}[call](screen, predictor, tmp_path)
    plt.close("all")
    after = {name: look() for name, look in watched.items()}
    for name in watched:
        changed = [part for part in before[name] if before[name][part] != after[name].get(part)]
        assert not changed and before[name].keys() == after[name].keys(), f"{call} changed {name}: {changed}"


def test_what_a_training_changes_is_the_model_and_the_random_numbers_of_torch(screen, model):
    scvi.settings.seed = 0
    before = of_object(screen), of_settings(), of_random_numbers()["numpy"]
    other = ptrag_sc.PTRAG(screen, n_candidates=4, n_hidden=16, n_layers=1)
    other.train(1, **TRAIN)
    assert (of_object(screen), of_settings(), of_random_numbers()["numpy"]) == before
    for (
        name,
        tensor,
    ) in other.module.state_dict().items():  # the calls above left no trace in a training of the same seed
        assert torch.equal(tensor, model.module.state_dict()[name]), name


def test_the_watch_sees_changes(screen, model):
    before = of_object(screen), of_model(model), of_random_numbers()
    screen.uns["mine"], former = 1, model.module.training
    model.module.train(not former)
    torch.rand(1)
    after = of_object(screen), of_model(model), of_random_numbers()
    del screen.uns["mine"]
    model.module.train(former)
    assert all(x != y for x, y in zip(before, after, strict=True))
