"""How near does training on a GPU come to what the GPU can do?"""

import torch
from data_path import loader, screen_model
from measure import seconds
from torch.utils.flop_counter import FlopCounterMode

CEILING_SIZE = 8192


def matrix_ceiling(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the measured rate (FLOP/s) of one large matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds({"product": lambda: a @ b}, device)["product"]


def accelerator(device: torch.device, *, n_cells: int = 50_000, n_genes: int = 2000, size: int = CEILING_SIZE) -> list:
    """Return rows: step from the loader, from cached tensors, in bf16 and compiled, with rates and ceilings."""
    model = screen_model(n_cells, n_genes)
    epoch, plan = loader(model, device, batch_size=16, set_size=64)
    optimizer = torch.optim.AdamW(plan.parameters(), lr=5e-4)
    cached = [{name: x.to(device) for name, x in batch.items()} for batch in epoch()]
    full = [batch for batch in cached if len(batch["query"]) == 16]
    eager = plan.module

    def step(batch: dict, *, half: bool = False, compiled: bool = False) -> None:
        plan.module = fast if compiled else eager
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = plan.forward({name: x.to(device, non_blocking=True) for name, x in batch.items()})[2].loss
        loss.backward()
        optimizer.step()

    fast = torch.compile(eager)
    with FlopCounterMode(display=False) as counter:
        step(full[0])
    flop = counter.get_total_flops()

    def over(batches, **options) -> None:
        for batch in batches:
            step(batch, **options)

    ways = {
        "from the loader": lambda: over(epoch()),
        "cached tensors": lambda: over(cached),
        "cached, bf16": lambda: over(cached, half=True),
        "cached, compiled": lambda: over(cached, compiled=True),
        "cached, bf16, compiled": lambda: over(cached, half=True, compiled=True),
    }
    taken = {name: t / len(cached) for name, t in seconds(ways, device).items()}
    ceilings = {dtype: matrix_ceiling(device, dtype, size) for dtype in (torch.float32, torch.bfloat16)}
    n_cells = 2 * 16 * 64
    return [
        {
            "step": name,
            "ms": 1e3 * t,
            "cells/s": n_cells / t,
            "share of matrix ceiling": flop / t / ceilings[torch.bfloat16 if "bf16" in name else torch.float32],
        }
        for name, t in taken.items()
    ]
