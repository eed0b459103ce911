"""Which files and which model do the tests of commands share?"""

import pytest

TRAINING = ("--normalize", "--batch-key", "batch", "--max-epochs", "2", "--val-fraction", "0.2", "--accelerator", "cpu")


@pytest.fixture(scope="session")
def screen_file(tmp_path_factory):
    """Counts of a small screen; do not change the file."""
    from command_line import count_screen

    path = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    count_screen().write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def trained_model(screen_file, tmp_path_factory):
    """The folder and the output of one run of ``train``."""
    from command_line import run
    from ptrag_sc._cli import _results

    folder = tmp_path_factory.mktemp("run") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_results, "DPI", 30)  # large pictures take seconds
        status, out, err = run("train", screen_file, "--out", folder, *TRAINING)
    assert status == 0, err
    return folder, out


@pytest.fixture(scope="session")
def virtual_file(screen_file, trained_model, tmp_path_factory):
    """Virtual cells of two perturbations, with the tables beside them."""
    from command_line import run

    path = tmp_path_factory.mktemp("predicted") / "virtual.h5ad"
    tables = "--effects", path.with_name("effects.csv"), "--support", path.with_name("support.csv")
    asked = "--perturbations", "GENE0002,GENE0005", "--n-cells", "20"
    status, out, err = run("predict", trained_model[0], screen_file, "--normalize", *asked, "--out", path, *tables)
    assert status == 0, err
    return path, out


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory: nothing may be written into it."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert not list((tmp_path / "cwd").iterdir())
