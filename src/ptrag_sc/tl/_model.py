"""Is what stands in the place of the model one?"""

from ptrag_sc._validation import unusable
from ptrag_sc.data import Predictor


def check_predictor(model: object, kind: type = Predictor) -> None:
    """Refuse what is no predictor: the arguments of a function in the wrong order, or a class that was not called.

    Raises
    ------
    TypeError
        If it is none.
    """
    if not isinstance(model, kind):
        remedy = "Pass the data first, then the fitted model."
        raise TypeError(unusable(repr(model)[:60], "the place of the model", f"is no {kind.__name__}", remedy))
