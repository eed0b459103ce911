"""Is data attached to a saved model as by loading it, and what does a saved folder say of itself?"""

import logging
from importlib.metadata import version

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from scvi.hub import HubMetadata
from scvi.model.base import BaseModelClass

import ptrag_sc

LABELS = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "non-targeting"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, not trained, its controls and the folder where it was saved."""
    adata = ptrag_sc.datasets.simulated(n_cells=300, n_genes=30, n_perturbations=6, n_cell_types=2, seed=0)
    ptrag_sc.PTRAG.setup_anndata(adata, batch_key="batch", **LABELS)
    model = ptrag_sc.PTRAG(adata, n_candidates=3, n_hidden=8, n_layers=1)
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder)
    return model, adata[adata.obs["perturbation"] == "non-targeting"].copy(), folder


@pytest.mark.parametrize("adata", [True, 0, 1, "cells.h5ad", {"X": 1}])
def test_only_objects_with_cells_can_be_attached(made, adata):
    with pytest.raises(TypeError, match=r"is no AnnData or MuData\. Pass"):
        ptrag_sc.PTRAG.load(made[2], adata=adata)
    model = ptrag_sc.PTRAG.load(made[2], adata=False)
    for value in (adata, None, False):
        with pytest.raises(TypeError, match=r"Pass|Assign"):
            model.adata = value
    assert model.adata is None


def test_assigned_data_is_that_of_loading_with_it(made):
    _, controls, folder = made
    given = ptrag_sc.PTRAG.load(folder, adata=controls.copy())
    assigned = ptrag_sc.PTRAG.load(folder, adata=False)
    mine = controls.copy()
    assigned.adata = mine
    assert assigned.adata is mine
    name = str(given.candidates_[0])
    expected, found = (model.predict(perturbations=name, seed=1).X for model in (given, assigned))
    assert abs(expected - found).max() == 0
    assert assigned.registry["setup_args"] == given.registry["setup_args"]
    assert assigned.summary_stats == given.summary_stats
    other = controls[:30].copy()
    assigned.adata = other  # replaces the first one
    assert assigned.predict(perturbations=name).n_obs == 30


def test_a_saved_folder_says_what_it_was_set_up_with(made, tmp_path, capsys):
    model, _, folder = made
    found = ptrag_sc.PTRAG.load_registry(folder)
    for name in ("model_name", "setup_method_name", "scvi_version"):
        assert found[name] == model.registry[name]
    assert found["setup_args"].items() <= model.registry["setup_args"].items()
    assert found["setup_args"]["batch_key"] == "batch"
    assert BaseModelClass.load_registry(folder) == found  # as the helpers of scvi-tools' hub read it
    ptrag_sc.PTRAG.view_setup_args(folder)
    shown = capsys.readouterr().out
    assert "PTRAG.setup_anndata" in shown
    assert "'batch_key': 'batch'" in shown
    with pytest.raises(FileNotFoundError, match=r"Pass the folder given to save"):
        ptrag_sc.PTRAG.load_registry(tmp_path)


def test_the_hub_reads_its_metadata(made):
    metadata = HubMetadata.from_dir(made[2], anndata_version=version("anndata"))
    assert metadata.model_cls_name == "PTRAG"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": 1e-3}, TypeError, r"Argument 'lr' is not in the arguments of the trainer.*plan_kwargs=\{'lr': 0.001\}"),
        ({"compile": True}, TypeError, r"plan_kwargs=\{'compile': True\}"),
        ({"epochs": 3}, TypeError, r"closest: .*'max_epochs'.*scvi.train.Trainer"),
        ({"overfit_batches": 1}, ValueError, r"overfit_batches=1 .*limit_train_batches=1"),
    ],
)
def test_arguments_that_training_does_not_take(made, options, error, message):
    with pytest.raises(error, match=message):
        made[0].train(max_epochs=1, **options)
    assert not made[0].is_trained


def test_further_loggers_keep_the_history_and_a_summary_names_the_weights(made, tmp_path, caplog):
    model = ptrag_sc.PTRAG.load(made[2], adata=made[0].adata.copy())
    loggers = [CSVLogger(tmp_path / "a"), CSVLogger(tmp_path / "b")]
    options = {"accelerator": "cpu", "enable_progress_bar": False, "limit_train_batches": 1, "log_every_n_steps": 1}
    with caplog.at_level(logging.WARNING):
        model.train(max_epochs=2, logger=loggers, **options)
    assert len(model.history["train_loss"]) == 2
    assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()
    assert len(list(tmp_path.rglob("metrics.csv"))) == 2
    if model.kept_epoch_ is None:
        assert "Trained, weights as before training" in model.summary_string
    else:
        assert f"Trained, weights of epoch {model.kept_epoch_}" in model.summary_string
    assert "Not Trained" in made[0].summary_string


def test_a_remedy_is_an_argument_of_the_function_that_was_called(made):
    model = made[0]
    other = {"OTHER": model.tables_.embedding.vectors[0]}
    calls = (
        lambda: ptrag_sc.tl.perturb(model.adata, model, "NEW", gene_embedding=other),
        lambda: ptrag_sc.tl.perturb(model.adata, model, "NEW"),
        lambda: model.get_retrieval(perturbations="NEW", gene_embedding=other),
        lambda: ptrag_sc.tl.predict_effects(model.adata, model, "NEW", gene_embedding=other),
    )
    for call in calls:
        with pytest.raises(KeyError, match=r"'NEW' is not in .*Pass gene_embedding=") as caught:
            call()
        assert "aliases" not in str(caught.value)
        assert "missing=" not in str(caught.value)


def test_the_share_of_targets_that_change_is_told_with_advice(made):
    adata = made[0].adata
    ptrag_sc.tl.diagnose(adata)
    finding = adata.uns.pop("diagnose")["findings"].set_index("check").loc["target gene"]
    assert f"changes by two standard errors or more in {1 - finding['value']:.0%} of" in finding["message"]
    assert ("check the guides" in finding["message"]) == (finding["value"] > 0.2)
