"""How well is the mean expression after a perturbation predicted?"""

import numpy as np

MIN_NORM = 1e-6  # a vector below this norm has no direction: it correlates 0


def pearson_delta(real: np.ndarray, predicted: np.ndarray, reference: np.ndarray) -> float:
    """Pearson correlation over genes of predicted and real shift from a reference.

    With the control mean as reference this is the field's ``pearson_delta``: the shift that all perturbations share
    dominates it. With the centre of the training perturbations it is ``pearson_delta_pert``: what is specific to the
    perturbation (Systema, Viñas Torné et al. 2025).

    Parameters
    ----------
    real, predicted, reference
        Mean expression (G,).

    Returns
    -------
    Between -1 and 1; 0 where either shift, less its mean over genes, has a norm below 1e-6.

    Examples
    --------
    >>> import numpy as np
    >>> pearson_delta(np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.0, 5.0]), np.zeros(3))
    1.0
    """
    x, y = real - reference, predicted - reference
    x, y = x - x.mean(), y - y.mean()
    norms = np.linalg.norm(x), np.linalg.norm(y)
    return 0.0 if min(norms) < MIN_NORM else float(np.clip(x @ y / (norms[0] * norms[1]), -1.0, 1.0))


def effect_slope(real: np.ndarray, predicted: np.ndarray, reference: np.ndarray) -> float:
    """Slope of the predicted on the real shift, through the origin: below 1, effects are shrunk.

    Parameters
    ----------
    real, predicted, reference
        Mean expression (G,).

    Returns
    -------
    ``<predicted shift, real shift> / <real shift, real shift>``; 0 where the real shift has a norm below 1e-6.

    Examples
    --------
    >>> import numpy as np
    >>> effect_slope(np.array([2.0, -4.0]), np.array([1.0, -2.0]), np.zeros(2))
    0.5
    """
    shift = real - reference
    square = float(shift @ shift)
    return float((predicted - reference) @ shift / square) if square >= MIN_NORM**2 else 0.0
