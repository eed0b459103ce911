"""How well is the mean expression after a perturbation predicted?"""

import numpy as np

MIN_NORM = 1e-6  # a vector below this norm is rounding and has no direction, so its correlations are 0


def pearson_delta(real: np.ndarray, predicted: np.ndarray, reference: np.ndarray) -> float:
    """Pearson correlation over genes of predicted and real shift from a reference.

    With the control mean as reference this is the field's ``pearson_delta``, which the shift that all perturbations
    share dominates. With the centre of the training perturbations it is ``pearson_delta_pert``, which measures only
    what is specific to the perturbation (Systema, Viñas Torné et al. 2025).

    Parameters
    ----------
    real, predicted, reference
        Mean expression (G,).

    Returns
    -------
    float
        Between -1 and 1; 0 if either shift, less its mean over genes, has a norm below 1e-6.

    Examples
    --------
    >>> import numpy as np
    >>> pearson_delta(np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.0, 5.0]), np.zeros(3))
    1.0
    """
    shift = real - reference  # (G,)
    shift = shift - shift.mean()
    predicted_shift = predicted - reference  # (G,)
    predicted_shift = predicted_shift - predicted_shift.mean()
    norm = np.linalg.norm(shift)
    predicted_norm = np.linalg.norm(predicted_shift)
    if min(norm, predicted_norm) < MIN_NORM:
        return 0.0
    # Rounding can carry the quotient of equal shifts a little beyond 1.
    return float(np.clip(shift @ predicted_shift / (norm * predicted_norm), -1.0, 1.0))


def effect_slope(real: np.ndarray, predicted: np.ndarray, reference: np.ndarray) -> float:
    """Slope of the predicted on the real shift, through the origin; a slope below 1 means shrunk effects.

    Parameters
    ----------
    real, predicted, reference
        Mean expression (G,).

    Returns
    -------
    float
        ``<predicted shift, real shift> / <real shift, real shift>``; 0 if the real shift has a norm below 1e-6.

    Examples
    --------
    >>> import numpy as np
    >>> effect_slope(np.array([2.0, -4.0]), np.array([1.0, -2.0]), np.zeros(2))
    0.5
    """
    shift = real - reference  # (G,)
    square = float(shift @ shift)
    if square < MIN_NORM**2:
        return 0.0
    return float((predicted - reference) @ shift / square)


def mse(real: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over genes of the squared error of the mean expression.

    Most genes do not respond, so the mean of the training perturbations scores better than a noisy replicate.

    Parameters
    ----------
    real, predicted
        Mean expression (G,).

    Returns
    -------
    float
        The error, in squared units of expression.

    Examples
    --------
    >>> import numpy as np
    >>> mse(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    2.0
    """
    return float(np.square(predicted - real).mean())


def mae(real: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over genes of the absolute error of the mean expression.

    Parameters
    ----------
    real, predicted
        Mean expression (G,).

    Returns
    -------
    float
        The error, in units of expression.

    Examples
    --------
    >>> import numpy as np
    >>> mae(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    1.0
    """
    return float(np.abs(predicted - real).mean())


def wmse(real: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> float:
    """Squared error of the mean expression, weighted towards the genes that distinguish the perturbation from others.

    The weights are those of :func:`t_weights` (Mejia et al. 2025). Unlike :func:`mse`, this error does not reward the
    mean of all perturbations.

    Parameters
    ----------
    real, predicted
        Mean expression (G,).
    weights
        Weight of every gene (G,), summing to 1.

    Returns
    -------
    float
        The error, in squared units of expression; NaN without weights.

    Examples
    --------
    >>> import numpy as np
    >>> wmse(np.array([1.0, 2.0]), np.array([1.0, 4.0]), np.array([0.75, 0.25]))
    1.0
    """
    return float(weights @ np.square(predicted - real))


def r2w_delta(real: np.ndarray, predicted: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> float:
    """Weighted share of the variance over genes of the real shift that the predicted shift explains.

    ``1 - sum w (predicted - real)^2 / sum w (shift - mean shift)^2`` with the weights of :func:`t_weights` and the
    weighted mean over genes (Mejia et al. 2025). With the centre as reference it is ``r2w_delta_pert``.

    Parameters
    ----------
    real, predicted, reference
        Mean expression (G,).
    weights
        Weight of every gene (G,), summing to 1.

    Returns
    -------
    float
        At most 1, not bounded below; 0 if the real shift does not vary over genes (1 if the prediction equals it); NaN
        without weights.

    Examples
    --------
    >>> import numpy as np
    >>> r2w_delta(np.array([1.0, 3.0]), np.array([1.0, 2.0]), np.zeros(2), np.array([0.5, 0.5]))
    0.5
    """
    if np.isnan(weights).any():
        return float("nan")
    shift = real - reference  # (G,)
    error = weights @ np.square(predicted - real)  # the reference cancels in the difference of the shifts
    spread = weights @ np.square(shift - weights @ shift)
    # Without variance there is no share to explain; only an exact prediction is right.
    if spread < MIN_NORM**2:
        return float(error < MIN_NORM**2)
    return float(1 - error / spread)
