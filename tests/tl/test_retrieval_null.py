"""Does a chance retrieval go through the same model, and is it kept beside the retrieval?"""

import numpy as np
import pandas as pd
import pytest

import ptrag_sc
from ptrag_sc.retrieval import cell_type_specificity
from screens import KEYS, SMALL, make_screen


@pytest.fixture(scope="module")
def setup():
    adata = make_screen()
    ptrag_sc.PTRAG.setup_anndata(adata, **KEYS)
    return adata, ptrag_sc.PTRAG(adata, **SMALL)


def test_the_null_is_written_beside_the_retrieval(setup):
    adata, model = setup
    ptrag_sc.tl.retrieval(adata, model, null="random", seed=1)
    written = adata.uns["ptrag"]
    assert set(written) == {"params", "candidates", "retrieval", "retrieval_null", "specificity"}
    real, null = written["retrieval"], written["retrieval_null"]
    assert list(real) == list(null)
    assert len(real) == len(null)
    assert not real["candidate"].equals(null["candidate"])
    assert (null["candidate"].astype(str) != null["perturbation"].astype(str)).all()
    # The similarity of the nearest is never below that of a random draw.
    nearest, drawn = (t.groupby(["perturbation", "cell_type"])["similarity"].max() for t in (real, null))
    assert (nearest >= drawn - 1e-6).all()
    ptrag_sc.tl.retrieval(adata, model)
    assert "retrieval_null" not in adata.uns["ptrag"]
    pd.testing.assert_frame_equal(adata.uns["ptrag"]["retrieval"], real)


def test_an_untrained_model_opens_every_gate_for_any_candidate(setup):
    adata, model = setup
    table = model.get_retrieval(adata, null="random")
    assert (table["selected"] == 1).all()
    specific = cell_type_specificity(table)
    assert (specific["jaccard"] == 1).all()
    assert (specific["chance"] == 1).all()


def test_a_random_draw_does_not_depend_on_the_call(setup):
    adata, model = setup
    both = model.get_retrieval(adata, perturbations=["G0", "G1"], null="random", seed=4)
    one = model.get_retrieval(adata, perturbations="G1", cell_types="RPE1", null="random", seed=4)
    again = both[(both["perturbation"] == "G1") & (both["cell_type"] == "RPE1")].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, again)
    other = model.get_retrieval(adata, perturbations="G1", cell_types="RPE1", null="random", seed=5)
    assert not np.array_equal(one["candidate"], other["candidate"])


def test_an_unknown_null_is_refused(setup):
    adata, model = setup
    with pytest.raises(ValueError, match="null= 'chance' does not occur in get_retrieval"):
        ptrag_sc.tl.retrieval(adata, model, null="chance")
