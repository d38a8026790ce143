"""`import trainer` alone: a version, messages on the console, and a hint on which StepTrainer to import."""

from __future__ import annotations

import importlib.metadata

import pytest

import trainer
from tests.support.processes import python


@pytest.mark.parametrize("name", ["StepTrainer", "StepTrainerCfg"])
def test_the_trainer_of_no_framework_says_which_to_choose(name: str):
    expected = f"choose a framework: from trainer.torch import {name}, or import it from trainer.jax or trainer.warp"
    with pytest.raises(ImportError, match=expected):
        exec(f"from trainer import {name}")
    with pytest.raises(ImportError, match=r"^cannot import name 'Nothing' from 'trainer'"):
        exec("from trainer import Nothing")


def test_version():
    assert trainer.__version__ == importlib.metadata.version("lockstep-rl")
    done = python("-m", "trainer", "--version")
    assert (done.returncode, done.stdout) == (0, f"lockstep {trainer.__version__}\n")


MESSAGES = """
import logging, sys
import trainer
{}
logging.getLogger("lockstep").info("first %d", 1)
logging.getLogger("lockstep").debug("second")
logging.getLogger("lockstep").warning("third")
"""


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("", "lockstep: first 1\nlockstep: third\n"),
        ("logging.getLogger('lockstep').setLevel('WARNING')", "lockstep: third\n"),
        ("logging.basicConfig(format='mine: %(message)s')", "mine: first 1\nmine: third\n"),
        ("logging.getLogger('lockstep').addHandler(logging.StreamHandler())", "first 1\nthird\n"),
        ("sys.stderr = None", ""),
        ("sys.stderr = open('/dev/null'); sys.stderr.close(); logging.raiseExceptions = False", ""),
    ],
    ids=["as it is", "a level", "the user's own", "a handler of the logger", "no output", "closed output"],
)
def test_messages_are_shown_once_and_as_the_user_wants_them(setting: str, shown: str):
    done = python("-c", MESSAGES.format(setting))
    assert (done.returncode, done.stderr) == (0, shown)


def test_logging_that_was_configured_before_keeps_its_level():
    before = "import logging\nlogging.basicConfig(format='mine: %(message)s')"
    done = python("-c", before + MESSAGES.format(""))
    assert (done.returncode, done.stderr) == (0, "mine: third\n")


def test_messages_go_to_the_standard_error_of_the_moment():
    done = python("-c", MESSAGES.format("sys.stderr = sys.stdout"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "lockstep: first 1\nlockstep: third\n", "")
