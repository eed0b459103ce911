"""Is the null error 0 in expectation for what changes nothing, and visible for what does?"""

import numpy as np
import pytest

import ptrag_sc
from ptrag_sc.baselines import NoEffect
from ptrag_sc.benchmark import null_error
from screens import KEYS, make_screen, train_small


@pytest.fixture(scope="module")
def screen():
    adata = make_screen(n_obs=1200)
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS, batch_key="gem")
    return adata, ptrag_sc.metrics.Reference.from_adata(adata)


def test_a_trained_model_leaves_controls_exactly_alone(screen):
    adata, reference = screen
    table = null_error(adata, train_small(adata, max_epochs=3), reference=reference)
    assert table["cell_type"].tolist() == ["K562", "RPE1"]
    np.testing.assert_allclose(table["value"], table["floor"], atol=1e-5)


def test_halves_of_one_population_are_0_in_expectation(screen):
    adata, reference = screen
    values = [null_error(adata, NoEffect(adata).fit(), reference=reference, seed=s)["value"] for s in range(40)]
    values = np.array(values)
    assert (abs(values.mean(0)) < 4 * values.std(0) / 40**0.5).all()


def test_a_model_that_moves_controls_is_seen(screen):
    adata, reference = screen

    class Moving(NoEffect):
        def predict_batch(self, *args, **kwargs):
            predicted = super().predict_batch(*args, **kwargs)
            return predicted._replace(cells=predicted.cells + 1)

    table = null_error(adata, Moving(adata).fit(), reference=reference)
    assert (table["value"] > table["floor"] + 1).all()
