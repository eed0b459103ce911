"""What does a memory of responses cost?

``python benchmarks/memory.py`` builds the memory of 5,000 perturbations x 4 cell types x 2,000 genes from a million
cells (random values, one in ten not zero), and compares training steps with and without a memory of that size. Seconds
are processor time of one thread. It prints a table each and, last, one JSON line.
"""

import argparse
import json
import resource
import time

import numpy as np
import torch
from measure import machine, module_params, seconds, table
from scipy.sparse import csr_matrix
from torch.nn import functional as F

from ptrag_sc.data import CellReader, ConditionIndex, control_means, leading_directions, mean_shifts_and_spread
from ptrag_sc.model._module import PTRAGModule
from ptrag_sc.model._tables import MEMORY_DIRECTIONS, N_DIRECTIONS
from ptrag_sc.model._training_plan import PTRAGTrainingPlan
from ptrag_sc.retrieval import ResponseMemory, build_memory, make_query_table, view_memory

N_CONTROLS = 0.05  # share of the cells
DENSITY = 0.1
SETS, CELLS, CANDIDATES, WIDTH = 16, 64, 64, 384


def random_screen(
    n_cells: int, n_genes: int, n_perturbations: int, n_cell_types: int
) -> tuple[CellReader, ConditionIndex]:
    """Return a screen of random values."""
    rng = np.random.default_rng(0)
    per_row = int(n_genes * DENSITY)
    columns = np.concatenate([rng.integers(0, n_genes, (10_000, per_row), dtype=np.int32) for _ in range(1)])
    columns = np.sort(columns, axis=1)[rng.integers(0, 10_000, n_cells)].ravel()
    values = rng.random(n_cells * per_row, dtype=np.float32)
    matrix = csr_matrix((values, columns, np.arange(n_cells + 1) * per_row), shape=(n_cells, n_genes))
    condition = rng.permutation(n_cells) % (n_perturbations * n_cell_types)
    control = rng.random(n_cells) < N_CONTROLS
    names = np.array([f"P{i:05d}" for i in range(n_perturbations)] + ["ctl"])
    perturbation = names[np.where(control, n_perturbations, condition // n_cell_types)]
    cell_type = (condition % n_cell_types).astype(str)
    batch = rng.integers(0, 10, n_cells).astype(str)
    return CellReader(matrix), ConditionIndex.from_labels(perturbation, cell_type, batch, control="ctl")


def built(reader: CellReader, index: ConditionIndex) -> ResponseMemory:
    """Return the memory of all conditions."""
    controls, conditions = control_means(reader, index), index.conditions
    shifts, spread = mean_shifts_and_spread(reader, index, conditions, controls)
    directions, _ = leading_directions(shifts.shift, MEMORY_DIRECTIONS)
    row = np.searchsorted(np.unique(conditions["perturbation"]), conditions["perturbation"])
    shape = int(row.max()) + 1, len(index.cell_types)
    arrays = {"controls": controls.cell_type, "directions": directions}
    return build_memory(row, conditions["cell_type"].to_numpy(), shape, shifts=shifts, spread=spread, **arrays)


def step(memory: ResponseMemory | None, vectors: torch.Tensor, basis: torch.Tensor, n_types: int):
    """Return a training step of the real plan."""
    params = module_params(memory="response" if memory is not None else None)
    torch.manual_seed(0)
    module, options = PTRAGModule(vectors, basis, params, memory), {}
    if memory is not None:
        options = {
            "view": view_memory(memory, torch.arange(n_types), memory.controls, 0.0),
            "components": torch.zeros(len(vectors), 0, dtype=torch.long),
        }
    table = make_query_table(vectors, vectors, torch.arange(len(vectors)), CANDIDATES, **options)
    plan = PTRAGTrainingPlan(module, table=table).train()
    optimizer = torch.optim.AdamW(plan.parameters(), lr=5e-4)
    mask = torch.ones(SETS, CELLS, dtype=torch.bool)
    cells = {name: torch.rand(SETS, CELLS, basis.shape[1]) for name in ("control_cells", "target_cells")}
    numbers = {"query": torch.randint(1, len(vectors) + 1, (SETS,)), "cell_type": torch.randint(0, n_types, (SETS,))}
    batch = {**cells, **numbers, "control_mask": mask, "target_mask": mask}

    def train() -> None:
        optimizer.zero_grad()
        plan.forward(table.numbered(batch))[2].loss.backward()
        torch.nn.utils.clip_grad_norm_(plan.parameters(), 10.0)
        optimizer.step()

    return train


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--perturbations", type=int, default=5000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n_genes, n_types = 2000, 4
    reader, index = random_screen(arguments.cells, n_genes, arguments.perturbations, n_types)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, (time.perf_counter(), time.process_time())
    memory = built(reader, index)
    wall, taken = time.perf_counter() - start[0], time.process_time() - start[1]
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    size = sum(tensor.nbytes for tensor in memory) / 2**20
    building = {"wall (s)": wall, "processor (s)": taken, "beyond the data (MiB)": peak, "memory (MiB)": size}
    print(table([{name: f"{value:.1f}" for name, value in building.items()}]))
    vectors = F.normalize(torch.randn(len(memory.entries), WIDTH), dim=1)
    basis = memory.directions[:N_DIRECTIONS]
    ways = {"without": None, "with": memory}
    taken = seconds({n: step(m, vectors, basis, n_types) for n, m in ways.items()}, torch.device("cpu"), repeats=9)
    print(table([{"memory": name, "training step (ms)": f"{1e3 * value:.0f}"} for name, value in taken.items()]))
    ratio = taken["with"] / taken["without"]
    print(json.dumps({"machine": machine(torch.device("cpu")), "building": building, "steps": taken, "ratio": ratio}))


if __name__ == "__main__":
    main()
