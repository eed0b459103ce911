"""What does a prediction rest on, and how wrong may it be?"""

import logging
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ptrag_sc.data import Screen, control_means
from ptrag_sc.data._requests import request_population
from ptrag_sc.metrics import pearson_delta
from ptrag_sc.nn import energy_distance
from ptrag_sc.retrieval import fit_ridge

logger = logging.getLogger(__name__)

OUTCOMES = ("pearson_delta", "energy_distance")
FEATURES = ("similarity", "similarity_response", "weight_own", "log_effective_number", "log_strength")
CONFIDENCE = 0.9
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, math.inf)  # at the last the expected error is the mean
CONDITION = ["perturbation", "cell_type"]
MAX_CONDITIONS, MAX_CELLS = 300, 256  # of validation
LABELS_AT_ONCE = 8


@dataclass(frozen=True)
class Calibration:
    """How errors on validation conditions followed from what was retrieved for them.

    Parameters
    ----------
    center, scale
        Of the features (F,).
    coefficients
        Of the standardised features (F, O).
    mean
        Of the outcomes (O,).
    conditions
        Validation conditions: ``perturbation``, ``cell_type``, and for each outcome ``<name>`` (observed) and
        ``expected_<name>`` (predicted from the conditions of all other perturbations).
    """

    center: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    mean: np.ndarray
    conditions: pd.DataFrame

    @classmethod
    def fit(cls, support: pd.DataFrame, observed: pd.DataFrame) -> "Calibration":
        """Learn from validation conditions.

        Parameters
        ----------
        support
            What was retrieved (:func:`support_table`).
        observed
            Columns ``perturbation``, ``cell_type`` and ``OUTCOMES``.
        """
        table = support.merge(observed, on=CONDITION, validate="one_to_one")
        x, y = _features(table), table[list(OUTCOMES)].to_numpy(float)
        left_out, every = np.empty_like(y), np.arange(len(table))
        for rows in table.groupby("perturbation").indices.values():
            others = np.setdiff1d(every, rows) if len(rows) < len(table) else every
            center, scale, coefficients, mean = _regress(x[others], y[others])
            left_out[rows] = mean + (x[rows] - center) / scale @ coefficients
        conditions = table[[*CONDITION, *OUTCOMES]].copy()
        for name, values in zip(OUTCOMES, left_out.T, strict=True):
            conditions[f"expected_{name}"] = values
        return cls(*_regress(x, y), conditions)

    def half_width(self, outcome: str) -> float:
        """Return half the width of the interval (jackknife, Barber et al. 2021); inf with too few perturbations.

        Conditions of one perturbation are not independent: together they count once.
        """
        size = self.conditions.groupby("perturbation")["perturbation"].transform("size")
        errors = (self.conditions[outcome] - self.conditions[f"expected_{outcome}"]).abs().to_numpy()
        order, n = np.argsort(errors), self.conditions["perturbation"].nunique()
        k = math.ceil((n + 1) * CONFIDENCE)
        reached = (1 / size.to_numpy()[order]).cumsum() >= k - 1e-9
        return float(errors[order][reached.argmax()]) if reached.any() else math.inf

    def expected(self, support: pd.DataFrame) -> pd.DataFrame:
        """Return a support table with expected errors, their intervals, and whether to abstain."""
        values = self.mean + (_features(support) - self.center) / self.scale @ self.coefficients
        support = support.copy()
        for name, column, limits in zip(OUTCOMES, values.T, ((-1, 1), (-math.inf, math.inf)), strict=True):
            width = self.half_width(name)
            support[f"expected_{name}"] = column.clip(*limits)
            support[f"{name}_low"], support[f"{name}_high"] = ((column + s * width).clip(*limits) for s in (-1, 1))
        support["abstain"] = support["pearson_delta_low"] <= 0
        return support

    def to_json(self) -> dict:
        """Return lists and numbers."""
        arrays = {name: getattr(self, name).tolist() for name in ("center", "coefficients", "mean")}
        arrays["scale"] = [None if np.isinf(s) else float(s) for s in self.scale]
        return {**arrays, "conditions": self.conditions.to_dict(orient="list")}

    @classmethod
    def from_json(cls, saved: dict) -> "Calibration":
        """Return what :meth:`to_json` returned."""
        scale = np.array([np.inf if s is None else s for s in saved["scale"]])
        arrays = {name: np.array(saved[name], dtype=float) for name in ("center", "coefficients", "mean")}
        return cls(scale=scale, conditions=pd.DataFrame(saved["conditions"]), **arrays)


def calibrate_support(model, screen: Screen) -> Calibration | None:
    """Predict the validation conditions of a trained model and learn how wrong it is.

    None without such conditions, or where a prediction is not finite.

    Parameters
    ----------
    model
        Trained :class:`ptrag_sc.PTRAG`.
    screen
        Its training data.
    """
    val = screen.index.coded(model.split_[model.split_["split"] == "val"])
    val = val[[len(screen.index.rows(p, t)) > 1 for p, t in zip(val["perturbation"], val["cell_type"], strict=True)]]
    if val.empty:
        return None
    val = val.iloc[np.unique(np.linspace(0, len(val) - 1, min(MAX_CONDITIONS, len(val))).astype(int))]
    support, observed = observed_errors(model, screen, val)
    if not np.isfinite(observed[list(OUTCOMES)].to_numpy(float)).all():
        logger.warning("Some predictions of validation conditions are not finite: no errors are expected.")
        return None
    return Calibration.fit(support, observed)


def observed_errors(model, screen: Screen, conditions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict conditions that are observed, and return what they rest on and how wrong they are.

    Parameters
    ----------
    model
        Trained :class:`ptrag_sc.PTRAG` with data.
    screen
        Cells with these conditions.
    conditions
        Codes ``perturbation``, ``cell_type``.

    Returns
    -------
    :func:`support_table` of the conditions, and a table with ``perturbation``, ``cell_type`` and ``OUTCOMES``.
    """
    means, parts, supports = control_means(screen.reader, screen.index).cell_type, [], []
    for t, of_type in conditions.groupby("cell_type"):
        labels = tuple(str(name) for name in screen.index.perturbations[of_type["perturbation"]])
        n_cells = min(MAX_CELLS, len(screen.index.controls(t)))
        population = request_population(screen, len(labels), [t], n_cells=n_cells, set_size=model.set_size_, seed=None)
        run = model.run(model.training_data(), screen, labels)
        for piece in population.pieces(LABELS_AT_ONCE * len(population.sets)):
            cells = run.answer(piece).cells
            for q in np.unique(piece.query):
                rows, real = piece.query == q, screen.index.rows(of_type["perturbation"].iloc[q - 1], t)
                observed = _errors(cells[rows], screen, piece.source[rows], real=real, control=means[t])
                parts.append((labels[q - 1], str(screen.index.cell_types[t]), *observed))
        supports.append(support_table(run.retrieved.table(), run.retrieved.strength()))
    return pd.concat(supports, ignore_index=True), pd.DataFrame(parts, columns=[*CONDITION, *OUTCOMES])


def _errors(cells: np.ndarray, screen: Screen, source: np.ndarray, *, real: np.ndarray, control: np.ndarray):
    """Return ``OUTCOMES`` of predicted cells (N, G), given their control cells and the rows of the real ones."""
    shift = (cells - screen.reader.rows(source)).mean(0)
    mean = np.concatenate([part for _, part in screen.reader.chunks(real)]).mean(0)
    shown = torch.as_tensor(screen.reader.rows(real[:MAX_CELLS]))
    populations = torch.as_tensor(cells)[None], shown[None]
    masks = (torch.ones(1, x.shape[1], dtype=torch.bool) for x in populations)
    return pearson_delta(mean, control + shift, control), float(energy_distance(*populations, *masks))


def support_table(retrieved: pd.DataFrame, strength: pd.DataFrame) -> pd.DataFrame:
    """Return what each condition rests on.

    Parameters
    ----------
    retrieved
        Retrieval table.
    strength
        ``perturbation``, ``cell_type``, ``strength``: norm of the mean deviation that the memory tells, 0 without one.

    Returns
    -------
    ``perturbation``, ``cell_type``, ``n_experiments`` (with weight), ``effective_number`` (inverse of the sum of
    squared shares of the weight), ``weight_own`` (of its own response elsewhere and of its components, in all weight),
    ``similarity`` and ``similarity_response`` (of the nearest candidate in each space; NaN where not known),
    ``strength``.
    """
    table = retrieved.assign(weight=retrieved["weight"].clip(lower=0.0))
    if "similarity_response" not in table:
        table["similarity_response"] = np.nan
    total = table.groupby(CONDITION, observed=True)["weight"].transform("sum")
    table["share"] = (table["weight"] / total.where(total > 0)).fillna(0.0)
    table["squared"], table["used"] = table["share"] ** 2, table["weight"] > 0
    table["own"] = table["share"].where(table["role"] != "neighbour", 0.0)
    found = table.groupby(CONDITION, observed=True, sort=True).agg(
        n_experiments=("used", "sum"),
        effective_number=("squared", "sum"),
        weight_own=("own", "sum"),
        similarity=("similarity", "max"),
        similarity_response=("similarity_response", "max"),
    )
    found["effective_number"] = 1 / found["effective_number"].where(found["effective_number"] > 0)
    table = (
        strength[CONDITION].merge(found.reset_index(), on=CONDITION, how="left").assign(strength=strength["strength"])
    )
    numbers = ["n_experiments", "effective_number", "weight_own"]
    table[numbers] = table[numbers].astype(float).fillna(0.0)
    return table.astype({"n_experiments": int})


def _regress(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return center and scale of the features (N, F), their coefficients, and the mean of the outcomes (N, O)."""
    center, spread, mean = x.mean(0), x.std(0), y.mean(0)
    scale = np.where(spread > 1e-6, spread, np.inf)  # what does not vary tells nothing
    features, outcomes = torch.as_tensor((x - center) / scale), torch.as_tensor(y - mean)
    fits = [fit_ridge(features, of_one, penalties=PENALTIES, centred=True) for of_one in outcomes.split(1, dim=1)]
    return center, scale, torch.cat([fit.coefficients for fit in fits], dim=1).numpy(), mean


def _features(support: pd.DataFrame) -> np.ndarray:
    table = support.assign(
        log_effective_number=np.log1p(support["effective_number"]),
        log_strength=np.log(support["strength"].clip(lower=1e-3)),
    )
    return table[list(FEATURES)].fillna(0.0).to_numpy(float)
