"""Which perturbation, cell type or batch does a label name, however it is written?

A label is the same under any type of its column, with or without blanks at its ends, and a perturbation also under any
order of its genes. Everything in the package that reads a label reads it here.
"""

from collections.abc import Hashable, Iterable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import pandas as pd

from ptrag_sc._validation import absent, listed, unusable

# A label of any scalar type, or several labels that count as one control; None: no label is a control.
Control: TypeAlias = object
NEVER = "Pass sep=None if labels are never split."


def label_text(value: object) -> str:
    """Return a label as text: a whole number without decimals, bytes decoded, without blanks at the ends.

    Examples
    --------
    >>> label_text(b"STAT1"), label_text(3.0), label_text(np.int64(3)), label_text(" K562 ")
    ('STAT1', '3', '3', 'K562')
    """
    if type(value) is str:  # most are, and a screen has many
        return value.strip()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    # A column of whole numbers becomes one of decimals as soon as a value is missing.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def as_names(values: Iterable[object]) -> np.ndarray:
    """Return names as a numpy array of str; pandas 3 and zarr store them in string types of their own."""
    return np.array([str(value) for value in values], dtype=str)


def read_sep(sep: object) -> str | None:
    """Return the separator of combinations without blanks around it; None: labels are never split.

    Raises
    ------
    TypeError
        If it is neither a string nor None.
    ValueError
        If it is empty.
    """
    if sep is None:
        return None
    if not isinstance(sep, str):
        raise TypeError(unusable(f"sep={sep!r}", "the request", "is no string", NEVER))
    if not sep:
        raise ValueError(unusable("sep=''", "the request", "is empty", NEVER))
    return sep.strip() or sep  # a blank separates too


def control_names(control: Control) -> tuple[str, ...]:
    """Return the labels of control cells; the first one is the name of the control.

    Examples
    --------
    >>> control_names(0), control_names(["ntc1", "ntc2"])
    (('0',), ('ntc1', 'ntc2'))

    Raises
    ------
    ValueError
        If none is named, or one is blank.
    """
    if control is None:
        return ()
    if isinstance(control, str | bytes) or not isinstance(control, Iterable):
        control = [control]
    names = tuple(dict.fromkeys(label_text(name) for name in control))
    if control == ():  # of a call without data
        return ()
    if not names or not all(names):
        remedy = "Pass control=<the label of control cells>, or a list of labels that count as one control."
        raise ValueError(unusable(f"control={control!r}", "the request", "names no label", remedy))
    return names


@lru_cache(maxsize=2**17)  # the labels of a screen are taken apart many times
def _parts(label: str, sep: str | None) -> tuple[str, ...]:
    """Return the parts of a label in sorted order, without blanks."""
    if sep is None:
        return (label.strip(),)
    return tuple(sorted(part.strip() for part in label.split(sep)))


def components(label: str, sep: str | None) -> tuple[str, ...]:
    """Return the perturbed genes of a label in sorted order.

    Raises
    ------
    ValueError
        If a component is empty or occurs twice (``A+A``).

    Examples
    --------
    >>> components("B+A", "+"), components("B+A", None)
    (('A', 'B'), ('B+A',))
    """
    label = label_text(label)
    parts = _parts(label, sep)
    if len(parts) == 1 and parts[0]:
        return parts
    what, place = f"Label {label!r}", "the perturbations"
    if not all(parts):
        raise ValueError(unusable(what, place, "has an empty component", f"sep={sep!r}? {NEVER}"))
    if len(set(parts)) < len(parts):
        raise ValueError(unusable(what, place, "names a gene twice", "Name each gene once."))
    return parts


def joined(parts: Iterable[str], sep: str | None) -> str:
    """Return the label of some genes."""
    return (sep or "").join(parts)  # without a separator there is one gene


def canonical(label: str, sep: str | None) -> str:
    """Return the label under which ``B+A`` and ``A+B`` are one perturbation.

    Examples
    --------
    >>> canonical("B+A", "+")
    'A+B'
    """
    return joined(components(label, sep), sep)


def canonical_labels(labels: Iterable[object], *, control: Control, sep: str | None) -> np.ndarray:
    """Return canonical labels (n,); a label of the control is never taken apart and gets the control's name."""
    texts = [label_text(label) for label in labels]
    names = control_names(control)
    of_control = {_parts(name, sep) for name in names}
    canonical_of = {}
    for text in set(texts):
        if _parts(text, sep) in of_control:
            canonical_of[text] = names[0]
        else:
            canonical_of[text] = canonical(text, sep)
    return np.array([canonical_of[text] for text in texts], dtype=object)


def with_control(labels: Iterable[str], *, control: Control, sep: str | None) -> list[str]:
    """Return the labels that are no label of the control but hold one of its labels, or a part of one."""
    names = control_names(control)
    of_control = {_parts(name, sep) for name in names}
    pieces = {*names, *(piece for parts in of_control for piece in parts)}
    found = []
    for label in labels:
        parts = _parts(label, sep)
        if parts not in of_control and not pieces.isdisjoint(parts):
            found.append(label)
    return found


def read_labels(obs: pd.DataFrame, key: Hashable, *, remedy: str = "Label or remove these cells.") -> np.ndarray:
    """Return one obs column as text (n,), refusing a missing column and missing labels.

    Parameters
    ----------
    obs
        The table of cells.
    key
        The column.
    remedy
        For missing labels.

    Raises
    ------
    KeyError
        If the column does not exist.
    TypeError
        If the table is not in memory.
    ValueError
        If the column occurs twice, or holds NaN or blanks.
    """
    return _texts(obs, key, remedy, missing=None)


def read_optional_labels(obs: pd.DataFrame, key: Hashable, *, missing: str) -> np.ndarray:
    """Return one obs column as text (n,), with ``missing`` for cells without a label."""
    return _texts(obs, key, "", missing=missing)


def _texts(obs: pd.DataFrame, key: Hashable, remedy: str, *, missing: str | None) -> np.ndarray:
    place = f"adata.obs[{key!r}]"
    if not isinstance(obs, pd.DataFrame):
        load = "Read the file with anndata.read_h5ad(path, backed='r'), or pass adata.to_memory()."
        raise TypeError(unusable("The table of cells", "adata.obs", f"is a lazy {type(obs).__name__}", load))
    if key not in obs:
        raise KeyError(absent("Column", key, "adata.obs", obs.columns, "Name an existing column."))
    column = obs[key]
    if isinstance(column, pd.DataFrame):
        problem = f"is the name of {column.shape[1]} columns"
        raise ValueError(unusable(f"Column {key!r}", "adata.obs", problem, "Rename or remove all but one."))
    # Each distinct value is made a text once.
    codes, values = pd.factorize(column.to_numpy(dtype=object, na_value=None))  # (n,) with -1 for NaN
    texts = np.array([*(label_text(value) for value in values), ""], dtype=object)  # the last one is picked by -1
    labels: np.ndarray = texts[codes]
    empty = labels == ""
    if missing is not None:
        labels[empty] = missing
    elif empty.any():
        first = str(obs.index[empty][0])
        problem = f"are missing (NaN) for {empty.sum()} cells, the first being {first!r}"
        if (codes[empty] >= 0).any():
            problem = f"are blank for {empty.sum()} cells, the first being {first!r}"
        raise ValueError(unusable("Labels", place, problem, remedy))
    return labels


def read_perturbations(
    obs: pd.DataFrame, key: str, *, control: Control, sep: object, remedy: str | None = None, every_control: bool = True
) -> np.ndarray:
    """Return the canonical perturbation of every cell (n,); the control label must occur.

    Parameters
    ----------
    obs, key
        The table of cells and its column.
    control
        Label of control cells, or several that count as one control.
    sep
        Separator of combinations; None: labels are never split.
    remedy
        For a control label that does not occur; None: the argument ``control`` can be corrected.
    every_control
        Whether every label of the control must occur, or one is enough.

    Raises
    ------
    ValueError
        If a control label does not occur or is joined to a gene, or a label names a gene twice (``A+A``).
    """
    place = f"adata.obs[{key!r}]"
    sep = read_sep(sep)
    fill = f"Label or remove these cells; if they are the controls, adata.obs[{key!r}] has no label for them yet."
    found, codes = np.unique(read_labels(obs, key, remedy=fill).astype(str), return_inverse=True)
    written = {_parts(name, sep) for name in found}
    names = control_names(control)
    lacking = [name for name in names if _parts(name, sep) not in written]
    if lacking and (every_control or len(lacking) == len(names)):
        remedy = remedy or "Pass control=<the label of control cells>."
        raise ValueError(absent("Control label", lacking[0], place, found, remedy))
    if held := with_control(found.tolist(), control=control, sep=sep):
        problem = f"join a gene and the control ({listed(held)})"
        remedy = (
            "Label cells of one perturbed gene with the gene alone, and pass all labels of unperturbed cells as a list "
            f"control=[...]. {NEVER}"
        )
        raise ValueError(unusable("Labels", place, problem, remedy))
    return canonical_labels(found, control=control, sep=sep)[codes]


def named_perturbations(
    labels: Iterable[object], *, control: Control, sep: str | None, what: str = "perturbations"
) -> tuple[str, ...]:
    """Return the distinct canonical labels of perturbations that a call asks for, in order.

    Raises
    ------
    ValueError
        If none is named, or the control is among them or their components.
    """
    texts = [label_text(label) for label in labels]
    problem = None
    if not texts:
        problem = "are empty"
    elif held := with_control(texts, control=control, sep=sep):
        problem = f"hold the control {control_names(control)[0]!r} (in {held[0]!r})"
    if problem is None:
        found = tuple(dict.fromkeys(canonical_labels(texts, control=control, sep=sep).tolist()))
        names = control_names(control)
        if not names or names[0] not in found:
            return found
        problem = f"hold the control {names[0]!r}"
    raise ValueError(unusable(f"The {what}", "the request", problem, "Name perturbed genes."))
