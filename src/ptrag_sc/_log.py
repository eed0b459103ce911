"""Where do the messages of the package go, if the user did not decide?

To the standard error, from level INFO on, as the messages of scvi-tools are shown without being asked for.
"""

import logging
import sys

NAME = "ptrag_sc"


class OwnLevel(int):
    """A level that this file set. It can be told from the same level set by a user."""


LEVEL = OwnLevel(logging.INFO)


class DeferringHandler(logging.Handler):
    """Writes messages to the standard error as long as no other handler takes them.

    As soon as the user has configured logging (a handler of the root logger, or another one of this logger), that
    configuration rules: this handler is silent, so no message appears twice, and the level that it came with is
    withdrawn.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message, or leave it to the handlers of the user."""
        own = logging.getLogger(NAME)
        others = [handler for handler in own.handlers if handler is not self]
        if others or logging.getLogger().handlers:
            if own.level is LEVEL:
                own.setLevel(logging.NOTSET)
            return
        try:
            sys.stderr.write(f"{self.format(record)}\n")  # looked up now: notebooks and tests replace it
        except Exception:  # as in every handler of logging: a message must not end the program
            self.handleError(record)


def attach_handler() -> None:
    """Give the logger of the package a handler and a level, unless it has them already."""
    own = logging.getLogger(NAME)
    if own.handlers or logging.getLogger().handlers:
        return
    own.addHandler(DeferringHandler())
    if own.level == logging.NOTSET:
        own.setLevel(LEVEL)
