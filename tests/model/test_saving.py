"""Does a saved model come back whole, with control cells only or no data, without executing anything?"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import ptrag_sc
from screens import make_screen

PREDICT = """
import sys, anndata, numpy as np, ptrag_sc
folder, cells, out = sys.argv[1:]
model = ptrag_sc.PTRAG.load(folder, anndata.read_h5ad(cells), accelerator="cpu")
np.save(out, model.predict(perturbations=["G0", "G1+G2"]).to_df().sort_index().to_numpy())
"""


def test_a_new_process_with_control_cells_predicts_the_same(trained, tmp_path):
    trained.save(tmp_path / "model")
    adata = make_screen()
    controls = adata[adata.obs["gene"] == "ctl"].copy()
    del controls.uns["gene_embedding"]
    controls.write_h5ad(tmp_path / "controls.h5ad")
    arguments = [str(tmp_path / name) for name in ("model", "controls.h5ad", "out.npy")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", PREDICT, *arguments], check=True, capture_output=True)
    expected = trained.predict(adata, perturbations=["G0", "G1+G2"]).to_df().sort_index()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)


def test_the_file_is_tensors_and_json(trained, tmp_path):
    trained.save(tmp_path)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert set(content) == {"tensors", "json"}
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
        model.predict(adata, perturbations="G0").X, trained.predict(adata, perturbations="G0").X
    )


def test_data_is_saved_and_loaded_when_asked_for(trained, tmp_path):
    trained.save(tmp_path, save_anndata=True, prefix="a_")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_adata.h5ad", "a_model.pt"]
    model = ptrag_sc.PTRAG.load(tmp_path, prefix="a_")
    np.testing.assert_array_equal(model.predict(perturbations="G0").X, trained.predict(perturbations="G0").X)


def test_existing_files_are_kept_unless_asked(trained, tmp_path):
    (tmp_path / "model.pt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"exists. Pass overwrite=True"):
        trained.save(tmp_path)
    assert (tmp_path / "model.pt").read_text() == "mine"
    trained.save(tmp_path, overwrite=True)
    assert ptrag_sc.PTRAG.load(tmp_path, adata=False).is_trained


def test_a_failed_write_leaves_the_old_file(trained, tmp_path, monkeypatch):
    trained.save(tmp_path)
    before = (tmp_path / "model.pt").read_bytes()

    def fail(content, path):
        path.write_bytes(b"half")
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
    assert len(model.history["train_loss"]) == len(trained.history["train_loss"]) + 2
    controls = ptrag_sc.PTRAG.load(tmp_path, adata[adata.obs["gene"] == "ctl"].copy(), accelerator="cpu")
    with pytest.raises(ValueError, match=r"holds no training condition"):
        controls.train(1, **options)
