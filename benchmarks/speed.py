"""What do a training step and a prediction cost, and how much of it is refinement?

``python benchmarks/speed.py`` prints tables and, last, one JSON line: seconds and peak memory of a training step and of
a prediction for retrieval ``none``, ``attention``, ``gumbel``, with the default generator and with a generator of the
published width (also frozen, as observed in the published code), and for the published order of operations
(:mod:`published_order`) at the same sizes in the same run;
then the refinement stage alone, the loader and the prediction of whole populations. Medians of five; on a CPU seconds
are processor seconds of one thread, on an accelerator (``--device cuda``) wall seconds.

``--growth`` adds sweeps (many minutes) over candidates per query, cells per set, rows of the candidate table, and cells
of the screen, with log-log slopes and a figure.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerator import accelerator
from data_path import rates
from measure import machine, module_params, peak_mib, seconds, table
from published.module import LlamaStack, PublishedParams, PublishedSizes, published_energy_distance
from published_order import PublishedOrder
from torch import Tensor, nn

from ptrag_sc.model._module import PTRAGModule
from ptrag_sc.model._training_plan import PTRAGTrainingPlan
from ptrag_sc.nn import Refined
from ptrag_sc.retrieval import QueryTable, make_query_table

RETRIEVAL = ("none", "attention", "gumbel")


@dataclass(frozen=True)
class Sizes:
    """B sets of S cells with G genes; K of P candidates with embeddings of width D; N_QUERIES queries."""

    sets: int = 16
    cells: int = 64
    genes: int = 2000
    embedding: int = 1536
    hidden: int = 128
    candidates: int = 32
    layers: int = 8
    table: int = 2000
    queries: int = 2000
    rank: int = 30


class PublishedWidth(nn.Module):
    """A generator of the published width (12 heads of 58, SwiGLU of 2,784) behind the refinement of this package."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        published = PublishedSizes(sizes.genes, sizes.embedding, sizes.hidden, sizes.layers)
        self.stack = LlamaStack(published, PublishedParams("ptrag"))
        self.project = nn.Linear(sizes.hidden, sizes.genes)

    def forward(self, basal: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Return the change of every cell."""
        return self.project(self.stack(context, mask) + basal)


def random_table(sizes: Sizes) -> Tensor:
    """Return unit rows (P, D)."""
    torch.manual_seed(0)
    return nn.functional.normalize(torch.randn(sizes.table, sizes.embedding), dim=1)


def random_queries(vectors: Tensor, sizes: Sizes) -> QueryTable:
    """Return the query table of the first perturbations of the candidate table."""
    return make_query_table(vectors[: sizes.queries], vectors, torch.arange(sizes.queries), sizes.candidates)


def random_batch(sizes: Sizes, device: torch.device) -> dict[str, Tensor]:
    """Return a mini-batch as the loader gives it, cells already on the device."""
    torch.manual_seed(1)
    shape, mask = (sizes.sets, sizes.cells, sizes.genes), torch.ones(sizes.sets, sizes.cells, dtype=torch.bool)
    cells = {name: torch.rand(shape, device=device) for name in ("control_cells", "target_cells")}
    query = torch.randint(1, sizes.queries + 1, (sizes.sets,))
    masks = {name: mask.to(device) for name in ("control_mask", "target_mask")}
    return {**cells, **masks, "query": query, "cell_type": torch.zeros_like(query)}


def make_module(retrieval: str, sizes: Sizes, vectors: Tensor, *, published_width: bool) -> PTRAGModule:
    """Return an untrained module of this package."""
    params = module_params(retrieval=retrieval, memory=None, n_hidden=sizes.hidden, n_layers=sizes.layers)
    module = PTRAGModule(vectors, torch.randn(sizes.rank, sizes.genes), params)
    if published_width:
        module.generator = PublishedWidth(sizes)
    return module


def steps(module: PTRAGModule, queries: QueryTable, batch: dict[str, Tensor], device: torch.device, **options) -> tuple:
    """Return (training step, prediction) of a module: the real training plan, and what ``predict`` runs."""
    plan = PTRAGTrainingPlan(module, table=queries, **options).to(device)
    optimizer = torch.optim.AdamW(plan.parameters(), lr=5e-4)

    def train(autocast: bool = False) -> None:
        plan.train()
        prepared = {name: x.to(device) for name, x in queries.numbered(batch).items()}
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = plan.forward(prepared)[2].loss
        loss.backward()
        nn.utils.clip_grad_norm_(plan.parameters(), 10.0)
        optimizer.step()

    table = queries.to(device)
    if module.reads_keys:
        with torch.no_grad():
            table = table._replace(keys=module.encode_keys())

    @torch.no_grad()
    def predict() -> None:
        module.eval()
        recall = table.recall(batch["query"].to(device), batch["cell_type"].to(device))
        inputs = module._get_inference_input(batch)
        inferred = module.inference(**inputs, recall=recall, keys=table.keys, slots=recall.joined.rows)
        module.generative(**module._get_generative_input(batch, inferred))

    return train, predict


def published_steps(module: PublishedOrder, batch: dict[str, Tensor], sizes: Sizes, device: torch.device) -> tuple:
    """Return (training step, prediction) in the published order of operations."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-4)
    own = (batch["query"] - 1).to(device)

    def cells() -> tuple[Tensor, Refined]:
        inferred = module.inference(batch["control_cells"], own, sizes.candidates)
        context = inferred["refined"].context
        return module.generative(inferred["basal"], context, batch["control_mask"])["cells"], inferred["refined"]

    def train() -> None:
        module.train()
        optimizer.zero_grad()
        predicted, refined = cells()
        masks = batch["control_mask"], batch["target_mask"]
        loss = published_energy_distance(predicted, batch["target_cells"], *masks).mean()
        (loss + 0.1 * refined.weights.abs().mean()).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()

    @torch.no_grad()
    def predict() -> None:
        module.eval()
        cells()

    return train, predict


def refinement(module: PTRAGModule, queries: QueryTable, sizes: Sizes, device: torch.device) -> tuple:
    """Return (forward and backward, forward) of the refinement stage alone, encoding of perturbations included."""
    table, batch = queries.to(device), random_batch(sizes, device)
    basal = torch.randn(sizes.sets, sizes.cells, sizes.hidden, device=device, requires_grad=True)

    def context() -> Tensor:
        numbered = queries.numbered({name: batch[name] for name in ("query", "cell_type")})
        b = {name: x.to(device) for name, x in numbered.items()}
        recall = table.recall(b["query"], b["cell_type"])
        keys = nn.functional.embedding(b["slots"], module.encode_keys(b["rows"]))
        found = recall.neighbours
        query = module.encode_embedding(recall.vectors)
        return module.refiner(basal, query, keys, found.present, found.similarity).context

    return stage(module, context)


def published_refinement(module: PublishedOrder, sizes: Sizes, device: torch.device) -> tuple:
    """Return the same of the published order of operations."""
    basal = torch.randn(sizes.sets, sizes.cells, sizes.hidden, device=device, requires_grad=True)
    own = (random_batch(sizes, device)["query"] - 1).to(device)
    return stage(module, lambda: module.refine(basal, own, sizes.candidates).context)


def stage(module: nn.Module, context: Callable[[], Tensor]) -> tuple:
    """Return (forward and backward, forward) of a stage."""

    def both() -> None:
        module.train()
        context().sum().backward()

    @torch.no_grad()
    def forward() -> None:
        module.eval()
        context()

    return both, forward


def headline(sizes: Sizes, device: torch.device) -> tuple[list[dict], dict[str, float]]:
    """Measure every configuration; return the rows of the table and the ratios of the promises."""
    vectors, batch = random_table(sizes), random_batch(sizes, device)
    queries, shallow = random_queries(vectors, sizes), replace(sizes, layers=4)
    pairs: dict[str, tuple] = {}
    kinds = {"default, 4 layers": (shallow, False), "default": (sizes, False), "published": (sizes, True)}
    for name, (used, wide) in {**kinds, "published, frozen": (sizes, True)}.items():
        for retrieval in RETRIEVAL:
            module = make_module(retrieval, used, vectors, published_width=wide).to(device)
            module.generator.requires_grad_("frozen" not in name)
            pairs[f"{name}: {retrieval}"] = steps(module, queries, batch, device)
    published = PublishedSizes(sizes.genes, sizes.embedding, sizes.hidden, sizes.layers)
    for name in ("published", "published, frozen"):
        slow = PublishedOrder(vectors, published, PublishedParams("ptrag")).to(device)
        for part in (slow.generator, slow.project):
            part.requires_grad_("frozen" not in name)
        pairs[f"{name}: published order"] = published_steps(slow, batch, sizes, device)
    gumbel = make_module("gumbel", sizes, vectors, published_width=False).to(device)
    pairs["refinement only: gumbel"] = refinement(gumbel, queries, sizes, device)
    pairs["refinement only: published order"] = published_refinement(slow, sizes, device)
    train = seconds({name: pair[0] for name, pair in pairs.items()}, device)
    predict = seconds({name: pair[1] for name, pair in pairs.items()}, device)
    memory = {name: peak_mib(pair[0], device) for name, pair in pairs.items()}
    rows = [
        dict(zip(("generator", "retrieval"), name.split(": "), strict=True))
        | {"training step (ms)": 1e3 * train[name], "prediction (ms)": 1e3 * predict[name], "peak (MiB)": memory[name]}
        for name in pairs
    ]
    ratios = {
        "refinement_speedup": train["refinement only: published order"] / train["refinement only: gumbel"],
        "refinement_memory": memory["refinement only: published order"] / memory["refinement only: gumbel"],
        "published_step_over_ours": train["published: published order"] / train["published: gumbel"],
        "published_prediction_over_ours": predict["published: published order"] / predict["published: gumbel"],
        "published_frozen_step_over_ours": train["published, frozen: published order"]
        / train["published, frozen: gumbel"],
    }
    for kind, taken in (("train", train), ("predict", predict)):
        for width in ("published", "published, frozen", "default", "default, 4 layers"):
            key = f"{width.replace(', ', '_').replace(' ', '_')}_{kind}_gumbel_over_none"
            ratios[key] = taken[f"{width}: gumbel"] / taken[f"{width}: none"]
    return rows, ratios


def main() -> None:
    """Print tables and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--growth", action="store_true", help="add the sweeps")
    parser.add_argument("--out", type=Path, default=None, help="folder of the figure of --growth")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device, sizes = torch.device(arguments.device), Sizes()
    result: dict[str, object] = {"machine": machine(device), "sizes": vars(sizes)}
    print(result["machine"], sizes, sep="\n")
    rows, ratios = headline(sizes, device)
    result |= {"steps": rows, "ratios": ratios}
    print("\n" + table(rows) + "\n\n" + table([{"ratio": k, "value": v} for k, v in ratios.items()]), flush=True)
    speeds = rates(device, n_genes=sizes.genes, batch_size=sizes.sets, set_size=sizes.cells)
    result["rates"] = speeds
    print("\n" + table([{"rate": k, "value": v} for k, v in speeds.items()]), flush=True)
    if device.type == "cuda":
        result["accelerator"] = accelerator(device)
        print("\n" + table(result["accelerator"]), flush=True)
    if arguments.growth:
        from growth import growth  # imports this file

        result["growth"] = growth(sizes, device, arguments.out)
        for name, rows in result["growth"].items():
            print(f"\n{name}\n" + table(rows if isinstance(rows, list) else [rows]), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
