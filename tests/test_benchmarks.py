"""Do the benchmarks of speed still run, at sizes at which their figures mean nothing?"""

import numpy as np
import pandas as pd
import pytest
import torch

CPU = torch.device("cpu")


@pytest.mark.slow
def test_speed(benchmark_module):
    speed = benchmark_module("speed")
    small = {"sets": 2, "cells": 4, "genes": 12, "embedding": 6, "hidden": 16, "candidates": 3, "layers": 1}
    rows, ratios = speed.headline(speed.Sizes(**small, table=10, queries=10, rank=3), CPU)
    assert len(rows) == 16
    rates = speed.rates(CPU, n_genes=40, batch_size=4, set_size=4)
    assert all(np.isfinite(value) and value > 0 for value in [*ratios.values(), *rates.values()])


@pytest.mark.slow
def test_every_table_of_a_device(benchmark_module):
    parts = benchmark_module("accelerator").parts(CPU, small=True)
    found = {name: make() for name, make in parts.items()}
    assert all(len(rows) > 0 for rows in found.values())
    assert {row["step"] for row in found["precision"]} >= {"from the loader", "cached, bf16, compiled"}


def test_memory(benchmark_module):
    memory = benchmark_module("memory")
    built = memory.built(*memory.random_screen(2000, 40, 20, 2))
    vectors = torch.nn.functional.normalize(torch.randn(len(built.entries), 8), dim=1)
    for used in (None, built):
        memory.step(used, vectors, built.directions[:5], 2)()


def test_effects(benchmark_module):
    found = benchmark_module("effects").measured(n_asked=30, n_genes=40, n_perturbations=8, n_cells=300)
    assert found["rows"] == 30 * 40
    assert found["further peak (GB)"] >= 0


@pytest.mark.slow
def test_differentiating(benchmark_module):
    differentiating = benchmark_module("differentiating")
    found = {n: differentiating.of_animals(n, True, 0) for n in (5, 80)}
    assert found[5]["auto"] < found[5]["batch"]
    assert found[80]["batch"] < found[80]["ignored"]
    # With all control cells elsewhere no animal has any of its own: nothing can be matched.
    assert len(set(differentiating.of_animals(5, False, 0).values())) == 1


def test_measurements_that_a_design_needs(benchmark_module):
    n = np.arange(10, 101, 10)
    choices = {"random": n / 100, "design": np.minimum(n / 50, 1.0)}
    parts = [
        pd.DataFrame({"choice": name, "n_perturbations": n, "pearson_delta_pert": values + further, "repeat": repeat})
        for name, values in choices.items()
        for repeat, further in enumerate((-0.1, 0.1))
    ]
    needed = benchmark_module("decisions_design").needed
    assert needed(pd.concat(parts), "design", 50) == pytest.approx(25)
    assert needed(pd.concat(parts), "random", 50) == pytest.approx(50)
