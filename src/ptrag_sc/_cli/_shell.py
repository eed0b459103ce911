"""How does a command meet the shell: which files must exist, what is printed, and how is an error worded?"""

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ptrag_sc._validation import unusable

SCREENS = (".h5ad", ".zarr", ".h5mu")  # what a screen can be read from
EXPECTED = (ValueError, KeyError, TypeError, OSError, ImportError)  # errors with a message for the user
NOISY = ("lightning", "lightning.pytorch", "lightning.fabric", "fontTools", "matplotlib", "scvi", "pooch", "numba")
RAW_COUNTS = "Pass --normalize, or --size-factors COLUMN."


def check_inputs(options: argparse.Namespace) -> None:
    """Refuse input files that do not exist or are of another format, before anything is imported.

    Raises
    ------
    FileNotFoundError
        If a file was not found.
    ValueError
        If the suffix of a screen names no known format.
    """
    for name in options.inputs:
        path = getattr(options, name)
        if path is None:
            continue
        if not Path(path).exists():
            raise FileNotFoundError(unusable(_named(name), str(path), "was not found", "Pass an existing file."))
    for name in options.screens:
        path = getattr(options, name)
        if path is not None and Path(path).suffix not in SCREENS:
            problem = f"has the suffix {Path(path).suffix!r}"
            remedy = f"Pass a file that ends in {', '.join(SCREENS[:-1])} or {SCREENS[-1]}."
            raise ValueError(unusable(_named(name), str(path), problem, remedy))


def _named(name: str) -> str:
    return f"The file {name!r}"


@contextmanager
def output(options: argparse.Namespace) -> Iterator[None]:
    """Let the log of the package go to the standard output meanwhile, and keep that of its dependencies away."""
    package = logging.getLogger("ptrag_sc")
    loggers = [package, *map(logging.getLogger, NOISY)]
    before = [(logger, logger.level) for logger in loggers]
    handlers = package.handlers
    shown = logging.StreamHandler(sys.stdout)
    shown.setFormatter(_ShellFormatter(options.flags))
    package.handlers = [shown]
    package.setLevel(logging.ERROR if options.quiet else logging.INFO)
    hush()
    try:
        with warnings.catch_warnings():
            # Of dependencies among each other; what the package has to say about the data is logged.
            warnings.simplefilter("ignore")
            yield
    finally:
        package.handlers = handlers
        for logger, level in before:
            logger.setLevel(level)


def hush() -> None:
    """Let dependencies log errors only; lightning raises the level again when it is imported."""
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.ERROR)


def show_progress(options: argparse.Namespace) -> bool:
    """Return whether progress bars can be seen: not in a file, not with ``--quiet``."""
    return not options.quiet and sys.stderr.isatty()


def say(options: argparse.Namespace, text: str) -> None:
    """Print a result, unless ``--quiet``."""
    if not options.quiet:
        sys.stdout.write(f"{text}\n")


def shell_message(error: Exception, options: argparse.Namespace) -> str:
    """Return an error as one line, with the options of the command in place of the arguments of Python functions.

    Examples
    --------
    >>> options = argparse.Namespace(control="ctrl", flags={"control": "--control", "n_cells": "--n-cells"})
    >>> shell_message(ValueError("Label 'ctrl' does not occur. Pass control=..."), options)
    "Label 'ctrl' does not occur. Pass --control."
    >>> shell_message(ValueError("Leave n_cells=None to take all."), options)
    'Leave --n-cells out to take all.'
    """
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # str() of a KeyError adds quotes
    text = " ".join(text.split())
    if not isinstance(error, EXPECTED):
        return f"unexpected {type(error).__name__}: {text or 'no message'}. Pass --traceback to see where it arose."
    text = in_shell_words(text, options.flags)
    if "raw counts" in text and "normalize" in options:
        text = f"{text} In the shell: {RAW_COUNTS}"
    return text


def in_shell_words(text: str, flags: Mapping[str, str]) -> str:
    """Return a text with options (``flags``, by argument) in place of the arguments of Python functions.

    Examples
    --------
    >>> in_shell_words("Hold out more with ptrag_sc.pp.split(val_fraction=...).", {"val_fraction": "--val-fraction"})
    'Hold out more with --val-fraction.'
    """
    if not flags:
        return text
    names = "|".join(sorted(map(re.escape, flags), key=len, reverse=True))
    text = re.sub(rf"ptrag_sc\.[\w.]+\(({names})=\.\.\.\)", lambda found: flags[found[1]], text)
    given = rf"(?<![\w(.])({names})="  # not within another call, which is Python anyway
    text = re.sub(rf"{given}None", lambda found: f"{flags[found[1]]} out", text)
    text = re.sub(rf"{given}(?:\.\.\.|True|<[^>]*>)(\.?)$", lambda found: f"{flags[found[1]]}.", text)
    text = re.sub(rf"{given}(?:\.\.\.|True|<[^>]*>)", lambda found: flags[found[1]], text)
    text = re.sub(rf"{given}(?=\W|$)(?!['\[(])", lambda found: flags[found[1]], text)
    return re.sub(given, lambda found: f"{flags[found[1]]} ", text)


class _ShellFormatter(logging.Formatter):
    """The message alone, with options in place of arguments."""

    def __init__(self, flags: Mapping[str, str]):
        super().__init__("%(message)s")
        self._flags = flags

    def format(self, record: logging.LogRecord) -> str:
        return in_shell_words(super().format(record), self._flags)
