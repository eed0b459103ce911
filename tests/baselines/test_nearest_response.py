"""Are neighbours in the space of responses those of a slow search?"""

import numpy as np
import pytest

from baselines.oracles import predicted_shift, slow_response, slow_shifts, three_lines, unseen_line
from ptrag_sc.baselines import NearestPerturbations


def slow_neighbours(shifts, label, line, measured, k, temperature):
    """The k measured perturbations of highest cosine of responses: [(name, weight)]."""
    query, cosine = slow_response(shifts, label, line), {}
    for name in measured:
        response = slow_response(shifts, name, line)
        if name != label and response is not None:
            cosine[name] = response @ query / np.linalg.norm(response) / np.linalg.norm(query)
    best = sorted(cosine, key=cosine.get, reverse=True)[:k]
    weight = np.exp(np.array([cosine[name] for name in best]) / temperature)
    return dict(zip(best, weight / weight.sum(), strict=True))


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.2), (3, 0.2), (4, 0.05), (20, np.inf)])
@pytest.mark.parametrize(
    ("query", "line"), [("G1", "RPE1"), ("G4", "K562"), ("G0+G1", "RPE1"), ("G2+G3", "HepG2"), ("G4+G6", "K562")]
)
def test_equals_slow_neighbours(query, line, k, temperature):
    """Held out, measured, and combined queries; neighbours have a shift here and a response elsewhere."""
    adata = three_lines()
    shifts = slow_shifts(adata)
    expected = slow_neighbours(shifts, query, line, [p for p, t in shifts if t == line], k, temperature)
    options = {"space": "response", "n_neighbors": k, "temperature": temperature}
    fitted = NearestPerturbations(adata, **options).fit()
    shift = sum(w * shifts[name, line] for name, w in expected.items())
    np.testing.assert_allclose(predicted_shift(fitted, query, line), shift, atol=1e-5)
    table = fitted.predict(perturbations=query, cell_types=line).uns["ptrag"]["retrieval"]
    found = dict(zip(table["candidate"], table["weight"], strict=True))
    assert set(found) == set(expected)
    np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), atol=1e-4)


def test_an_unseen_cell_type_averages_over_cell_types():
    adata = three_lines()
    shifts = slow_shifts(adata)
    names = sorted({p for p, _ in shifts})
    neighbours = slow_neighbours(shifts, "G1", "Jurkat", names, 3, 0.2)
    everywhere = {n: np.mean([s for (p, _), s in shifts.items() if p == n], axis=0) for n in names}
    expected = sum(w * everywhere[name] for name, w in neighbours.items())
    fitted = NearestPerturbations(adata, space="response", n_neighbors=3).fit()
    np.testing.assert_allclose(predicted_shift(fitted, "G1", "Jurkat", unseen_line(adata)), expected, atol=1e-5)


@pytest.mark.parametrize("query", ["G7", "G4+G7"])
def test_a_query_without_response_is_answered_in_the_gene_embedding(query):
    adata = three_lines()
    spaces = [NearestPerturbations(adata, space=s, n_neighbors=2).fit() for s in ("response", "gene_embedding")]
    for line in ("K562", "RPE1"):
        by_response, by_embedding = (predicted_shift(fitted, query, line) for fitted in spaces)
        np.testing.assert_array_equal(by_response, by_embedding)
    in_new = [predicted_shift(fitted, query, "Jurkat", unseen_line(adata)) for fitted in spaces]
    np.testing.assert_array_equal(*in_new)


def test_one_cell_type_has_no_responses_elsewhere():
    adata = three_lines(lambda a: a[(a.obs["line"] == "K562").to_numpy()].copy())
    spaces = [NearestPerturbations(adata, space=s).fit() for s in ("response", "gene_embedding")]
    np.testing.assert_array_equal(*[predicted_shift(fitted, "G1", "K562") for fitted in spaces])


def test_own_shift_in_the_query_cell_type_plays_no_part():
    """What G4 does in K562 changes nothing that is said of G4 in K562."""

    def change(adata):
        adata.X[((adata.obs["gene"] == "G4") & (adata.obs["line"] == "K562")).to_numpy()] += 5
        return adata

    tables = []
    for adata in (three_lines(), three_lines(change)):
        fitted = NearestPerturbations(adata, space="response", n_neighbors=3, temperature=np.inf).fit()
        tables.append(fitted.predict(perturbations="G4", cell_types="K562").uns["ptrag"]["retrieval"])
    assert "G4" not in set(tables[0]["candidate"])
    assert set(tables[0]["candidate"]) == set(tables[1]["candidate"])


def test_unknown_space():
    with pytest.raises(ValueError, match=r"space= 'text' does not occur in the known values \(found: 'gene_embedding'"):
        NearestPerturbations(three_lines(), space="text")


def test_without_neighbours_that_have_a_response_the_gene_embedding_answers():
    """K562 has G0, which is the query, and G7, which no other cell type has."""

    def two_in_k562(adata):
        in_k562, kept = adata.obs["line"] == "K562", adata.obs["gene"].isin(["ctl", "G0", "G7"])
        adata.obs.loc[in_k562, "split"] = np.where(kept[in_k562], "train", "test")
        return adata

    adata = three_lines(two_in_k562)
    fitted = NearestPerturbations(adata, space="response").fit()
    np.testing.assert_allclose(predicted_shift(fitted, "G0", "K562"), slow_shifts(adata)["G7", "K562"], atol=1e-5)
