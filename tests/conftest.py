"""What do all tests share?"""

import os
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with the real screens (``data/``) and the recorded arrays (``golden/``)."""
    folder = os.environ.get("PTRAG_SC_TEST_DATA")
    if not folder:
        pytest.skip("PTRAG_SC_TEST_DATA is unset: it names the folder that holds data/ and golden/")
    return Path(folder)
