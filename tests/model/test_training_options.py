"""Do the fast paths of training compute the same: matrix on the device, bf16, compiled, without waiting?"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scvi
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import ptrag_sc
from ptrag_sc.data import CellSetDataset
from ptrag_sc.data._device_matrix import DeviceMatrix
from ptrag_sc.model._sets import training_sets
from ptrag_sc.model._training_plan import PTRAGTrainingPlan
from screens import KEYS, SMALL, TRAIN, make_screen


def trained_weights(*, retrieval="gumbel", **options):
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    scvi.settings.seed = 3
    model = ptrag_sc.PTRAG(adata, **SMALL, retrieval=retrieval)
    model.train(3, **{**TRAIN, **options})
    prediction = model.predict(adata, perturbations=["G0", "G1+G2"], counts=False).to_df().sort_index()
    return model.history["train_loss"].to_numpy(dtype=float).ravel(), prediction.to_numpy()


@pytest.fixture(scope="module")
def plain():
    return trained_weights()


def test_a_matrix_on_the_device_changes_nothing(plain):
    loss, prediction = trained_weights(data_device="accelerator")
    assert (loss == plain[0]).all()
    assert (prediction == plain[1]).all()


def test_the_matrix_leaves_the_device_after_training():
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    model = ptrag_sc.PTRAG(adata, **SMALL)
    model.train(1, **TRAIN, data_device="accelerator")
    held = [x for x in gc.get_objects() if type(x) is DeviceMatrix]
    assert held == []


def test_half_precision_stays_near(plain):
    loss, prediction = trained_weights(precision="bf16-mixed")
    assert not np.array_equal(loss, plain[0])  # it was used
    np.testing.assert_allclose(loss, plain[0], rtol=0.05)
    assert prediction.dtype == np.float32
    assert np.corrcoef(prediction.ravel(), plain[1].ravel())[0, 1] > 0.99


COMPILE = """
import json, sys
from test_training_options import trained_weights
losses = []
for retrieval in sys.argv[2].split(","):
    for options in ({}, {"plan_kwargs": {"compile": True, "compile_kwargs": json.loads(sys.argv[1])}}):
        loss, prediction = trained_weights(retrieval=retrieval, **options)
        losses.append([loss.tolist(), prediction.tolist()])
print(json.dumps(losses))
"""


def compiled_runs(compile_kwargs, retrievals):
    """Pairs (eager, compiled) of losses and predictions; in a process of its own, without checks of shapes."""
    here = Path(__file__)
    folders = here.parents[0], here.parents[1], Path(ptrag_sc.__file__).parents[1]  # the package that is tested here
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, json.dumps(compile_kwargs), ",".join(retrievals)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout.splitlines()[-1])
    return list(zip(runs[::2], runs[1::2], strict=True))


def assert_near(pairs):
    for eager, compiled in pairs:
        np.testing.assert_allclose(compiled[0], eager[0], rtol=1e-3)
        np.testing.assert_allclose(compiled[1], eager[1], atol=1e-2)


@pytest.mark.slow  # a process of its own
def test_a_compiled_graph_computes_the_same():
    # aot_eager traces forward and backward as the default does, and leaves only the generation of code out.
    assert_near(compiled_runs({"backend": "aot_eager"}, ["gumbel", "none"]))


@pytest.mark.slow
def test_compiled_code_computes_the_same():
    # With the random numbers of eager mode; its own are as good, but others.
    assert_near(compiled_runs({"options": {"fallback_random": True}}, ["gumbel"]))


def plan_and_batch(adata, **options):
    """The training plan of a model and one mini-batch of its loader."""
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    model = ptrag_sc.PTRAG(adata, **SMALL, **options)
    screen = model.read(adata)
    labels, train, _ = training_sets(screen.index, model.split_, set_size=12, batch_size=16, seed=0)
    plan = PTRAGTrainingPlan(model.module, table=model.query_table(labels, None))
    batch = CellSetDataset(screen.reader, with_target=True)[next(iter(train))]
    return model, plan, batch


@pytest.mark.parametrize("retrieval", ["gumbel", "attention", "none"])
def test_a_step_never_waits_for_the_device(retrieval):
    """Fake tensors have no values: whatever needs one on the host raises."""
    *_, plan, batch = plan_and_batch(make_screen(), retrieval=retrieval)
    batch = plan.table.numbered(batch)
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    for module in plan.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(mode.from_tensor(p.detach()))
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = mode.from_tensor(b)
    table = plan.table
    neighbours = type(table.neighbours)(*map(mode.from_tensor, table.neighbours))
    fields = {name: mode.from_tensor(getattr(table, name)) for name in ("vectors", "row", "components")}
    plan.table = table._replace(**fields, neighbours=neighbours)
    with mode:
        _, _, output = plan.forward({name: mode.from_tensor(x) for name, x in batch.items()})
        output.loss.backward()
        assert all(p.grad is not None for p in plan.module.parameters())
        with pytest.raises(DataDependentOutputException):
            output.loss.item()  # the guard guards


def test_every_candidate_of_a_step_is_encoded_once():
    model, plan, batch = plan_and_batch(make_screen())
    seen = []
    model.module.encode_embedding.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    prepared = plan.table.numbered(batch)
    plan.forward(prepared)
    found = plan.table.neighbours.take(batch["query"]).rows
    assert sorted(seen) == sorted([len(batch["query"]), len(np.unique(found))])  # queries, and distinct candidates
    assert len(np.unique(found)) < found.numel()  # the sets of the mini-batch share candidates


def test_every_candidate_of_a_call_is_encoded_once():
    adata = make_screen()
    model, *_ = plan_and_batch(adata)
    seen = []
    model.module.encode_embedding.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    model._prediction_batch_size = 2
    model.predict(adata, perturbations=["G0", "G1"])
    assert seen[0] == len(model.candidates_)
    assert all(n_queries <= 2 for n_queries in seen[1:])  # those of a mini-batch


def test_unusable_data_devices_are_refused(tmp_path):
    adata = make_screen()
    adata.write_h5ad(tmp_path / "screen.h5ad")
    backed = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    ptrag_sc.PTRAG.setup_anndata(backed, **KEYS)
    model = ptrag_sc.PTRAG(backed, **SMALL)
    with pytest.raises(ValueError, match="data_device= 'gpu' does not occur"):
        model.train(1, **TRAIN, data_device="gpu")
    with pytest.raises(ValueError, match="cannot hold a matrix on disk"):
        model.train(1, **TRAIN, data_device="accelerator")


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("retrieval", ["gumbel", "attention", "none"])
def test_no_step_on_a_gpu_waits(retrieval):
    model, plan, batch = plan_and_batch(make_screen(), retrieval=retrieval)
    device = torch.device("cuda")
    matrix, rows = DeviceMatrix(model.read(model.adata).reader, device), np.arange(20)
    plan = plan.to(device)
    optimizer = torch.optim.AdamW(plan.parameters())
    prepared = {name: x.pin_memory() for name, x in plan.table.numbered(batch).items()}
    matrix.rows(rows)  # the first call sets up the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        matrix.rows(rows)
        sent = {name: x.to(device, non_blocking=True) for name, x in prepared.items()}
        plan.forward(sent)[2].loss.backward()
        torch.nn.utils.clip_grad_norm_(plan.parameters(), 10.0)
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_computes_the_same(plain):
    for data_device in ("host", "accelerator", "auto"):
        loss, prediction = trained_weights(accelerator="gpu", devices=1, data_device=data_device)
        np.testing.assert_allclose(loss, plain[0], rtol=0.05)
        assert np.corrcoef(prediction.ravel(), plain[1].ravel())[0, 1] > 0.99


def test_a_training_may_end_before_its_first_validation():
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    model = ptrag_sc.PTRAG(adata, **SMALL)
    model.train(2, max_steps=1, **{**TRAIN, "batch_size": 4, "early_stopping": True})
    assert model.is_trained_
    assert np.isfinite(model.predict(adata, perturbations="G0", counts=False).to_df()).all(axis=None)
