"""What is asked in one call, and which candidates bear on each question?"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ptrag_sc.retrieval._neighbours import Neighbours, nearest_neighbours
from ptrag_sc.retrieval._null import random_neighbours
from ptrag_sc.retrieval._recall import (
    Evidence,
    Recall,
    component_evidence,
    neighbour_evidence,
    own_evidence,
    text_evidence,
)
from ptrag_sc.retrieval._spaces import memory_neighbours
from ptrag_sc.retrieval._view import MemoryView


class QueryTable(NamedTuple):
    """The perturbations of one training or of one call; row 0 is the control: a zero vector with nothing retrieved.

    With a memory a condition is a query in one of the V cell types of the view: row ``query * V + cell_type`` of C.
    Without one the condition is the query.
    """

    vectors: Float[Tensor, "Q D"]  # gene embedding
    row: Int[Tensor, " Q"]  # of the query itself among the candidates, or -1
    components: Int[Tensor, "Q M"]  # rows of the components of a combination, padded with -1; M is 0 without a memory
    neighbours: Neighbours  # of C conditions
    host_rows: np.ndarray  # (C, J) rows of all places of a condition, on the host; J = 1 + M + K, or K
    view: MemoryView | None = None
    targets: np.ndarray | None = None  # (Q, G) which genes each query targets, on the host; in training only
    keys: Float[Tensor, "P H"] | None = None  # encoded candidates, where weights are not being trained

    def condition(self, query: Int[Tensor, " B"], cell_type: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return the row of each query in a cell type among the conditions."""
        if self.view is None:
            return query
        return query * len(self.view.mean) + cell_type

    def numbered(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add to a mini-batch the distinct candidates of its sets, found on the host: the device never waits for them.

        Returns
        -------
        dict
            The mini-batch with ``rows`` (U,) and, for every place of its B sets, the position in ``rows``: ``slots``
            (B, J). Where the table knows them, also ``targets`` (B, G): the genes that each set's perturbation targets.
        """
        condition = self.condition(batch["query"], batch["cell_type"])
        rows, slots = np.unique(self.host_rows[condition.numpy()], return_inverse=True)
        shape = len(condition), self.host_rows.shape[1]
        numbered = {**batch, "rows": torch.from_numpy(rows), "slots": torch.from_numpy(slots.reshape(shape))}
        if self.targets is not None:
            numbered["targets"] = torch.from_numpy(self.targets[batch["query"].numpy()])
        return numbered

    def recall(self, query: Int[Tensor, " B"], cell_type: Int[Tensor, " B"]) -> Recall:
        """Return all that is known for B sets."""
        found = self.neighbours.take(self.condition(query, cell_type))
        vectors = self.vectors[query]  # (B, D)
        if self.view is None:
            neighbours = text_evidence(found)
            nothing = Evidence(*(field[:, :0] for field in neighbours))
            return Recall(vectors, vectors.new_zeros(len(query), 0), nothing, nothing, neighbours)
        is_perturbed = (query > 0).to(vectors.dtype)[:, None]
        return Recall(
            vectors=vectors,
            mean=self.view.mean[cell_type] * is_perturbed,
            own=own_evidence(self.view, self.row[query], cell_type),
            components=component_evidence(self.view, self.components[query], cell_type),
            neighbours=neighbour_evidence(self.view, found, cell_type),
        )

    def to(self, device: torch.device) -> "QueryTable":
        """Return the table on a device; ``host_rows`` stays on the host."""
        if self.vectors.device == device:
            return self
        view, keys = self.view, self.keys
        if view is not None:
            view = MemoryView(*(field.to(device) for field in view))
        if keys is not None:
            keys = keys.to(device)
        return QueryTable(
            self.vectors.to(device),
            self.row.to(device),
            self.components.to(device),
            Neighbours(*(field.to(device) for field in self.neighbours)),
            self.host_rows,
            view,
            self.targets,
            keys,
        )


def make_query_table(
    vectors: Float[Tensor, "Q D"],
    table: Float[Tensor, "P D"],
    own: Int[Tensor, " Q"],
    n_neighbours: int,
    *,
    view: MemoryView | None = None,
    components: Int[Tensor, "Q M"] | None = None,
    hidden: Int[Tensor, "Q E"] | None = None,
    random_keys: np.ndarray | None = None,
) -> QueryTable:
    """Return the query table of one call: the control in row 0, then the given queries with their neighbours.

    Parameters
    ----------
    vectors, table, own, n_neighbours
        As in :func:`nearest_neighbours`. With ``n_neighbours=0`` nothing at all is retrieved.
    view
        The memory, if there is one.
    components
        Rows of the components of each query in ``table``, padded with -1; all -1 where one is not in it. None:
        there are no combinations, or no memory.
    hidden
        Rows of ``table`` that a query must not retrieve, padded with -1; not for neighbours drawn at random.
    random_keys
        One number per query (Q,): neighbours are drawn at random, fixed by it. None: the nearest.
    """
    if components is None or n_neighbours == 0:
        components = own.new_zeros(len(own), 0)
    if hidden is None:
        hidden = own.new_zeros(len(own), 0)
    row = own if n_neighbours else torch.full_like(own, -1)
    if view is not None:
        found = memory_neighbours(
            vectors, table, own, n_neighbours, view, components=components, hidden=hidden, random_keys=random_keys
        )
        neighbours = _below(len(view.mean), found)
    elif random_keys is not None:
        neighbours = _below(1, random_neighbours(vectors, table, own, n_neighbours, random_keys))
    else:
        others = torch.cat([own[:, None], hidden], dim=1)  # (Q, 1 + E)
        neighbours = _below(1, nearest_neighbours(vectors, table, others, n_neighbours))
    queries = QueryTable(
        vectors=torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors]),
        row=torch.cat([row.new_full((1,), -1), row]),
        components=torch.cat([components.new_full((1, components.shape[1]), -1), components]),
        neighbours=neighbours,
        host_rows=np.zeros((0, 0), dtype=np.int64),
        view=view,
    )
    return queries._replace(host_rows=_all_rows(queries))


def _all_rows(table: QueryTable) -> np.ndarray:
    """Return the rows of all places of every condition (C, J), 0 where absent."""
    rows = table.neighbours.rows
    if table.view is not None:
        n_types = len(table.view.mean)
        query = torch.arange(len(table.row), device=rows.device).repeat_interleave(n_types)  # (C,)
        cell_type = torch.arange(n_types, device=rows.device).repeat(len(table.row))  # (C,)
        own = own_evidence(table.view, table.row[query], cell_type)
        components = component_evidence(table.view, table.components[query], cell_type)
        rows = torch.cat([own.rows, components.rows, rows], dim=1)
    return rows.cpu().numpy()


def _below(n_rows: int, neighbours: Neighbours) -> Neighbours:
    """Return neighbours below rows of nothing: those of the control."""
    return Neighbours(*(torch.cat([field.new_zeros(n_rows, *field.shape[1:]), field]) for field in neighbours))
