"""What would retrieval look like if it knew nothing?"""

import math

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ptrag_sc.retrieval._neighbours import Neighbours

SELECTED = 0.5  # share of cells with an open gate from which a candidate counts as selected


def random_neighbours(
    vectors: Float[Tensor, "Q D"],
    table: Float[Tensor, "P D"],
    own: Int[Tensor, " Q"],
    n_neighbours: int,
    keys: np.ndarray,
) -> Neighbours:
    """Return neighbours drawn at random, the query itself excluded, nearest first.

    Parameters
    ----------
    vectors, table, own, n_neighbours
        As in :func:`nearest_neighbours`.
    keys
        One number per query (Q,) that fixes its draw, whatever else is asked for.
    """
    rows = torch.zeros(len(vectors), n_neighbours, dtype=torch.long)
    present = torch.zeros(len(vectors), n_neighbours, dtype=torch.bool)
    for q, (itself, key) in enumerate(zip(own.tolist(), keys.tolist(), strict=True)):
        others = np.setdiff1d(np.arange(len(table)), [itself])
        drawn = np.random.default_rng(key).choice(others, min(n_neighbours, len(others)), replace=False)
        rows[q, : len(drawn)] = torch.from_numpy(drawn)
        present[q, : len(drawn)] = True
    rows = rows.to(table.device)
    present = present.to(table.device)
    similarity = (table[rows] @ vectors[..., None]).squeeze(-1).masked_fill(~present, -torch.inf)  # (Q, K)
    similarity, order = similarity.sort(dim=1, descending=True, stable=True)
    similarity = similarity.masked_fill(~torch.isfinite(similarity), 0.0)
    return Neighbours(rows.gather(1, order), present.gather(1, order), similarity[..., None])


def neighbours_only(table: pd.DataFrame) -> pd.DataFrame:
    """Return a retrieval table without what is known of the query itself and of its components.

    A table without the column ``role``, of an earlier version, marks these by a missing similarity.
    """
    if "role" in table:
        return table[table["role"] == "neighbour"]
    if "similarity" in table:
        return table[table["similarity"].notna()]
    return table


def shuffled_names(table: pd.DataFrame, candidates: np.ndarray, seed: int) -> pd.DataFrame:
    """Return a retrieval table whose candidates carry each other's names, as if embedding rows had been shuffled.

    Similarities, weights and selection stay: only what a candidate is, is lost. No query becomes its own candidate;
    what is known of it and of its components is left out.
    """
    table = neighbours_only(table)
    dealt = np.random.default_rng(seed).permutation(candidates)
    name = dict(zip(candidates.tolist(), dealt.tolist(), strict=True))
    new = [
        name[c] if name[c] != q else name.get(q, c)
        for c, q in zip(table["candidate"], table["perturbation"], strict=True)
    ]
    return table.assign(candidate=new)


def expected_jaccard(n_first: int, n_second: int, n_candidates: int) -> float:
    r"""Return the expected Jaccard index of two random draws from the same candidates.

    With draws of sizes a and b from K, the intersection i is hypergeometric and the index is
    :math:`E[i / (a + b - i)]`, exactly.

    Examples
    --------
    >>> round(expected_jaccard(10, 10, 32), 4)
    0.1917
    """
    if not n_first + n_second:
        return math.nan
    ways = math.comb(n_candidates, n_second)
    low, high = max(0, n_first + n_second - n_candidates), min(n_first, n_second)
    return sum(
        math.comb(n_first, i) * math.comb(n_candidates - n_first, n_second - i) / ways * i / (n_first + n_second - i)
        for i in range(low, high + 1)
    )


def cell_type_specificity(table: pd.DataFrame) -> pd.DataFrame:
    """Return how far cell types select the same candidates for a perturbation, beside chance.

    Parameters
    ----------
    table
        Retrieval table; a candidate counts as selected where at least half of the cells have its gate open. What is
        known of the query itself and of its components is left out.

    Returns
    -------
    Columns ``perturbation``, ``cell_type_1``, ``cell_type_2``, ``n_1``, ``n_2`` (selected), ``n_candidates``,
    ``jaccard`` (NaN where neither selects any) and ``chance``, its exact expectation for two random draws of these
    sizes from the same candidates. At chance, selection depends on the cell type as two coin tosses do; at 1 it does
    not depend on it at all.
    """
    rows, table = [], neighbours_only(table)
    for name, of_query in table.groupby("perturbation", sort=True):
        candidates = set(of_query["candidate"])
        kept = {
            t: set(part.loc[part["selected"] >= SELECTED, "candidate"])
            for t, part in of_query.groupby("cell_type", observed=True, sort=True)
        }
        types = list(kept)
        for i, first in enumerate(types):
            for second in types[i + 1 :]:
                a, b = kept[first], kept[second]
                jaccard = len(a & b) / len(a | b) if a | b else math.nan
                chance = expected_jaccard(len(a), len(b), len(candidates))
                rows.append((name, first, second, len(a), len(b), len(candidates), jaccard, chance))
    columns = ["perturbation", "cell_type_1", "cell_type_2", "n_1", "n_2", "n_candidates", "jaccard", "chance"]
    return pd.DataFrame(rows, columns=columns)
