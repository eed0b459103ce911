"""What must the file of a model hold? Kinds, lengths and shapes, all against the names in it."""

import inspect
from dataclasses import fields
from typing import Any, TypeAlias, get_type_hints

import numpy as np
import torch

from ptrag_sc.data import MATCHINGS, ScreenKeys
from ptrag_sc.data._intervals import KNOWN, UNSEEN
from ptrag_sc.model._calibration import FEATURES, OUTCOMES
from ptrag_sc.model._extension import IN_MEMORY
from ptrag_sc.model._kinds import ANY_NUMBER, COUNT, NUMBER, check_kind
from ptrag_sc.model._module import MEMORY, PTRAGModule
from ptrag_sc.model._module_params import ModuleParams
from ptrag_sc.model._stored_tensors import DamagedError
from ptrag_sc.retrieval import GeneEmbedding, ResponseMemory

Tensors: TypeAlias = dict[str, torch.Tensor]

MODULE = "module."
VECTORS = "gene_embedding.vectors"
BASIS = MODULE + "generator.basis"
DRIFT = "drift"
BLOCKS = MODULE + "generator.blocks."
UNIT_TOLERANCE = 1e-3
SAME = 1e-5  # of tables that are stored twice

COLUMNS = {"epoch": [int], "value": [ANY_NUMBER]}  # a loss can be anything
REGRESSION = {
    **{name: [NUMBER] for name in ("center", "low", "high")},
    "scale": [(NUMBER, None)],
    "coefficients": [[NUMBER]],
    "mean": [NUMBER],
}
EXPECTED = {name: [NUMBER] for outcome in OUTCOMES for name in (outcome, f"expected_{outcome}")}
SUPPORT = {**REGRESSION, "conditions": {"perturbation": [str], "cell_type": [str], **EXPECTED}}
ERRORS = {
    "cell_type": str,
    "kind": (KNOWN, UNSEEN),
    "n": COUNT,
    **{name: [NUMBER] for name in ("square", "control", "own_scores")},
    **dict.fromkeys(("own_variance", "sampling"), NUMBER),
}
META = {
    "format": int,
    "version": str,
    "scvi_version": str,
    "keys": {str: (str, [str], {str: str}, None)},
    "genes": [str],
    "candidates": [str],
    "split": {
        "perturbation": [str],
        "cell_type": [str],
        "n_cells": [COUNT],
        "split": [("train", "val", "test", IN_MEMORY)],
    },
    "embedding": {"genes": [str], "source": str, "excluded": [str]},
    "memory_cell_types": [str],
    "drift_cell_types": [str],
    "own_effects": {
        "shares": {str: NUMBER},
        "pooled": NUMBER,
        "alone": {"gene": [str], "cell_type": [str], "effect": [NUMBER]},
    },
    "control_levels": {str: NUMBER},
    "init_params": {str: (str, bool, NUMBER, None)},
    "data_token": (str, None),
    "state": {
        "class": str,
        "is_trained": bool,
        "n_epochs": COUNT,
        "kept_epoch": (COUNT, None),
        "history": ({str: COLUMNS}, None),
        "set_size": COUNT,
        "support": (SUPPORT, None),
        "effect_errors": ([ERRORS], None),
    },
}


def check_meta(meta: Any) -> None:
    """Refuse values of the JSON string that no model has.

    Raises
    ------
    DamagedError
        With the place and the value.
    """
    check_kind(meta, META, "the description")
    named = [(place, meta[place]) for place in ("genes", "candidates", "memory_cell_types", "drift_cell_types")]
    for place, names in (*named, ("embedding/genes", meta["embedding"]["genes"])):
        if len(set(names)) < len(names) or "" in names:
            raise DamagedError(f"holds empty or repeated names in {place}")
        if not names and place in ("genes", "candidates", "embedding/genes"):
            raise DamagedError(f"holds no {place}")
    _check_split(meta["split"], meta["candidates"])
    _check_keys(meta["keys"])
    _check_params(meta["init_params"])
    state = meta["state"]
    for table in (meta["own_effects"]["alone"], *(state["history"] or {}).values()):
        _check_columns(table)
    if state["support"] is not None:
        _check_support(state["support"])
    for row in state["effect_errors"] or ():
        if not len(row["square"]) == len(row["control"]) == len(meta["genes"]):
            raise DamagedError("holds another number of genes in state/effect_errors than in genes")
    if not state["set_size"]:
        raise DamagedError("holds a set_size of 0")
    if not 1 <= meta["init_params"]["n_candidates"] <= len(meta["candidates"]):
        raise DamagedError("holds another number in init_params/n_candidates than its candidates allow")


def _check_columns(table: dict[str, list[Any]]) -> None:
    if len({len(column) for column in table.values()}) > 1:
        raise DamagedError(f"holds a table whose columns {', '.join(table)} have different lengths")


def _check_split(split: dict[str, list[Any]], candidates: list[str]) -> None:
    _check_columns(split)
    pairs = list(zip(split["perturbation"], split["cell_type"], strict=True))
    known = {pair[0] for pair, part in zip(pairs, split["split"], strict=True) if part in ("train", IN_MEMORY)}
    if len(set(pairs)) < len(pairs) or known != set(candidates):
        raise DamagedError("holds a split whose training perturbations are not its candidates")


def _check_support(support: dict[str, Any]) -> None:
    _check_columns(support["conditions"])
    of_features = {len(support[name]) for name in ("center", "low", "high", "scale", "coefficients")}
    of_outcomes = {len(row) for row in (*support["coefficients"], support["mean"])}
    if of_features != {len(FEATURES)} or of_outcomes != {len(OUTCOMES)}:
        raise DamagedError(f"holds another number of features or outcomes in state/support than {len(FEATURES)}")


def check_tensors(tensors: Tensors, meta: dict[str, Any], *, has_own_module: bool) -> None:
    """Refuse tensors whose names, shapes, types or values do not fit the description, which is checked.

    Raises
    ------
    DamagedError
        With the name of the first such tensor.
    """
    for name, tensor in tensors.items():
        numbers = tensor.float() if tensor.itemsize == 2 else tensor  # numpy has no bfloat16, and is ten times faster
        if tensor.is_floating_point() and not np.isfinite(numbers.numpy()).all():
            raise DamagedError(f"holds values in {name!r} that are not finite")
    sizes = {
        "P": len(meta["candidates"]),
        "G": len(meta["genes"]),
        "T": len(meta["memory_cell_types"]),
        "n": len(meta["embedding"]["genes"]),
    }
    vectors, basis = _sized(tensors, VECTORS, "nD", sizes), _sized(tensors, BASIS, "RG", sizes)
    if meta["drift_cell_types"]:
        _sized(tensors, DRIFT, "tG", {**sizes, "t": len(meta["drift_cell_types"])})
    norms = vectors.float().norm(dim=1)
    if ((norms - 1).abs() > UNIT_TOLERANCE).any():
        raise DamagedError(f"holds rows in {VECTORS!r} that are no unit vectors")
    params = ModuleParams(**{name: value for name, value in meta["init_params"].items() if name in _module_types()})
    memory = None
    if params.memory is not None:
        memory = _memory(tensors, sizes, basis)
    if not has_own_module:
        _check_module(tensors, params, basis, memory)
    keys = ScreenKeys.from_uns(meta["keys"])
    table = GeneEmbedding.from_table(meta["embedding"]["genes"], vectors.float().numpy(), source="the model")
    expected = torch.as_tensor(table.vectors_for(meta["candidates"], keys.sep))  # (P, D)
    if (tensors[MODULE + "embeddings"].float() - expected).abs().max() > SAME:
        raise DamagedError("holds vectors of the candidates that are not those of their genes")


def _memory(tensors: Tensors, sizes: dict[str, int], basis: torch.Tensor) -> ResponseMemory:
    """Return the stored memory, checked against the names and the basis (R, G)."""
    axes = {"entries": "PTL", "n_cells": "PT", "between": "TL", "mean": "TG", "controls": "TG", "directions": "LG"}
    if not sizes["T"]:
        raise DamagedError("holds a memory without cell types")
    sizes = {**sizes, "L": len(_found(tensors, f"{MODULE}{MEMORY}directions"))}
    memory = ResponseMemory(**{name: _sized(tensors, MODULE + MEMORY + name, axes[name], sizes) for name in axes})
    strange = [name for name, tensor in memory._asdict().items() if tensor.is_floating_point() == (name == "n_cells")]
    if strange:
        raise DamagedError(f"holds {MODULE + MEMORY + strange[0]!r} as {getattr(memory, strange[0]).dtype}")
    if (memory.n_cells < 0).any() or (memory.between < 0).any():
        raise DamagedError("holds negative numbers of cells or variances in the memory")
    if len(memory.directions) < len(basis) or not torch.allclose(memory.directions[: len(basis)], basis, atol=SAME):
        raise DamagedError(f"holds a basis in {BASIS!r} that is not that of its memory")
    for name in ("recalled_share", "mapped_share"):
        share = _found(tensors, MODULE + name)
        if share.numel() != 1 or not 0 <= float(share) <= 1:
            raise DamagedError(f"holds a {name} that is no number between 0 and 1")
    return memory


def _check_module(tensors: Tensors, params: ModuleParams, basis: torch.Tensor, memory: ResponseMemory | None) -> None:
    """Compare the weights with those of an empty module of these sizes, which takes no memory."""
    # Before it is made, because its number of layers is what takes time.
    n_layers = len({name.split(".")[3] for name in tensors if name.startswith(BLOCKS)})
    if n_layers != params.n_layers:
        raise DamagedError(f"holds {n_layers} layers, not the {params.n_layers} of init_params/n_layers")
    with torch.device("meta"):
        module = PTRAGModule(_found(tensors, MODULE + "embeddings"), basis, params, memory)
    expected = {MODULE + name: tensor for name, tensor in module.state_dict().items()}
    for name, tensor in expected.items():
        found = _found(tensors, name)
        if found.shape != tensor.shape or found.is_floating_point() != tensor.is_floating_point():
            shapes = f"{tuple(found.shape)} {found.dtype}, not {tuple(tensor.shape)} {tensor.dtype}"
            raise DamagedError(f"holds {name!r} as {shapes}")
    further = set(tensors) - set(expected) - {VECTORS, DRIFT}
    if further:
        raise DamagedError(f"holds the unknown tensor {min(further)!r}")


def _found(tensors: Tensors, name: str) -> torch.Tensor:
    if name not in tensors:
        raise DamagedError(f"lacks the tensor {name!r}")
    return tensors[name]


def _sized(tensors: Tensors, name: str, axes: str, sizes: dict[str, int]) -> torch.Tensor:
    """Return a tensor, after comparing the axes of known size."""
    tensor = _found(tensors, name)
    wanted = [sizes.get(axis) for axis in axes]
    fits = tensor.ndim == len(axes) and all(w in (n, None) for w, n in zip(wanted, tensor.shape, strict=True))
    may_be_empty = not {"R", "L"}.isdisjoint(axes)  # a screen in which nothing changes has no directions
    if not fits or not (tensor.numel() or may_be_empty):
        raise DamagedError(f"holds {name!r} of shape {tuple(tensor.shape)}, which does not fit its names ({wanted})")
    return tensor


def _check_keys(keys: dict[str, Any]) -> None:
    known = {f.name for f in fields(ScreenKeys)}
    if set(keys) - known or not {"perturbation_key", "control", "cell_type_key"} <= set(keys):
        raise DamagedError(f"holds other keys than those of setup_anndata: {', '.join(sorted(keys))}")
    for name in ("perturbation_key", "control", "cell_type_key"):
        check_kind(keys[name], str, f"keys/{name}")


def _check_params(params: dict[str, Any]) -> None:
    types = _module_types()
    known = {**types, "n_candidates": int, "control_matching": str}
    required = {name for name, p in inspect.signature(ModuleParams).parameters.items() if p.default is p.empty}
    if set(params) - set(known) or not required | {"n_candidates", "control_matching"} <= set(params):
        raise DamagedError(f"holds other parameters than those of the model: {', '.join(sorted(params))}")
    for name, value in params.items():
        kind = {int: COUNT, float: NUMBER}.get(known[name])
        if kind is not None:
            check_kind(value, kind, f"init_params/{name}")
    check_kind(params["control_matching"], MATCHINGS, "init_params/control_matching")


def _module_types() -> dict[str, Any]:
    return get_type_hints(ModuleParams)
