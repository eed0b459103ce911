"""Is the argument in the place of the model a fitted model?"""

from ptrag_sc._validation import unusable
from ptrag_sc.data import Predictor


def check_predictor(model: object, kind: type = Predictor) -> None:
    """Refuse anything but a predictor, such as the data (swapped arguments) or a class that was not called.

    Raises
    ------
    TypeError
        If the model is not an instance of ``kind``.
    """
    if not isinstance(model, kind):
        remedy = "Pass the data first, then the fitted model."
        raise TypeError(unusable(repr(model)[:60], "the place of the model", f"is no {kind.__name__}", remedy))
