"""Is the screen opened without reading it, are genes those of training cells, and does the benchmark run end to end?"""

import functools
import hashlib
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

import ptrag_sc
from ptrag_sc.data import _reader
from ptrag_sc.datasets import replogle_nadig, select_training_genes

ROOT = Path(__file__).parents[2]
KEYS = {"perturbation_key": "gene", "control": "non-targeting", "cell_type_key": "cell_line"}
N_GENES, N_PERTURBATIONS = 90, 16


def published_layout(n_obs=1200, seed=0):
    """A small screen with the columns, dense matrices and labels of the published file, as counts."""
    rng = np.random.default_rng(seed)
    names = [f"GENE{i}" for i in range(N_PERTURBATIONS)]
    gene = rng.choice(["non-targeting", *names], n_obs, p=[0.25, *np.full(N_PERTURBATIONS, 0.75 / N_PERTURBATIONS)])
    line = rng.choice(["hepg2", "jurkat", "k562", "rpe1"], n_obs)
    effect = {name: rng.normal(size=N_GENES) * 0.5 for name in names} | {"non-targeting": np.zeros(N_GENES)}
    base = rng.normal(1, 1, N_GENES)
    rate = np.exp(base + np.stack([effect[g] for g in gene])) * rng.gamma(2, 0.5, (n_obs, 1))
    counts = rng.poisson(rate).astype(np.float32)
    obs = {"gene": pd.Categorical(gene), "cell_line": pd.Categorical(line), "gem_group": rng.integers(1, 4, n_obs)}
    adata = AnnData(counts, obs=pd.DataFrame(obs, index=[f"cell{i}" for i in range(n_obs)]))
    adata.var_names = [f"GENE{i}" for i in range(N_GENES)]
    adata.obsm["X_hvg"] = counts[:, :40]
    vectors = np.stack([effect[name] for name in names]) + rng.normal(size=(N_PERTURBATIONS, N_GENES)) * 0.2
    return adata, pd.DataFrame(vectors, index=names)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("replogle") / "replogle.h5ad"
    published_layout()[0].write_h5ad(path)
    return path


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def url(file, monkeypatch):
    """Address of the file on a server on this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(file.parent)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/replogle.h5ad"
    server.shutdown()
    server.server_close()
    thread.join()


def split(adata):
    ptrag_sc.pp.split(adata, **KEYS, holdout="pair", test_cell_type="hepg2", test_fraction=0.3, val_fraction=0.1)


def test_a_local_file_is_opened_and_not_read(file):
    adata = replogle_nadig(file)
    assert adata.isbacked
    assert isinstance(adata.X, h5py.Dataset)
    assert set(adata.obs["cell_line"]) == {"hepg2", "jurkat", "k562", "rpe1"}
    adata.file.close()


def test_a_download_is_checked_and_kept(file, url, tmp_path, monkeypatch):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    adata = replogle_nadig(url=url, sha256=digest, cache_dir=tmp_path)
    assert adata.shape == (1200, N_GENES)
    adata.file.close()
    monkeypatch.setattr(Handler, "do_GET", None)
    adata = replogle_nadig(url=url, sha256=f"sha256:{digest.upper()}", cache_dir=tmp_path)  # from the folder
    adata.file.close()


def test_nothing_is_downloaded_unchecked(url, tmp_path):
    with pytest.raises(ValueError, match=r"has no checksum known to ptrag_sc.*path=.*sha256="):
        replogle_nadig(url=url, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="hash"):
        replogle_nadig(url=url, sha256="0" * 64, cache_dir=tmp_path)
    with pytest.raises(OSError, match="could not be downloaded"):
        replogle_nadig(url=url.replace("replogle", "absent"), sha256="0" * 64, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wrong_file_is_named(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        replogle_nadig(tmp_path / "replogle.h5ad")
    with pytest.raises(ValueError, match="another SHA-256"):
        replogle_nadig(file, sha256="0" * 64)
    replogle_nadig(file, sha256=hashlib.sha256(file.read_bytes()).hexdigest()).file.close()
    (tmp_path / "c.h5ad").write_text("an error page")
    with pytest.raises(ValueError, match=r"c\.h5ad is no h5ad file, or is damaged"):
        replogle_nadig(tmp_path / "c.h5ad")
    adata, _ = published_layout(n_obs=60)
    adata.obs.drop(columns="gem_group").pipe(lambda obs: AnnData(adata.X, obs=obs)).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(KeyError, match="'gem_group'"):
        replogle_nadig(tmp_path / "a.h5ad")
    adata[adata.obs["gene"] != "non-targeting"].copy().write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(KeyError, match="'non-targeting'"):
        replogle_nadig(tmp_path / "b.h5ad")


@pytest.mark.parametrize("n_genes", [20, 45])
def test_genes_are_scanpys_choice_from_training_cells(file, monkeypatch, n_genes):
    monkeypatch.setattr(_reader, "BLOCK_BYTES", 40_000)
    backed = replogle_nadig(file)
    split(backed)
    chosen = select_training_genes(backed, counts=True, n_genes=n_genes)
    backed.file.close()
    whole = anndata.read_h5ad(file)
    whole.obs["split"] = backed.obs["split"]
    sc.pp.normalize_total(whole, target_sum=1e4)
    sc.pp.log1p(whole)
    seen = whole[whole.obs["split"] == "train"].copy()
    sc.pp.highly_variable_genes(seen, n_top_genes=n_genes)
    assert chosen.var_names.tolist() == seen.var_names[seen.var["highly_variable"]].tolist()
    assert sp.issparse(chosen.X)
    np.testing.assert_allclose(chosen.X.toarray(), whole[:, chosen.var_names].X, rtol=1e-5, atol=1e-6)
    assert (chosen.obs == whole.obs).all(axis=None)
    assert not chosen.obsm


def test_test_cells_have_no_say_in_the_choice():
    adata, _ = published_layout()
    split(adata)
    before = select_training_genes(adata, counts=True, n_genes=20).var_names.tolist()
    held_out = (adata.obs["split"] != "train").to_numpy()
    adata.X[np.flatnonzero(held_out)[:, None], np.arange(30)] *= np.arange(1, 31)
    assert select_training_genes(adata, counts=True, n_genes=20).var_names.tolist() == before
    adata.X[np.flatnonzero(~held_out)[::7][:, None], np.arange(30)] *= np.arange(1, 31)
    assert select_training_genes(adata, counts=True, n_genes=20).var_names.tolist() != before


def test_logged_values_are_kept_and_chosen_alike():
    adata, _ = published_layout()
    split(adata)
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    logged.X = sp.csr_matrix(logged.X)
    chosen = select_training_genes(logged, counts=False, n_genes=25)
    assert chosen.var_names.tolist() == select_training_genes(adata, counts=True, n_genes=25).var_names.tolist()
    assert (chosen.X != logged[:, chosen.var_names].X).nnz == 0
    assert select_training_genes(logged, counts=False, n_genes=10**6).n_vars == N_GENES


def test_genes_without_variance_come_last():
    adata, _ = published_layout()
    split(adata)
    adata.X[:, 5] = 0
    assert "GENE5" not in select_training_genes(adata, counts=True, n_genes=N_GENES - 1).var_names


def test_bad_input_is_refused():
    adata, _ = published_layout(n_obs=200)
    with pytest.raises(KeyError, match="'split'"):
        select_training_genes(adata, counts=True)
    adata.obs["split"] = "test"
    with pytest.raises(ValueError, match="no cell labelled 'train'"):
        select_training_genes(adata, counts=True)
    adata.obs["split"] = "train"
    with pytest.raises(ValueError, match=r"whole numbers.*counts=True"):
        select_training_genes(adata, counts=False)
    with pytest.raises(ValueError, match="n_genes"):
        select_training_genes(adata, counts=True, n_genes=0)
    logged = adata.copy()
    logged.X = np.log1p(adata.X)
    with pytest.raises(ValueError, match=r"fractions.*counts=False"):
        select_training_genes(logged, counts=True)
    logged.X = np.where(logged.X == 0, np.nan, logged.X)
    with pytest.raises(ValueError, match="NaN"):
        select_training_genes(logged, counts=False)
    adata.X[7] = 0
    with pytest.raises(ValueError, match=r"Cell 'cell7' .*no counts"):
        select_training_genes(adata, counts=True)


@pytest.mark.slow  # a process of its own
def test_the_benchmark_runs_from_file_to_table(file, tmp_path):
    _, vectors = published_layout()
    vectors.iloc[:-1].to_csv(tmp_path / "vectors.csv")  # one perturbed gene has no embedding
    command = [sys.executable, "-W", "ignore", "benchmarks/replogle_nadig.py", str(file), "--scale", "counts"]
    command += ["--embedding", str(tmp_path / "vectors.csv"), "--out", str(tmp_path / "out"), "--genes", "40"]
    command += ["--seeds", "2", "--retrieval", "gumbel", "--cells", "20"]
    command += ["--model", '{"n_candidates": 4, "n_hidden": 16, "n_layers": 1}']
    command += ["--train", '{"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": false, "logger": false}']
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads((tmp_path / "out" / "replogle_nadig.json").read_text(encoding="utf-8"))
    lost = f"GENE{N_PERTURBATIONS - 1}"
    for seed, screen in enumerate(result["screens"]):
        n_target = sum(screen["conditions"].values()) / 4
        assert (screen["seed"], screen["without_embedding"], screen["genes"]) == (seed, [lost], 40)
        assert screen["conditions"]["test"] == pytest.approx(0.3 * n_target, abs=2)
        assert screen["cells"] + screen["cells_left_out"] == 1200
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert set(scores["cell_type"]) == {"hepg2"}
    assert lost not in set(scores["perturbation"])
    assert {"PT-RAG, gumbel", "mean shift", "no effect", "additive", "split half"} <= set(scores["method"])
    wide = scores.pivot(index=["method", "seed", "truth", "perturbation"], columns="metric", values="value").dropna(
        subset="wasserstein_2"
    )
    np.testing.assert_allclose(wide["wasserstein_2 squared / 2"], wide["wasserstein_2"] ** 2 / 2)
    assert {"wasserstein_1", "wasserstein_2"} <= {row["metric"] for row in result["summary"]}
