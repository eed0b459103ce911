"""What does the retrieval of a model answer from a part of its experiments, without trained weights?"""

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ptrag_sc.data import Shifts, matching_weights, mean_shifts_and_spread
from ptrag_sc.data._drift import reference_means
from ptrag_sc.data._refits import Refits
from ptrag_sc.model._tables import N_DIRECTIONS, learn_own_effects, training_memory

if TYPE_CHECKING:
    from ptrag_sc.model._expected import Expecting


def make_refits(model: "Expecting") -> Refits:
    """Return what the retrieval of a model with a memory and data can be fitted anew from: its training conditions."""
    screen = model.read(model.training_data())
    index = screen.index
    named = model.split_[model.split_["split"] == "train"]
    codes = index.coded(named)
    present = [len(index.rows(p, t)) > 1 for p, t in zip(codes["perturbation"], codes["cell_type"], strict=True)]
    named, codes = named[present].reset_index(drop=True), codes[present].reset_index(drop=True)
    matching = matching_weights(screen.reader, index, model.init_params_["control_matching"])
    controls = reference_means(screen, matching)
    shifts, spread = mean_shifts_and_spread(screen.reader, index, codes, controls)

    def fit(kept: np.ndarray) -> "Expecting":
        conditions = codes.iloc[kept]
        masked, own_effects = learn_own_effects(screen, conditions, shifts.shift[kept], controls, model.keys_)
        candidates = np.unique(named["perturbation"].iloc[kept].to_numpy(dtype=str))  # (P,)
        memory = training_memory(
            screen,
            conditions,
            candidates,
            controls,
            shifts=Shifts(masked, shifts.n_cells[kept]),
            spread=spread._replace(scale=spread.scale[kept], contrast=spread.contrast[kept]),
        )
        tables = replace(
            model.tables_,
            candidates=candidates,
            split=named.iloc[kept].reset_index(drop=True),
            basis=memory.directions.numpy()[:N_DIRECTIONS].astype(np.float32),
            own_effects=own_effects,
            memory=memory,
            cell_types=tuple(index.cell_types[np.unique(conditions["cell_type"])].tolist()),
        )
        params: dict[str, Any] = dict(model.init_params_)
        params["n_candidates"] = min(params["n_candidates"], max(1, len(candidates) - 1))
        other = copy(model)
        with torch.random.fork_rng(devices=[]):  # its initial weights are not used, so no later draw may move
            other._build(tables, model.keys_, params)
        other.set_initial_weights(screen)
        return other

    return Refits(screen, named[["perturbation", "cell_type"]], shifts.shift, fit)
