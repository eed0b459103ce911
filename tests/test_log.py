"""Are messages of the package shown once: by its own handler, or as the user configured it?"""

import logging

import pytest

from ptrag_sc._log import LEVEL, NAME, DeferringHandler, attach_handler

OWN, ROOT = logging.getLogger(NAME), logging.getLogger()


@pytest.fixture
def fresh(monkeypatch):
    """Function after which nothing about logging is configured; pytest has handlers of its own in every phase."""
    before = OWN.level
    monkeypatch.setattr(OWN, "handlers", [])

    def forget():
        monkeypatch.setattr(ROOT, "handlers", [])
        OWN.setLevel(logging.NOTSET)

    yield forget
    OWN.setLevel(before)


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def say(level=logging.INFO):
    logging.getLogger(f"{NAME}.some.file").log(level, "a message")


def test_messages_are_shown_from_info_on_and_once(fresh, capsys):
    fresh()
    attach_handler()
    attach_handler()
    assert len(OWN.handlers) == 1
    say()
    say(logging.DEBUG)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a message\n")


def test_a_configuration_made_before_is_left_alone(fresh, capsys):
    fresh()
    kept = Kept()
    ROOT.addHandler(kept)
    attach_handler()
    assert OWN.handlers == []
    assert OWN.level == logging.NOTSET  # so the level of the user holds
    say(logging.WARNING)
    assert kept.messages == ["a message"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("logger", [ROOT, OWN])
def test_a_configuration_made_afterwards_rules(fresh, capsys, logger):
    fresh()
    attach_handler()
    kept = Kept()
    logger.addHandler(kept)
    say(logging.WARNING)
    assert kept.messages == ["a message"]
    assert capsys.readouterr().err == ""
    say(logging.INFO)  # below the level of the root logger, WARNING
    assert kept.messages == ["a message"]


def test_a_level_of_the_user_stays(fresh, capsys):
    fresh()
    attach_handler()
    assert OWN.level is LEVEL
    OWN.setLevel(logging.INFO)
    ROOT.addHandler(Kept())
    say()
    assert OWN.level == logging.INFO
    OWN.handlers[:] = [handler for handler in OWN.handlers if isinstance(handler, DeferringHandler)]
    ROOT.handlers.clear()
    OWN.setLevel(logging.ERROR)
    say(logging.WARNING)
    assert capsys.readouterr().err == ""
