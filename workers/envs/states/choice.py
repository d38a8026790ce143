"""The choice of the form that keeps an environment: the first that is proved on one copy."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from workers.envs.states.copy import WholeCopy
from workers.envs.states.forms import FORMS, Form, forms_for
from workers.envs.states.log import CopyLog
from workers.envs.states.prove import NoProof, harmless, prove, reason_of
from workers.envs.states.values import Unsuitable
from workers.frameworks import Framework

__all__ = ["NONE", "Choice", "Memory", "choose_form", "not_kept", "remembered_choice"]

_logger = logging.getLogger("lockstep")

NONE = "none"
"""Name of the form of what cannot be kept."""

_TRUSTED = ("own", "replay", "arrays")
"""Forms that are used without a proof if there can be none: what the user vouches for, what proves itself on arrival,
and arrays of a framework that cannot be copied in this way."""


@dataclass(frozen=True)
class Choice:
    """The form that keeps an environment.

    Attributes:
        form: The form; None if none does.
        reasons: Why each form that was tried before does not, by its name.
        is_proved: Whether the form was proved on a copy.
        by_pickle: Whether pickling would keep it, if no form does and pickling was not allowed.
    """

    form: Form | None
    reasons: dict[str, str]
    is_proved: bool = True
    by_pickle: bool = False

    @property
    def told(self) -> str:
        """The reasons, for messages."""
        return "; ".join(f"{form}: {reason}" for form, reason in self.reasons.items())


@dataclass
class Memory:
    """What is remembered of one environment.

    Attributes:
        name: Its name, for the log.
        choices: The choices without and with pickling.
        said: What was said of it.
    """

    name: str
    choices: dict[bool, Choice] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def say(self, text: str) -> None:
        """Log a warning, once."""
        if text not in self.said:
            self.said.add(text)
            _logger.warning("%s", text)


def remembered_choice(copy: Any, memory: Memory, framework: Framework, *, allow_pickle: bool, in_use: bool) -> Choice:
    """Return the choice that was made for an environment, or make it, and log if no form keeps the environment.

    Args:
        copy: See `choose_form`.
        memory: What is remembered of the environment.
        framework: See `choose_form`.
        allow_pickle: See `choose_form`.
        in_use: See `choose_form`.
    """
    if allow_pickle not in memory.choices:
        memory.choices[allow_pickle] = choice = choose_form(copy, framework, allow_pickle=allow_pickle, in_use=in_use)
        if choice.form is None:
            memory.say(not_kept(choice, copy, memory.name))
    return memory.choices[allow_pickle]


def choose_form(copy: Any, framework: Framework, *, allow_pickle: bool, in_use: bool) -> Choice:
    """Return the first form that keeps an environment.

    Args:
        copy: A copy, or a `WholeCopy`.
        framework: The environments' framework.
        allow_pickle: Whether it may be pickled.
        in_use: Whether it has been reset: duplicates for a proof may share a simulator with it; see `prove`.
    """
    reasons: dict[str, str] = {}
    for form in forms_for(copy.env, by_row=not isinstance(copy, WholeCopy), allow_pickle=allow_pickle):
        try:
            with harmless(framework):
                reason = prove(form, copy, framework, in_use=in_use)
        except NoProof as error:
            reason = reason_of(error)
            if form.name in _TRUSTED and not (reason := _unreadable(form, copy, framework)):
                return Choice(form, reasons, is_proved=False)
        if not reason:
            return Choice(form, reasons)
        reasons[form.name] = reason
    return Choice(None, reasons, by_pickle=not allow_pickle and _can_be_pickled(copy, framework, in_use))


def _unreadable(form: Form, copy: Any, framework: Framework) -> str:
    """Return why a form cannot store an environment, or nothing."""
    try:
        form.read(copy, CopyLog().trace, framework)
    except Unsuitable as error:
        return reason_of(error)
    return ""


def _can_be_pickled(copy: Any, framework: Framework, in_use: bool) -> bool:
    try:
        with harmless(framework):
            return not prove(FORMS["pickle"], copy, framework, in_use=in_use)
    except NoProof:
        return False


def not_kept(choice: Choice, copy: Any, name: str) -> str:
    """Return what to tell of an environment, a copy or a `WholeCopy`, that no form keeps."""
    rows = "all rows" if isinstance(copy, WholeCopy) else "its rows"
    return (
        f"the state of {name} cannot be stored, so {rows} will be truncated when it is loaded ({choice.told}); "
        f"{_remedy(choice, copy)}"
    )


def _remedy(choice: Choice, copy: Any) -> str:
    copies = "copies in this process (make_env, a list of environments, or Gymnasium's SyncVectorEnv)"
    other_kind = f"use {copies}, or " if isinstance(copy, WholeCopy) else ""
    by_pickle = "pass allow_pickle=True, or " if choice.by_pickle else ""
    return (
        f"{other_kind}{by_pickle}give its class methods get_state() and set_state(state), or register such functions "
        "with workers.envs.register_state"
    )
