"""What do all tests share?"""

import os
from pathlib import Path

import matplotlib
import pytest
import torch
from anndata import AnnData

import ptrag_sc
from screens import KEYS, make_screen, train_small

matplotlib.use("Agg")
torch.set_num_threads(1)  # the tensors here are small: threads that wait for each other would only slow them down


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with the real screens (``data/``) and the recorded arrays (``golden/``)."""
    folder = os.environ.get("PTRAG_SC_TEST_DATA")
    if not folder:
        pytest.skip("PTRAG_SC_TEST_DATA is unset: it names the folder that holds data/ and golden/")
    return Path(folder)


@pytest.fixture
def screen() -> AnnData:
    """A fresh screen that is set up, without a split."""
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    return adata


@pytest.fixture(scope="session")
def trained() -> ptrag_sc.PTRAG:
    """A small trained model with its data; do not change either."""
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    return train_small(adata)
