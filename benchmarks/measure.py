"""How are seconds and bytes measured, on a CPU and on an accelerator?"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import fields
from inspect import signature

import torch

from ptrag_sc import PTRAG
from ptrag_sc.model._module_params import ModuleParams

REPEATS = 5


def machine(device: torch.device) -> str:
    """Return processor, threads and versions in one line."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, {name}"
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{name}, {threads}, Python {platform.python_version()}, torch {torch.__version__}"


def module_params(**options) -> ModuleParams:
    """Return the parameters of a module: those given, for the others the defaults of PTRAG."""
    defaults = {name: parameter.default for name, parameter in signature(PTRAG).parameters.items()}
    defaults |= {"null_weight": 0.0} | options  # None in the constructor: it follows the residual
    return ModuleParams(**{field.name: defaults[field.name] for field in fields(ModuleParams)})


def seconds(steps: dict[str, Callable[[], object]], device: torch.device, repeats: int = REPEATS) -> dict[str, float]:
    """Return the median seconds of each step, in turns, so that a noisy minute hurts all alike.

    On a CPU these are seconds of processor time; on an accelerator seconds until it has finished.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, step in steps.items():
            start = clock(device)
            step()
            if turn:
                taken[name].append(clock(device) - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def clock(device: torch.device) -> float:
    """Return processor seconds, or wall seconds once the accelerator has finished."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_mib(step: Callable[[], object], device: torch.device) -> float:
    """Return the most memory (MiB) that torch held during a step beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def table(rows: list[dict[str, object]]) -> str:
    """Return rows as a Markdown table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(_shown(row[name]) for name in names) + " |" for row in rows])


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
