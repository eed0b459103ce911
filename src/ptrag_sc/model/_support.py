"""Which evidence is a prediction based on, and how wrong may it be?"""

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from ptrag_sc.data import Screen, control_means
from ptrag_sc.data._requests import request_population
from ptrag_sc.metrics import pearson_delta
from ptrag_sc.nn import energy_distance
from ptrag_sc.retrieval import fit_ridge, neighbours_only

if TYPE_CHECKING:
    from ptrag_sc.model._prediction import ModulePredictor

logger = logging.getLogger(__name__)

OUTCOMES = ("pearson_delta", "energy_distance")
LIMITS = ((-1.0, 1.0), (-math.inf, math.inf))  # smallest and largest value of each outcome
FEATURES = ("similarity", "similarity_response", "weight_own", "log_effective_number", "log_strength")
CONFIDENCE = 0.9
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, math.inf)  # with the last one the expected error is the mean
CONDITION = ["perturbation", "cell_type"]
MAX_CONDITIONS = 300  # validation conditions that are predicted
MAX_CELLS = 256  # cells of each
LABELS_AT_ONCE = 8


@dataclass(frozen=True)
class Calibration:
    """A fit of the errors on validation conditions to the evidence that was retrieved for them.

    Parameters
    ----------
    center, scale
        Mean and standard deviation of the features (F,).
    coefficients
        Coefficients of the standardised features (F, O).
    mean
        Mean of the outcomes (O,).
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
            Evidence of each condition (:func:`support_table`).
        observed
            Columns ``perturbation``, ``cell_type`` and ``OUTCOMES``.
        """
        table = support.merge(observed, on=CONDITION, validate="one_to_one")
        x = _features(table)  # (N, F)
        y = table[list(OUTCOMES)].to_numpy(float)  # (N, O)
        left_out = np.empty_like(y)
        every = np.arange(len(table))
        # Conditions of one perturbation are left out together, because they share evidence.
        for rows in table.groupby("perturbation").indices.values():
            others = every  # a single perturbation can only be predicted from itself
            if len(rows) < len(table):
                others = np.setdiff1d(every, rows)
            left_out[rows] = _regress(x[others], y[others]).predict(x[rows])
        conditions = table[[*CONDITION, *OUTCOMES]].copy()
        for name, values in zip(OUTCOMES, left_out.T, strict=True):
            conditions[f"expected_{name}"] = values
        return cls(*_regress(x, y), conditions)

    @property
    def regression(self) -> "Regression":
        """The fit of all conditions."""
        return Regression(self.center, self.scale, self.coefficients, self.mean)

    def half_width(self, outcome: str) -> float:
        """Return half the width of the interval (jackknife, Barber et al. 2021); inf with too few perturbations.

        The conditions of one perturbation count as one observation, because they are not independent.
        """
        size = self.conditions.groupby("perturbation")["perturbation"].transform("size").to_numpy()  # (N,)
        errors = (self.conditions[outcome] - self.conditions[f"expected_{outcome}"]).abs().to_numpy()  # (N,)
        order = np.argsort(errors)
        n_perturbations = self.conditions["perturbation"].nunique()
        # The jackknife takes the k-th smallest of n errors. Each condition has a weight, so k is a sum of weights.
        k = math.ceil((n_perturbations + 1) * CONFIDENCE)
        reached = (1 / size[order]).cumsum() >= k - 1e-9  # (N,), rounding aside
        if not reached.any():
            return math.inf
        return float(errors[order][reached.argmax()])

    def expected(self, support: pd.DataFrame) -> pd.DataFrame:
        """Return a support table with expected errors, their intervals, and whether to abstain."""
        values = self.regression.predict(_features(support))  # (N, O)
        support = support.copy()
        for name, limits, column in zip(OUTCOMES, LIMITS, values.T, strict=True):
            width = self.half_width(name)
            support[f"expected_{name}"] = column.clip(*limits)
            support[f"{name}_low"] = (column - width).clip(*limits)
            support[f"{name}_high"] = (column + width).clip(*limits)
        # The prediction may be no better than no effect, whose pearson_delta is 0.
        support["abstain"] = support["pearson_delta_low"] <= 0
        return support

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as lists and numbers."""
        return {
            "center": self.center.tolist(),
            "scale": [None if np.isinf(s) else float(s) for s in self.scale],  # JSON has no infinity
            "coefficients": self.coefficients.tolist(),
            "mean": self.mean.tolist(),
            "conditions": self.conditions.to_dict(orient="list"),
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Calibration":
        """Return the calibration from the value of :meth:`to_json`."""
        return cls(
            center=np.array(saved["center"], dtype=float),
            scale=np.array([np.inf if s is None else s for s in saved["scale"]]),
            coefficients=np.array(saved["coefficients"], dtype=float),
            mean=np.array(saved["mean"], dtype=float),
            conditions=pd.DataFrame(saved["conditions"]),
        )


def calibrate_support(model: "ModulePredictor", screen: Screen) -> Calibration | None:
    """Predict the validation conditions of a trained model and learn how wrong it is.

    Parameters
    ----------
    model
        Trained :class:`ptrag_sc.PTRAG`.
    screen
        Its training data.

    Returns
    -------
    Calibration or None
        None without validation conditions, or if a prediction is not finite.
    """
    val = screen.index.coded(model.split_[model.split_["split"] == "val"])
    val = val[[len(screen.index.rows(p, t)) > 1 for p, t in zip(val["perturbation"], val["cell_type"], strict=True)]]
    if val.empty:
        return None
    # The table is sorted, so evenly spaced rows are spread over all perturbations.
    chosen = np.unique(np.linspace(0, len(val) - 1, min(MAX_CONDITIONS, len(val))).astype(int))
    val = val.iloc[chosen]
    support, observed = observed_errors(model, screen, val)
    if not np.isfinite(observed[list(OUTCOMES)].to_numpy(float)).all():
        logger.warning("Some predictions of validation conditions are not finite: no errors are expected.")
        return None
    return Calibration.fit(support, observed)


def observed_errors(
    model: "ModulePredictor", screen: Screen, conditions: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict conditions that are observed, and return the evidence behind each prediction and its errors.

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
    tuple of two DataFrames
        :func:`support_table` of the conditions, and a table with ``perturbation``, ``cell_type`` and ``OUTCOMES``.
    """
    means = control_means(screen.reader, screen.index).cell_type  # (T, G)
    supports = []
    errors = []
    for t, of_type in conditions.groupby("cell_type"):
        labels = tuple(str(name) for name in screen.index.perturbations[of_type["perturbation"]])
        n_cells = min(MAX_CELLS, len(screen.index.controls(t)))
        population = request_population(screen, len(labels), [t], n_cells=n_cells, set_size=model.set_size_, seed=None)
        run = model.run(model.training_data(), screen, labels)
        for piece in population.pieces(LABELS_AT_ONCE * len(population.sets)):
            cells = run.answer(piece).cells  # (N, G)
            for q in np.unique(piece.query):
                rows = piece.query == q  # (N,)
                real = screen.index.rows(of_type["perturbation"].iloc[q - 1], t)
                observed = _errors(cells[rows], screen, piece.source[rows], real=real, control=means[t])
                errors.append((labels[q - 1], str(screen.index.cell_types[t]), *observed))
        supports.append(support_table(run.retrieved.table(), run.retrieved.strength()))
    return pd.concat(supports, ignore_index=True), pd.DataFrame(errors, columns=[*CONDITION, *OUTCOMES])


def _errors(
    cells: np.ndarray, screen: Screen, source: np.ndarray, *, real: np.ndarray, control: np.ndarray
) -> tuple[float, float]:
    """Return ``OUTCOMES`` of predicted cells (N, G), given their control cells and the rows of the real ones."""
    shift = (cells - screen.reader.rows(source)).mean(0)  # (G,)
    mean = np.concatenate([part for _, part in screen.reader.chunks(real)]).mean(0)  # (G,)
    x = torch.as_tensor(cells)[None]  # (1, N, G)
    y = torch.as_tensor(screen.reader.rows(real[:MAX_CELLS]))[None]  # (1, M, G)
    x_mask = torch.ones(1, x.shape[1], dtype=torch.bool)
    y_mask = torch.ones(1, y.shape[1], dtype=torch.bool)
    return pearson_delta(mean, control + shift, control), float(energy_distance(x, y, x_mask, y_mask))


def support_table(retrieved: pd.DataFrame, strength: pd.DataFrame) -> pd.DataFrame:
    """Return a summary of the evidence behind each condition.

    Parameters
    ----------
    retrieved
        Retrieval table.
    strength
        ``perturbation``, ``cell_type``, ``strength``: norm of the mean deviation recalled from the memory, 0 without
        one.

    Returns
    -------
    DataFrame
        ``perturbation``, ``cell_type``, ``n_experiments`` (those with a positive weight), ``effective_number`` (inverse
        of the sum of squared shares of the weight), ``weight_own`` (share of the query's response in other cell types
        and of its components), ``similarity`` and ``similarity_response`` (of the nearest candidate in each space; NaN
        if unknown), ``strength``.
    """
    # A negative weight counts as none.
    table = retrieved.assign(weight=retrieved["weight"].clip(lower=0.0))
    if "similarity_response" not in table:
        table["similarity_response"] = np.nan
    total = table.groupby(CONDITION, observed=True)["weight"].transform("sum")
    table["share"] = (table["weight"] / total.where(total > 0)).fillna(0.0)
    table["squared"] = table["share"] ** 2
    table["used"] = table["weight"] > 0
    is_neighbour = table.index.isin(neighbours_only(table).index)
    table["own"] = table["share"].where(~is_neighbour, 0.0)
    found = table.groupby(CONDITION, observed=True, sort=True).agg(
        n_experiments=("used", "sum"),
        effective_number=("squared", "sum"),
        weight_own=("own", "sum"),
        similarity=("similarity", "max"),
        similarity_response=("similarity_response", "max"),
    )
    found["effective_number"] = 1 / found["effective_number"].where(found["effective_number"] > 0)
    # The table of strengths has every condition, also those for which nothing was retrieved.
    table = strength[CONDITION].merge(found.reset_index(), on=CONDITION, how="left")
    table["strength"] = strength["strength"]
    numbers = ["n_experiments", "effective_number", "weight_own"]
    table[numbers] = table[numbers].astype(float).fillna(0.0)
    return table.astype({"n_experiments": int})


class Regression(NamedTuple):
    """A linear map of F features to O outcomes."""

    center: np.ndarray  # (F,)
    scale: np.ndarray  # (F,), inf for a feature that does not vary
    coefficients: np.ndarray  # (F, O)
    mean: np.ndarray  # (O,)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the expected outcomes (N, O) of features (N, F)."""
        standardised = (x - self.center) / self.scale
        return self.mean + standardised @ self.coefficients


def _regress(x: np.ndarray, y: np.ndarray) -> Regression:
    """Fit outcomes (N, O) to features (N, F), each outcome with its own penalty."""
    center = x.mean(0)
    spread = x.std(0)
    scale = np.where(spread > 1e-6, spread, np.inf)  # a feature that does not vary becomes 0
    mean = y.mean(0)
    features = torch.as_tensor((x - center) / scale)  # (N, F)
    outcomes = torch.as_tensor(y - mean).split(1, dim=1)  # (N, 1) each
    fits = [fit_ridge(features, outcome, penalties=PENALTIES, centred=True) for outcome in outcomes]
    coefficients = torch.cat([fit.coefficients for fit in fits], dim=1).numpy()  # (F, O)
    return Regression(center, scale, coefficients, mean)


def _features(support: pd.DataFrame) -> np.ndarray:
    """Return the features (N, F) of a support table."""
    table = support.assign(
        log_effective_number=np.log1p(support["effective_number"]),
        log_strength=np.log(support["strength"].clip(lower=1e-3)),
    )
    return table[list(FEATURES)].fillna(0.0).to_numpy(float)
