"""Which evidence is a prediction based on, and how wrong may it be?"""

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ptrag_sc.data import ControlMeans, Screen, matched_control
from ptrag_sc.data._requests import request_population
from ptrag_sc.metrics import pearson_delta
from ptrag_sc.metrics._halves import control_halves
from ptrag_sc.model._calibration import OUTCOMES, Regression, features_of, half_width, regress
from ptrag_sc.nn import energy_distance
from ptrag_sc.retrieval import neighbours_only

if TYPE_CHECKING:
    from ptrag_sc.model._prediction import ModulePredictor

logger = logging.getLogger(__name__)

# A second sample of the truth has an energy distance of 0 on average, so single values can be negative.
RANGES = {"pearson_delta": (-1.0, 1.0), "energy_distance": (-math.inf, math.inf)}
REASONS = (  # why a model abstains; the first that holds
    "no validation condition in this cell type",
    "evidence unlike that of all validation conditions",
    "too few validation conditions for an interval",
    "may be no better than no effect",
)
CONDITION = ["perturbation", "cell_type"]
MAX_CONDITIONS = 300  # validation conditions that are predicted
MAX_CELLS = 256  # cells of each
LABELS_AT_ONCE = 8


@dataclass(frozen=True)
class Calibration:
    """A fit of the errors on validation conditions to the evidence that was retrieved for them.

    Parameters
    ----------
    regression
        The fit.
    conditions
        Validation conditions: ``perturbation``, ``cell_type``, and for each outcome ``<name>`` (observed) and
        ``expected_<name>`` (predicted from the conditions of all other perturbations).
    """

    regression: Regression
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
        x = features_of(table)  # (N, F)
        y = table[list(OUTCOMES)].to_numpy(float)  # (N, O)
        left_out = np.empty_like(y)
        every = np.arange(len(table))
        # Conditions of one perturbation are left out together, because they share evidence.
        for rows in table.groupby("perturbation").indices.values():
            others = every  # a single perturbation can only be predicted from itself
            if len(rows) < len(table):
                others = np.setdiff1d(every, rows)
            left_out[rows] = regress(x[others], y[others]).predict(x[rows])
        conditions = table[[*CONDITION, *OUTCOMES]].copy()
        for name, values in zip(OUTCOMES, left_out.T, strict=True):
            conditions[f"expected_{name}"] = values
        return cls(regress(x, y), conditions)

    def covers(self, support: pd.DataFrame) -> np.ndarray:
        """Return whether each condition (N,) of a support table is like those that errors were observed on.

        Its cell type had a validation condition, and no feature lies beyond those of the validation conditions by more
        than half of their range.
        """
        known = support["cell_type"].astype(str).isin(self.conditions["cell_type"].astype(str)).to_numpy()
        return known & self.regression.covers(features_of(support))

    def expected(self, support: pd.DataFrame) -> pd.DataFrame:
        """Return a support table with expected errors, their intervals, whether to abstain, and the reason in words.

        Conditions unlike those that errors were observed on have none (NaN), and the model abstains.
        """
        values = self.regression.predict(features_of(support))  # (N, O)
        values[~self.covers(support)] = np.nan
        support = support.copy()
        for name, column in zip(OUTCOMES, values.T, strict=True):
            width = half_width(self.conditions, name)
            smallest, largest = RANGES[name]
            support[f"expected_{name}"] = column
            support[f"{name}_low"] = (column - width).clip(smallest, largest)
            support[f"{name}_high"] = (column + width).clip(smallest, largest)
        # Otherwise the prediction may be no better than no effect, whose pearson_delta is 0.
        support["abstain"] = ~(support["pearson_delta_low"] > 0)
        support["reason"] = self._reasons(support)
        return support

    def _reasons(self, support: pd.DataFrame) -> np.ndarray:
        """Return in words why the model abstains (N,); "" where it does not."""
        measured = support["cell_type"].astype(str).isin(self.conditions["cell_type"].astype(str))
        cases = [
            ~support["abstain"],
            ~measured,
            support["expected_pearson_delta"].isna(),
            np.full(len(support), not math.isfinite(half_width(self.conditions, "pearson_delta"))),
        ]
        return np.select(cases, ["", *REASONS[:-1]], REASONS[-1]).astype(object)

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as lists and numbers."""
        return {**self.regression.to_json(), "conditions": self.conditions.to_dict(orient="list")}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Calibration":
        """Return the calibration from the value of :meth:`to_json`."""
        return cls(Regression.from_json(saved), pd.DataFrame(saved["conditions"]))


def warn_of_abstention(support: pd.DataFrame) -> None:
    """Log for how many predictions of a support table the model abstains, and why."""
    reasons = support.loc[support["abstain"], "reason"]
    if len(reasons):
        counted = "; ".join(f"{reason} ({n})" for reason, n in reasons.value_counts().items())
        logger.warning(
            f"the model abstains from {len(reasons)} of {len(support)} predicted conditions: {counted}. "
            "They are predicted all the same; see the table 'support' beside the prediction"
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
    index = screen.index
    pairs = zip(val["perturbation"], val["cell_type"], strict=True)
    # The energy distance needs two cells, and halves of the controls two control cells.
    val = val[[min(len(index.rows(p, t)), len(index.controls(t))) > 1 for p, t in pairs]]
    if val.empty:
        return None
    # The table is sorted, so evenly spaced rows are spread over all perturbations.
    chosen = np.unique(np.linspace(0, len(val) - 1, min(MAX_CONDITIONS, len(val))).astype(int))
    val = val.iloc[chosen]
    support, observed = observed_errors(model, screen, val, as_held_out=True)
    if not np.isfinite(observed[list(OUTCOMES)].to_numpy(float)).all():
        logger.warning("Some predictions of validation conditions are not finite: no errors are expected.")
        return None
    return Calibration.fit(support, observed)


def observed_errors(
    model: "ModulePredictor", screen: Screen, conditions: pd.DataFrame, *, as_held_out: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict conditions that are observed, and return the evidence behind each prediction and its errors.

    Their ``pearson_delta`` is that of :func:`ptrag_sc.benchmark.evaluate` with ``controls="split"``.

    Parameters
    ----------
    model
        Trained :class:`ptrag_sc.PTRAG` with data.
    screen
        Cells with these conditions.
    conditions
        Codes ``perturbation``, ``cell_type``.
    as_held_out
        As in calibration, a single perturbation does not retrieve its own combinations.

    Returns
    -------
    tuple of two DataFrames
        :func:`support_table` of the conditions, and a table with ``perturbation``, ``cell_type`` and ``OUTCOMES``.
    """
    halves = control_halves(screen)
    supports = []
    errors = []
    for t, of_type in conditions.groupby("cell_type"):
        labels = tuple(str(name) for name in screen.index.perturbations[of_type["perturbation"]])
        n_cells = min(MAX_CELLS, len(screen.index.sources(t)))
        population = request_population(screen, len(labels), [t], n_cells=n_cells, set_size=model.set_size_, seed=None)
        run = model.run(model.training_data(), screen, labels)
        if as_held_out:
            run.state = model.module.with_keys(model.query_table(labels, None, view=model.view(screen), as_new=True))
        for piece in population.pieces(LABELS_AT_ONCE * len(population.sets[0])):
            cells = run.answer(piece).cells  # (N, G)
            for q in np.unique(piece.query):
                rows = piece.query == q  # (N,)
                real = screen.index.rows(of_type["perturbation"].iloc[q - 1], t)
                observed = _errors(cells[rows], screen, piece.source[rows], real=real, halves=halves)
                errors.append((labels[q - 1], str(screen.index.cell_types[t]), *observed))
        supports.append(support_table(run.retrieved.table(), run.retrieved.strength()))
    return pd.concat(supports, ignore_index=True), pd.DataFrame(errors, columns=[*CONDITION, *OUTCOMES])


def _errors(
    cells: np.ndarray,
    screen: Screen,
    source: np.ndarray,
    *,
    real: np.ndarray,
    halves: tuple[ControlMeans, ControlMeans],
) -> tuple[float, float]:
    """Return ``OUTCOMES`` of predicted cells (N, G), given their control cells and the rows of the real ones."""
    predicted_mean = cells.mean(0, dtype=np.float64)  # (G,)
    real_mean = sum(part.sum(0, dtype=np.float64) for _, part in screen.reader.chunks(real)) / len(real)  # (G,)
    origin = np.zeros_like(predicted_mean)
    # From disjoint halves of the controls, both ways round, because shared noise would look like agreement.
    correlations = [
        pearson_delta(
            real_mean - matched_control(one, screen.index.batch[real]),
            predicted_mean - matched_control(other, screen.index.batch[source]),
            origin,
        )
        for one, other in (halves, halves[::-1])
    ]
    x = torch.as_tensor(cells)[None]  # (1, N, G)
    y = torch.as_tensor(screen.reader.rows(real[:MAX_CELLS]))[None]  # (1, M, G)
    x_mask = torch.ones(1, x.shape[1], dtype=torch.bool)
    y_mask = torch.ones(1, y.shape[1], dtype=torch.bool)
    return float(np.mean(correlations)), float(energy_distance(x, y, x_mask, y_mask))


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
