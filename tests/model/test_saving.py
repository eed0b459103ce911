"""Does a saved model come back whole, with control cells only or no data, without executing anything?"""

import json
import subprocess
import sys

import anndata
import numpy as np
import pytest
import scvi
import torch
from mudata import MuData
from scvi.train import SaveCheckpoint

import ptrag_sc
from own_targets import targeted_screen
from ptrag_sc.model._sets import training_sets
from screens import KEYS, SMALL, TRAIN, make_screen, train_small

PREDICT = """
import sys, anndata, numpy as np, ptrag_sc
folder, cells, out = sys.argv[1:]
model = ptrag_sc.PTRAG.load(folder, anndata.read_h5ad(cells), accelerator="cpu")
np.save(out, model.predict(perturbations=["G0", "G1+G2"], counts=False).to_df().sort_index().to_numpy())
"""


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_model_of_a_screen_in_which_nothing_changes_is_loaded(tmp_path):
    """No direction of change at all: the memory is empty in one axis, and its scale is a number."""
    adata = make_screen()
    adata.X = np.full(adata.shape, 1.5, np.float32)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    model = ptrag_sc.PTRAG(adata, **{**SMALL, "memory": "response"})
    assert all(bool(tensor.isfinite().all()) for tensor in model.module.state_dict().values())
    model.save(tmp_path / "model")
    loaded = ptrag_sc.PTRAG.load(tmp_path / "model", adata, accelerator="cpu")
    assert (loaded.module.refiner.scale == 1).all()


@pytest.mark.slow  # a process of its own
def test_a_new_process_with_control_cells_predicts_the_same(trained, tmp_path):
    trained.save(tmp_path / "model")
    adata = make_screen()
    controls = adata[adata.obs["gene"] == "ctl"].copy()
    del controls.uns["gene_embedding"]
    controls.write_h5ad(tmp_path / "controls.h5ad")
    arguments = [str(tmp_path / name) for name in ("model", "controls.h5ad", "out.npy")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", PREDICT, *arguments], check=True, capture_output=True)
    expected = trained.predict(adata, perturbations=["G0", "G1+G2"], counts=False).to_df().sort_index()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)


def test_the_file_is_tensors_and_json(trained, tmp_path):
    trained.save(tmp_path)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert set(content) == {"tensors", "json", "digest", "attr_dict"}  # the last one is for the hub of scvi-tools
    assert all(isinstance(t, torch.Tensor) for t in content["tensors"].values())
    assert json.loads(content["json"])["keys"]["control"] == "ctl"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_without_data_everything_but_the_data_is_there(trained, tmp_path):
    trained.save(tmp_path)
    model = ptrag_sc.PTRAG.load(tmp_path, adata=False)
    for name, frame in trained.history.items():
        np.testing.assert_array_equal(model.history[name].to_numpy(dtype=float), frame.to_numpy(dtype=float))
    assert model.is_trained
    assert model.split_.equals(trained.split_)
    assert list(model.genes_) == list(trained.genes_)
    with pytest.raises(ValueError, match=r"was loaded without data. Pass adata"):
        model.predict(perturbations="G0")
    adata = make_screen()
    np.testing.assert_array_equal(
        model.predict(adata, perturbations="G0", counts=False).X,
        trained.predict(adata, perturbations="G0", counts=False).X,
    )


def test_data_is_saved_and_loaded_when_asked_for(trained, tmp_path):
    trained.save(tmp_path, save_anndata=True, prefix="a_")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_adata.h5ad", "a_model.pt"]
    model = ptrag_sc.PTRAG.load(tmp_path, prefix="a_")
    np.testing.assert_array_equal(
        model.predict(perturbations="G0", counts=False).X, trained.predict(perturbations="G0", counts=False).X
    )


def test_existing_files_are_kept_unless_asked(trained, tmp_path):
    (tmp_path / "model.pt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"exists. Pass overwrite=True"):
        trained.save(tmp_path)
    assert (tmp_path / "model.pt").read_text() == "mine"
    trained.save(tmp_path, overwrite=True)
    assert ptrag_sc.PTRAG.load(tmp_path, adata=False).is_trained


def test_a_file_in_place_of_the_folder_is_kept(trained, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"is a file. Pass the path of a folder"):
        trained.save(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_failed_write_leaves_the_old_file(trained, tmp_path, monkeypatch):
    trained.save(tmp_path)
    before = (tmp_path / "model.pt").read_bytes()

    def fail(content, path):
        path.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"disk full"):
        trained.save(tmp_path, overwrite=True)
    assert (tmp_path / "model.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_what_is_no_model_is_refused(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"was not found. Pass the folder given to save"):
        ptrag_sc.PTRAG.load(tmp_path, adata=False)
    torch.save({"state": torch.nn.Linear(1, 1)}, tmp_path / "model.pt")  # would execute code if unpickled
    with pytest.raises(ValueError, match=r"is not a ptrag_sc model"):
        ptrag_sc.PTRAG.load(tmp_path, adata=False)
    trained.save(tmp_path / "real")
    with pytest.raises(FileNotFoundError, match=r"was not saved with the model. Pass adata"):
        ptrag_sc.PTRAG.load(tmp_path / "real")

    class Other(ptrag_sc.PTRAG):
        pass

    with pytest.raises(ValueError, match=r"is a PTRAG, not a Other"):
        Other.load(tmp_path / "real", adata=False)


def test_a_loaded_model_trains_on(trained, tmp_path):
    trained.save(tmp_path)
    adata = make_screen()
    model = ptrag_sc.PTRAG.load(tmp_path, adata, accelerator="cpu")
    options = {"set_size": 12, "batch_size": 4, "accelerator": "cpu", "enable_progress_bar": False}
    model.train(2, **options)
    assert model.kept_epoch_ is not None
    assert model.n_epochs_ == len(model.history["train_loss"]) == len(trained.history["train_loss"]) + 2
    controls = ptrag_sc.PTRAG.load(tmp_path, adata[adata.obs["gene"] == "ctl"].copy(), accelerator="cpu")
    with pytest.raises(ValueError, match=r"holds no training condition"):
        controls.train(1, **options)


def test_loading_keeps_the_split_of_the_data(tmp_path):
    adata = make_screen()
    adata.obs["split"] = np.where(adata.obs["gene"] == "G7", "test", "train")
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, split_key="split")
    reference = ptrag_sc.metrics.Reference.from_adata(adata).centre
    ptrag_sc.PTRAG(adata, **SMALL).save(tmp_path)
    ptrag_sc.PTRAG.load(tmp_path, adata)
    np.testing.assert_array_equal(ptrag_sc.metrics.Reference.from_adata(adata).centre, reference)
    controls = adata[adata.obs["gene"] == "ctl"].copy()
    del controls.obs["split"]
    assert ptrag_sc.PTRAG.load(tmp_path, controls).adata is controls


def test_a_model_trains_on_with_some_of_its_cell_types(trained, tmp_path):
    trained.save(tmp_path)
    adata = make_screen()
    model = ptrag_sc.PTRAG.load(tmp_path, adata[adata.obs["line"] == "K562"].copy(), accelerator="cpu")
    _, train, _ = training_sets(model.read(model.adata).index, model.split_, set_size=4, batch_size=4, seed=0)
    expected = trained.split_[trained.split_["cell_type"] == "K562"]["split"].value_counts()
    assert len(train.query) == expected["train"]
    assert set(train.cell_type) == {0}
    model.train(1, **TRAIN)


def test_numpy_scalars_and_file_modes(tmp_path):
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    ptrag_sc.PTRAG(adata, **{**SMALL, "n_candidates": np.int64(4)}).save(tmp_path)
    assert ptrag_sc.PTRAG.load(tmp_path, adata=False).init_params_["n_candidates"] == 4
    (tmp_path / "plain").touch()
    assert (tmp_path / "model.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_backed_data_and_mudata_are_saved_too(tmp_path):
    make_screen().write_h5ad(tmp_path / "screen.h5ad")
    backed = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    ptrag_sc.PTRAG.setup_anndata(backed, **KEYS)
    model = ptrag_sc.PTRAG(backed, **SMALL)
    model.save(tmp_path / "backed", save_anndata=True)
    expected = model.predict(perturbations="G0", counts=False).X  # the object still reads its own file
    np.testing.assert_array_equal(
        ptrag_sc.PTRAG.load(tmp_path / "backed").predict(perturbations="G0", counts=False).X, expected
    )

    rna = make_screen()
    mdata = MuData({"rna": rna})
    names = ("layer", "perturbation_key", "cell_type_key", "embedding_key")
    ptrag_sc.PTRAG.setup_mudata(mdata, **KEYS, modalities=dict.fromkeys(names, "rna"))
    model = train_small(mdata, max_epochs=1)
    model.save(tmp_path / "mudata", save_anndata=True)
    loaded = ptrag_sc.PTRAG.load(tmp_path / "mudata")
    np.testing.assert_array_equal(
        loaded.predict(perturbations="G0", counts=False).X, model.predict(perturbations="G0", counts=False).X
    )
    ptrag_sc.tl.predict(mdata, model)


def test_a_model_saved_by_a_checkpoint_knows_its_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(scvi.settings, "logging_dir", tmp_path)
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    model = ptrag_sc.PTRAG(adata, **SMALL)
    model.train(2, **TRAIN)
    saver = SaveCheckpoint(dirpath=tmp_path / "saved", monitor="validation_loss", save_top_k=-1)
    model.train(3, **TRAIN, check_val_every_n_epoch=1, callbacks=saver, enable_checkpointing=True)
    assert list(model.history["train_loss"].index) == [0, 1, 2, 3, 4]
    found = {}
    for folder in (tmp_path / "saved").iterdir():
        if folder.is_dir():
            saved = ptrag_sc.PTRAG.load(folder, adata, accelerator="cpu")
            found[saved.kept_epoch_] = saved.n_epochs_, list(saved.history["validation_loss"].index)
    assert found == {2: (3, [1, 2]), 3: (4, [1, 2, 3]), 4: (5, [1, 2, 3, 4])}


def test_own_effects_and_intervals_are_saved(tmp_path):
    """Also without data: what targets do, smooth and as counts, and how sure that is."""
    adata = targeted_screen()
    adata.obs.loc[(adata.obs["gene"] == "G6").to_numpy(), "split"] = "val"
    model = ptrag_sc.PTRAG(adata, **{**SMALL, "memory": "response"})
    model.train(1, **TRAIN)
    assert all(share < -0.1 for share in model.own_effects_.shares.values())
    assert set(model.own_effects_.shares) == {"K562", "RPE1"}
    assert len(model.own_effects_.alone) == 2 * 7  # G6 is not for training
    model.save(tmp_path)
    again = ptrag_sc.PTRAG.load(tmp_path, adata=False, accelerator="cpu")
    assert (again.own_effects_.shares, again.own_effects_.pooled) == (
        model.own_effects_.shares,
        model.own_effects_.pooled,
    )
    assert again.own_effects_.alone.equals(model.own_effects_.alone)
    assert again.effect_errors_.to_json() == model.effect_errors_.to_json()
    asked = {"perturbations": ["G2", "G6", "G1+G3"]}
    for counts in (False, True):
        first, second = (m.predict(adata, **asked, counts=counts).to_df().to_numpy() for m in (model, again))
        np.testing.assert_array_equal(first, second)
