"""Does this screen meet what a perturbation model assumes of it?"""

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy.spatial.distance import cdist
from scipy.stats import false_discovery_control

from ptrag_sc._validation import check_key, check_whole
from ptrag_sc.data import (
    Screen,
    ScreenKeys,
    components,
    control_means,
    leading_directions,
    matching_weights,
    mean_shifts_and_spread,
    read_labels,
    read_screen,
)
from ptrag_sc.data._diagnose import FEW_CELLS, Finding, design_findings, finding
from ptrag_sc.data._shifts import types_of_batches
from ptrag_sc.data._user_keys import check_free

DIAGNOSE_KEY = "diagnose"
N_PERMUTATIONS = 500
N_SAMPLED = 300  # control cells of a group, and of all others, in a test
N_COMPONENTS = 20
SIGNIFICANT = 0.05
CLEAR = 2.0  # standard errors
NOISY = 0.5  # correlation
STILL = 0.2  # share of conditions whose target does not change
DRIFT_COLUMNS = ("kind", "cell_type", "group", "n_controls", "energy_distance", "p_value", "p_adjusted")


def diagnose(
    adata: AnnData, *, guide_key: str | None = None, set_size: int = 64, seed: int = 0, key_added: str = DIAGNOSE_KEY
) -> None:
    r"""Report in plain words whether a screen meets what the models assume.

    - *Controls and batches*: cell types with few control cells, batches without any, association of batch and
      perturbation (Cramér's V, corrected for chance: Bergsma 2013), conditions of few cells. Which batches and
      perturbations these are, and how many controls are needed, says :func:`ptrag_sc.tl.batch_layout`.
    - *Batch shifts*: variance :math:`\tau^2` between and :math:`\sigma^2` within batches of the control cells (one-way
      analysis of variance, summed over genes), and :math:`\tau^2 / (\tau^2 + \sigma^2 / n)` for n control cells per
      batch: how much is gained by matching controls within batches, between 0 and 1.
    - *Control drift* and *control guides*: batches, or guides, whose control cells differ from those of the others
      (energy distance in 20 components, permutation test, Benjamini-Hochberg at 5 %).
    - *Control noise*: ``pearson_delta`` that the noise of the control mean alone gives, because predicted and observed
      shift are measured from the same controls: :math:`\sqrt{\kappa \sum_g \sigma_g^2} / |\delta|` in the median
      condition, with variance :math:`\sigma_g^2` between cells, observed shift :math:`\delta`, and :math:`\kappa` the
      inverse of the number of controls (more with batches). Without any effect m cells give
      :math:`\sqrt{\kappa / (\kappa + 1 / m)}`.
    - *Target gene*: perturbations whose own gene moves by less than two standard errors, if it is measured.
    - *Responders*: conditions in which less than half of the cells respond. If the responding cells all move alike and
      the others not at all, their share is :math:`m^2 / (m^2 + e)`, with mean m and excess variance e of the cells
      along the condition's shift (estimated on the other half of the cells).

    Parameters
    ----------
    adata
        Object registered with :meth:`ptrag_sc.PTRAG.setup_anndata`.
    guide_key
        ``obs`` column with the guide of each cell.
    set_size
        Cells in a set.
    seed
        Seed of permutations and sampled cells.
    key_added
        Where results are written; an existing key is replaced.

    Returns
    -------
    None
        Written are in ``.uns[key_added]``: ``findings`` (``check``, ``level``: ok, note or warning, ``value``,
        ``message``), ``conditions`` (``perturbation``, ``cell_type``, ``n_cells``, ``target_shift``, ``target_z``,
        ``control_noise``, ``control_noise_alone`` (without any effect), ``responders``; NaN if it cannot be estimated)
        and ``groups`` (``kind``: batch or guide, ``cell_type``, ``group``, ``n_controls``, ``energy_distance``,
        ``p_value``, ``p_adjusted``).

    Raises
    ------
    KeyError
        If ``guide_key`` is not a column, or the object is not registered.
    ValueError
        If the screen cannot be read.

    Examples
    --------
    >>> import ptrag_sc
    >>> adata = ptrag_sc.datasets.simulated(n_cells=600, n_genes=60, n_perturbations=10, n_cell_types=2)
    >>> ptrag_sc.PTRAG.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="non-targeting", cell_type_key="cell_type"
    ... )
    >>> ptrag_sc.tl.diagnose(adata)
    >>> "warning" in set(adata.uns["diagnose"]["findings"]["level"])
    False
    """
    keys = ScreenKeys.of(adata)
    check_key(key_added, "tl.diagnose", taken=(keys.embedding_key,))
    check_free(adata, uns=[key_added])
    check_whole("set_size", set_size, "tl.diagnose", minimum=1)
    check_whole("seed", seed, "tl.diagnose")
    screen = read_screen(adata, keys)
    rng = np.random.default_rng(seed)
    findings = design_findings(screen.index, set_size=set_size)
    labels: dict[str, np.ndarray] = {}  # group of every cell (N,), by kind of group
    if keys.batch_key is not None:
        labels["batch"] = read_labels(keys.container(adata, "batch_key").obs, keys.batch_key).astype(str)
        findings.append(_batch_shifts(screen))
    if guide_key is not None:
        labels["guide"] = read_labels(keys.expression_holder(adata).obs, guide_key).astype(str)
    no_groups = pd.DataFrame(columns=list(DRIFT_COLUMNS))  # the columns are there even if nothing is tested
    groups = pd.concat([_drift(screen, kind, of_cell, rng) for kind, of_cell in labels.items()] or [no_groups])
    for kind, name in (("batch", "control drift"), ("guide", "control guides")):
        if kind in labels:
            findings.append(_drift_finding(name, kind, groups[groups["kind"] == kind]))
    conditions = _conditions(screen, keys.sep, rng)
    findings += [_noise_finding(conditions), _target_finding(conditions), _responder_finding(conditions)]
    report = pd.DataFrame(findings, columns=Finding._fields)
    adata.uns[key_added] = {"findings": report, "conditions": conditions, "groups": groups.reset_index(drop=True)}
    for row in report[report["level"] != "ok"].itertuples():
        sc.logging.info(f"{row.level}: {row.check}: {row.message}")
    sc.logging.info(f"added .uns[{key_added!r}]")


def _batch_shifts(screen: Screen) -> Finding:
    of_type = types_of_batches(screen.index)  # (n_batches,)
    weights = matching_weights(screen.reader, screen.index, "auto")  # (n_batches,)
    known = matching_weights(screen.reader, screen.index) > 0  # batches that have control cells
    medians = [float(np.median(weights[known & (of_type == t)])) for t in np.unique(of_type[known])]
    worst = max(medians, default=0.0)
    advice = "batches differ little"
    if worst > 0.5:
        advice = "batches differ: controls must be matched within them"
    return finding("batch shifts", worst, f"{advice} (matching weight {worst:.2f})", note=0.5, warning=np.inf)


def _drift(screen: Screen, kind: str, of_cell: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Test each group of control cells against the other control cells of its cell type."""
    rows = []
    for t, cell_type in enumerate(screen.index.cell_types):
        controls = screen.index.controls(t)  # (n,) rows
        names, group = np.unique(of_cell[controls], return_inverse=True)  # (g,), (n,)
        if len(names) < 2:
            continue
        # Every group gives at most N_SAMPLED cells, so that a large one does not decide the components alone.
        sampled = np.concatenate([_sample(np.flatnonzero(group == g), N_SAMPLED, rng) for g in range(len(names))])
        cells = screen.reader.rows(controls[sampled]).astype(np.float64)  # (m, G)
        axes, _ = leading_directions(cells - cells.mean(0), N_COMPONENTS)  # (N_COMPONENTS, G)
        low = cells @ axes.T  # (m, N_COMPONENTS)
        for g, name in enumerate(names):
            own = np.flatnonzero(group[sampled] == g)
            others = _sample(np.flatnonzero(group[sampled] != g), N_SAMPLED, rng)
            if len(own) < FEW_CELLS or len(others) < FEW_CELLS:
                continue
            both = low[np.r_[own, others]]
            value, p = permutation_test(cdist(both, both), len(own), rng)
            rows.append((kind, str(cell_type), str(name), int((group == g).sum()), value, p))
    table = pd.DataFrame(rows, columns=list(DRIFT_COLUMNS[:-1]))
    if table.empty:
        return table.assign(p_adjusted=[])
    return table.assign(p_adjusted=false_discovery_control(table["p_value"]))


def permutation_test(distance: np.ndarray, n_first: int, rng: np.random.Generator) -> tuple[float, float]:
    """Return the unbiased energy distance between the first cells and the others, and its permutation p-value.

    Parameters
    ----------
    distance
        Distances of all cells (n, n).
    n_first
        Cells of the first group.
    rng
        Draws the permutations.
    """
    n = len(distance)
    n_second = n - n_first
    # One row per permutation (row 0 is the observed grouping): all distances are then three matrix products.
    first = np.zeros((N_PERMUTATIONS + 1, n))  # 1 for the cells of the first group
    first[0, :n_first] = 1
    for row in first[1:]:
        row[rng.permutation(n)[:n_first]] = 1
    second = 1 - first
    toward = first @ distance  # (N_PERMUTATIONS + 1, n), summed distance of each cell to the first group
    cross = (toward * second).sum(1) / (n_first * n_second)
    inner = (toward * first).sum(1) / (n_first * max(n_first - 1, 1))
    outer = ((second @ distance) * second).sum(1) / (n_second * max(n_second - 1, 1))
    values = 2 * cross - inner - outer  # (N_PERMUTATIONS + 1,)
    return float(values[0]), float((values >= values[0] - 1e-12).mean())  # equal but for rounding counts as equal


def _sample(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    if len(rows) <= n:
        return rows
    return np.sort(rng.choice(rows, n, replace=False))


def _drift_finding(name: str, kind: str, groups: pd.DataFrame) -> Finding:
    apart = groups[groups["p_adjusted"] < SIGNIFICANT]
    share = len(apart) / max(len(groups), 1)
    kinds = {"batch": "batches", "guide": "guides"}[kind]
    message = f"control cells of {len(apart)} of {len(groups)} {kinds} differ from those of the others"
    warning = 0.25
    if kind == "batch":
        warning = np.inf  # never a warning, because controls are matched within batches
    return finding(name, share, message, note=0.0, warning=warning)


def _conditions(screen: Screen, sep: str | None, rng: np.random.Generator) -> pd.DataFrame:
    """Return how far the target gene of each condition moves, what is noise, and which share of the cells responds."""
    index = screen.index
    codes = index.conditions
    codes = codes[[len(index.controls(t)) > 1 for t in codes["cell_type"]]].reset_index(drop=True)
    shifts, spread = mean_shifts_and_spread(screen.reader, index, codes, control_means(screen.reader, index))
    column = pd.Index(screen.genes)
    table = index.named(codes)
    moved = np.full(len(table), np.nan)
    z = np.full(len(table), np.nan)
    for i, (name, t) in enumerate(zip(table["perturbation"], codes["cell_type"], strict=True)):
        genes = components(name, sep)
        if len(genes) == 1 and genes[0] in column:  # a combination has no single target
            g = column.get_loc(genes[0])
            moved[i] = shifts.shift[i, g]
            error = np.sqrt(spread.variance[t, g] * spread.scale[i])
            if error > 0:
                z[i] = moved[i] / error
    responders = [_responders(screen, row.perturbation, row.cell_type, rng) for row in codes.itertuples()]
    of_controls = spread.scale - 1 / shifts.n_cells  # (C,), squared error in units of the variance of a cell
    noise = of_controls * spread.variance.sum(1)[codes["cell_type"]]  # (C,), squared length
    centred = shifts.shift - shifts.shift.mean(1, keepdims=True)  # as correlations see it
    length = np.square(centred).sum(1)  # (C,), squared
    return table.assign(
        target_shift=moved,
        target_z=z,
        control_noise=np.sqrt(np.divide(noise, length, out=np.zeros_like(noise), where=length > 0).clip(max=1.0)),
        control_noise_alone=np.sqrt(of_controls / spread.scale),
        responders=responders,
    )


def _responders(screen: Screen, perturbation: int, cell_type: int, rng: np.random.Generator) -> float:
    rows = _sample(screen.index.rows(perturbation, cell_type), N_SAMPLED, rng)
    if len(rows) < 2 * FEW_CELLS:
        return np.nan
    controls = _sample(screen.index.controls(cell_type), N_SAMPLED, rng)
    return responder_share(screen.reader.rows(rng.permutation(rows)), screen.reader.rows(rng.permutation(controls)))


def responder_share(perturbed: np.ndarray, controls: np.ndarray) -> float:
    """Return the share of perturbed cells (n, G) that respond, given controls (m, G); NaN if no shift is clear."""
    perturbed_halves = np.array_split(perturbed, 2)
    control_halves = np.array_split(controls, 2)
    means, excess, errors = [], [], []
    # Direction and projected cells come from different halves: in the same half, noise would look like a response.
    for learned, tested in ((0, 1), (1, 0)):
        direction = perturbed_halves[learned].mean(0) - control_halves[learned].mean(0)  # (G,)
        norm = np.linalg.norm(direction)
        if norm == 0:
            return np.nan
        p = perturbed_halves[tested] @ (direction / norm)  # (n / 2,)
        c = control_halves[tested] @ (direction / norm)  # (m / 2,)
        means.append(p.mean() - c.mean())
        excess.append(p.var(ddof=1) - c.var(ddof=1))
        errors.append(p.var(ddof=1) / len(p) + c.var(ddof=1) / len(c))
    mean = np.mean(means)
    if mean < CLEAR * np.sqrt(np.mean(errors) / 2):
        return np.nan
    return float(mean**2 / (mean**2 + max(np.mean(excess), 0.0)))


def _noise_finding(conditions: pd.DataFrame) -> Finding:
    typical, alone = 0.0, 0.0
    if len(conditions):
        typical, alone = conditions[["control_noise", "control_noise_alone"]].median()
    message = f"noise of the controls alone gives a pearson_delta of {typical:.2f} ({alone:.2f} without any effect)"
    if typical > NOISY:
        message += ": score with metrics.Reference.from_adata(controls='split')"
    return finding("control noise", typical, message, note=0.2, warning=NOISY)


def _target_finding(conditions: pd.DataFrame) -> Finding:
    z = conditions["target_z"].dropna()
    if z.empty:
        return finding("target gene", 0.0, "no target gene is measured", note=0.2, warning=0.5)
    still = float((z.abs() < CLEAR).mean())
    message = f"the target gene changes by two standard errors or more in {1 - still:.0%} of {len(z)} conditions"
    if still > STILL:
        message += ": check the guides of the others, and whether their targets are expressed"
    return finding("target gene", still, message, note=STILL, warning=0.5)


def _responder_finding(conditions: pd.DataFrame) -> Finding:
    known = conditions["responders"].dropna()
    low = float((known < 0.5).sum()) / max(len(known), 1)
    message = f"less than half of the cells respond in {low:.0%} of {len(known)} conditions with a clear shift"
    return finding("responders", low, message, note=0.2, warning=0.5)
