"""Does our version of the published model compute what the published code recorded?

``python benchmarks/parity.py FILE.npz`` loads arrays that were recorded from the published code, computes every one of
them with :mod:`published` and prints the largest relative errors, a table and then one JSON line. The
exit status is 1 if any error is above 1e-4 (predictions: 1e-5), else 0.

The file holds ``config`` (a JSON string: at least ``heads``, ``temperature``, ``rms_norm_eps``, ``rope_theta``),
``in/*`` (``gene_embeddings`` (P, D), ``query`` (B,), ``control`` and ``target`` (B, S, G), ``batch`` (B, S),
``gumbel_noise`` (B, S, K, 2)), ``ptrag/candidates`` (B, S, K; used by vanilla too), and for every variant (``state``,
``vanilla``, ``ptrag``) ``prediction``, ``loss``, ``energy_loss_per_set``, ``state_dict/*`` and ``grad_norm/*``; for
``ptrag`` also ``raw_scores``, ``scaled_scores``, ``weights``, ``context``. Sizes may be any; variants may be missing.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from published.module import VARIANTS, PublishedModule, PublishedParams, published_energy_distance, recall_of
from published.weights import load_published, our_name

LIMITS = {"prediction": 1e-5}
LIMIT = 1e-4  # geomloss, which recorded the losses, clamps squared distances at 1e-8
# A gradient that is 0 in exact arithmetic (a bias before a softmax or before a difference) is rounding noise: errors
# of gradient norms are relative to the recorded norm, but to no less than this share of the largest one.
GRADIENT_FLOOR = 1e-4


def relative_error(ours: torch.Tensor, recorded: np.ndarray) -> float:
    """Return the largest difference over the largest recorded entry."""
    recorded = torch.as_tensor(recorded)
    if ours.shape != recorded.shape:
        raise ValueError(f"We compute shape {tuple(ours.shape)}, the file holds {tuple(recorded.shape)}.")
    return float((ours.detach() - recorded).abs().max() / recorded.abs().max())


def below(file: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays below a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in file.items() if name.startswith(prefix)}


def gradient_error(module: PublishedModule, recorded: dict[str, np.ndarray]) -> float:
    """Return the largest relative error of a gradient norm."""
    parameters = dict(module.named_parameters())
    floor = GRADIENT_FLOOR * max(float(norm) for norm in recorded.values())
    ours = {name: float(parameters[our_name(name)].grad.norm()) for name in recorded}
    return max(abs(ours[name] - float(norm)) / max(float(norm), floor) for name, norm in recorded.items())


def recorded_candidates(file: dict[str, np.ndarray], n_sets: int) -> torch.Tensor:
    """Return the recorded candidates (B, K) of each set; none where the file holds none (``state`` needs none)."""
    per_cell = file.get("ptrag/candidates", np.zeros((n_sets, 1, 0), dtype=np.int64))
    if not (per_cell == per_cell[:, :1]).all():
        raise ValueError("ptrag/candidates differ between the cells of a set: retrieval belongs to the query.")
    return torch.as_tensor(per_cell[:, 0])


def compare(variant: str, file: dict[str, np.ndarray], config: dict) -> dict[str, float]:
    """Return the relative error of every recorded array of a variant."""
    recorded, inputs = below(file, f"{variant}/"), {k: torch.as_tensor(v) for k, v in below(file, "in/").items()}
    arrays = below(recorded, "state_dict/")
    constants = {name: config[name] for name in ("temperature", "rms_norm_eps", "rope_theta")}
    params = PublishedParams(variant, n_heads=config["heads"], dropout=0.0, **constants)
    embeddings, query = inputs["gene_embeddings"], inputs["query"]
    module = load_published({k: torch.tensor(v) for k, v in arrays.items()}, embeddings, params)

    candidates = recorded_candidates(file, len(query))
    recall = recall_of(embeddings[query], candidates)
    keys = module.encode_keys()
    mask = torch.ones(inputs["control"].shape[:2], dtype=torch.bool)
    inferred = module.inference(inputs["control"], mask, recall, keys, candidates, inputs.get("gumbel_noise"))
    context = inferred["refined"].context
    cells = module.generative(inferred["basal"], context, mask, inputs["batch"])["cells"]
    tensors = {"target_cells": inputs["target"], "control_mask": mask, "target_mask": mask}
    loss = module.loss(tensors, inferred, {"cells": cells}).loss
    loss.backward()

    ours = {
        "prediction": cells,
        "loss": loss,
        "energy_loss_per_set": published_energy_distance(cells, inputs["target"], mask, mask),
    }
    if variant == "ptrag":
        selection = inferred["selection"]
        ours |= {"raw_scores": selection.raw, "scaled_scores": selection.scaled, "weights": selection.weights}
        ours["context"] = context
    errors = {name: relative_error(value, recorded[name]) for name, value in ours.items()}
    return {**errors, "grad_norm": gradient_error(module, below(recorded, "grad_norm/"))}


def main(arguments: list[str] | None = None) -> int:
    """Compare every variant of a file; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="recorded arrays (.npz)")
    path = parser.parse_args(arguments).file
    with np.load(path, allow_pickle=False) as archive:
        file = dict(archive)
    config = json.loads(str(file["config"]))
    variants = [v for v in VARIANTS if f"{v}/prediction" in file]
    if not variants:
        raise SystemExit(f"{path} holds none of the variants {VARIANTS}.")
    errors = {variant: compare(variant, file, config) for variant in variants}
    passed = all(e <= LIMITS.get(name, LIMIT) for row in errors.values() for name, e in row.items())
    for variant, row in errors.items():
        print(f"{variant:8s}", *(f"{name} {error:.1e}" for name, error in row.items()), sep="  ")
    print(json.dumps({"file": path.name, "passed": passed, "errors": errors}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
