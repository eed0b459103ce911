"""Does a training step ever wait for data, and how fast do whole populations come out?"""

import time

import scvi
import torch
from measure import clock, seconds
from torch import Tensor

from ptrag_sc import PTRAG, datasets
from ptrag_sc.data import CellSetDataset
from ptrag_sc.data._device_matrix import DeviceMatrix
from ptrag_sc.model._sets import training_sets
from ptrag_sc.model._training_plan import PTRAGTrainingPlan

KEYS = {"perturbation_key": "perturbation", "control": "non-targeting", "cell_type_key": "cell_type"}


def screen_model(n_cells: int, n_genes: int, *, n_perturbations: int = 100, **options) -> PTRAG:
    """Return an untrained model of a simulated screen."""
    scvi.settings.seed = 0
    adata = datasets.simulated(n_cells=n_cells, n_genes=n_genes, n_perturbations=n_perturbations, n_cell_types=3)
    PTRAG.setup_anndata(adata, **KEYS, batch_key="batch")
    return PTRAG(adata, **{"memory": None, **options})


def loader(model: PTRAG, device: torch.device, *, batch_size: int, set_size: int) -> tuple:
    """Return (function that yields mini-batches of an epoch as training gets them, training plan)."""
    screen = model.read(model.adata)
    labels, train, _ = training_sets(screen.index, model.split_, set_size=set_size, batch_size=batch_size, seed=0)
    table = model.query_table(labels, None)
    plan = PTRAGTrainingPlan(model.module, table=table).to(device)
    on_device = device.type == "cuda"
    dataset = CellSetDataset(DeviceMatrix(screen.reader, device) if on_device else screen.reader, with_target=True)

    def epoch():
        for sets in train:
            yield table.numbered(dataset[sets])

    return epoch, plan


def cells_in(batch: dict[str, Tensor]) -> int:
    """Return how many cells a mini-batch holds, controls and targets."""
    return int(batch["control_mask"].sum() + batch["target_mask"].sum())


def rates(device: torch.device, *, n_genes: int, batch_size: int, set_size: int) -> dict[str, float]:
    """Return cells per second: that the loader gives, that a training step takes, and that prediction gives."""
    model = screen_model(20_000, n_genes)
    model.module.to(device)
    epoch, plan = loader(model, device, batch_size=batch_size, set_size=set_size)
    batches = list(epoch())
    n_cells = sum(map(cells_in, batches))
    optimizer = torch.optim.AdamW(plan.parameters(), lr=5e-4)

    def train() -> None:
        for batch in batches[:4]:
            optimizer.zero_grad()
            plan.forward({name: x.to(device) for name, x in batch.items()})[2].loss.backward()
            optimizer.step()

    taken = seconds({"loader": lambda: list(epoch()), "training": train}, device)
    start, wall = clock(device), time.perf_counter()
    predicted = model.predict(perturbations=list(model.candidates_[:20]))
    spent, waited = clock(device) - start, time.perf_counter() - wall
    return {
        "loader (cells/s)": n_cells / taken["loader"],
        "training step (cells/s)": sum(map(cells_in, batches[:4])) / taken["training"],
        "prediction (cells/s)": predicted.n_obs / spent,
        "prediction (cells/s, wall)": predicted.n_obs / waited,
    }
