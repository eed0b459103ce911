"""What do all tests share?"""

import importlib
import os
from pathlib import Path

import jaxtyping
import pytest

# Before torch, numpy and matplotlib are loaded, and for the processes that tests start. The tensors here are small:
# threads that wait for each other would only slow them down.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

# Of every call: a third of the time of a training with small tensors.
CHECKED = {"nn", "retrieval"}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Check the shapes of every call in the tests of the packages that have them, and where a test is marked so."""
    checked = item.path.parent.name in CHECKED or item.get_closest_marker("shapes") is not None
    jaxtyping.config.update("jaxtyping_disable", not checked)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with the real screens (``data/``) and the recorded arrays (``golden/``)."""
    folder = os.environ.get("PTRAG_SC_TEST_DATA")
    if not folder:
        pytest.skip("PTRAG_SC_TEST_DATA is unset: it names the folder that holds data/ and golden/")
    return Path(folder)


# The package is imported where a fixture makes something: the process that hands out the tests needs none of it.
@pytest.fixture
def screen():
    """A fresh screen that is set up, without a split."""
    from screens import set_up_screen

    return set_up_screen()


@pytest.fixture(scope="session", autouse=True)
def few_folds():
    """Intervals from three folds: after each training they would take the longest time. Their own tests undo this."""
    from ptrag_sc.data import _intervals

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_intervals, "MAX_FOLDS", 3)
        yield


@pytest.fixture(scope="session")
def trained():
    """A small trained model with its data; do not change either: it is looked at again when all tests are over."""
    from screens import fingerprint, set_up_screen, train_small

    model = train_small(set_up_screen())
    before = fingerprint(model)
    yield model
    assert fingerprint(model) == before, "a test changed the model that all share"


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module
