"""The states of environments whose copies are kept row by row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from workers.envs.states.choice import NONE, Choice, Memory, remembered_choice
from workers.envs.states.copy import progress, set_progress
from workers.envs.states.forms import FORMS
from workers.envs.states.generators import are_states, generator_states, set_generators
from workers.envs.states.log import ActionLog, Trace
from workers.envs.states.prove import harmless, reason_of
from workers.envs.states.replay import trace_of
from workers.envs.states.values import Unsuitable, same
from workers.errors import EnvError, marks_row, type_name
from workers.frameworks import Framework

__all__ = ["Copies", "check_rows", "read_rows", "write_rows"]

_logger = logging.getLogger("lockstep")

_UNSTARTED = "unstarted"


class Copies(Protocol):
    """Environments of which each row is a copy of its own.

    Attributes:
        log: The log of the actions.
    """

    log: ActionLog

    def copy_of(self, row: int) -> Any:
        """Return the copy of a row: a `SingleCopy` or a `TeamCopy`."""

    def shown(self, row: int) -> dict[str, Any]:
        """Return copies of the native ``"observation"`` of a row, or those by agent, and the ``"native_state"``."""

    def converted(self, observation: Any) -> Any:
        """Return what a copy gave as observation in the form of `shown`; `EnvError` if it does not suit the space."""

    def check(self, tree: dict[str, Any]) -> None:
        """Check what `shown` and `progress` gave; raise `EnvError` if it cannot belong to a row."""

    def stored(self, row: int) -> dict[str, Any] | None:
        """Return the tree with which a row was lost, until its next step or reset."""

    def show(self, row: int, copy: Any, tree: dict[str, Any], *, is_lost: bool) -> None:
        """Show a stored tree; truncate the row in its next step if it is lost."""


def read_rows(copies: Copies, memory: Memory, framework: Framework, *, allow_pickle: bool) -> list[dict[str, Any]]:
    """Return the tree of each row; what cannot be kept is logged once.

    Args:
        copies: The environments.
        memory: What is remembered of them.
        framework: Their framework.
        allow_pickle: Whether they may be pickled.
    """
    is_started = [copy.is_started for copy in copies.log.copies]
    choice = remembered_choice(copies.copy_of(0), memory, framework, allow_pickle=allow_pickle, in_use=any(is_started))
    trees, lost, trace = [], dict[str, list[int]](), copies.log.reader()
    for row, started in enumerate(is_started):
        tree = copies.stored(row) or ({"form": _UNSTARTED} if not started else None)
        if tree is None:
            with marks_row(row, memory.name):
                tree, reason = _read_row(copies, row, choice, partial(trace, row), framework)
            if reason:
                lost.setdefault(reason, []).append(row)
        trees.append(tree)
    for reason, rows in lost.items():
        memory.say(
            f"{memory.name}: rows {rows} cannot be stored, so they will be truncated when they are loaded: {reason}"
        )
    return trees


def _read_row(
    copies: Copies, row: int, choice: Choice, trace: Callable[[], Trace], framework: Framework
) -> tuple[dict[str, Any], str]:
    """Return the tree of a row, and why the chosen form does not keep this copy."""
    copy, reason = copies.copy_of(row), ""
    tree = copies.shown(row) | progress(copy)
    if choice.form is not None:
        try:
            return tree | {"form": choice.form.name, "state": choice.form.read(copy, trace, framework)}, ""
        except Unsuitable as error:
            reason = reason_of(error)
    state = {"generators": generator_states(copy.env)}
    return tree | {"form": NONE, "reason": reason or choice.told, "state": state}, reason


def check_rows(copies: Copies, trees: Any, framework: Framework) -> None:
    """Check that trees can belong to these environments; nothing is changed.

    Raises:
        EnvError: They cannot.
    """
    expected = len(copies.log.copies)
    if not isinstance(trees, list) or len(trees) != expected:
        given = f"{len(trees)} rows" if isinstance(trees, list) else f"a {type_name(type(trees))}"
        raise EnvError(f"the stored state has {given}; expected {expected} rows")
    for row, tree in enumerate(trees):
        form = tree.get("form") if isinstance(tree, dict) else None
        if form == _UNSTARTED:
            continue
        if form != NONE and (not isinstance(form, str) or form not in FORMS):
            raise EnvError(f"the stored state of row {row} has the form {form!r}; expected one of {[*FORMS, NONE]}")
        copies.check(tree)
        if form != NONE:
            is_good = FORMS[form].check(tree.get("state"), framework)
        else:
            is_good = isinstance(tree.get("reason"), str) and are_states(tree["state"]["generators"])
        if not is_good:
            raise EnvError(f"the stored state of row {row} is not a state of the form {form!r}")


def write_rows(
    copies: Copies, name: str, trees: Sequence[dict[str, Any]], framework: Framework
) -> npt.NDArray[np.bool_]:
    """Restore the rows; return which could not be, ``(num_envs,)`` bool. These are named in a warning.

    Args:
        copies: The environments.
        name: Their name, for messages.
        trees: What `read_rows` returned.
        framework: Their framework.
    """
    lost = dict[str, list[int]]()
    for row, tree in enumerate(trees):
        if tree["form"] == _UNSTARTED:
            continue
        with marks_row(row, name), harmless(framework):
            copy = copies.copy_of(row)
            reason = _write_row(copies, row, copy, tree, framework)
            if reason:
                lost.setdefault(reason, []).append(row)
                _start_afresh(copy, tree)
            copies.show(row, copy, tree, is_lost=bool(reason))
    for reason, rows in lost.items():
        _logger.warning(
            "%s: rows %s could not be restored, so they are truncated in their next step: %s", name, rows, reason
        )
    is_lost = np.zeros(len(trees), np.bool_)
    is_lost[[row for rows in lost.values() for row in rows]] = True
    return is_lost


def _write_row(copies: Copies, row: int, copy: Any, tree: dict[str, Any], framework: Framework) -> str:
    """Restore a copy; return why it did not arrive, or nothing."""
    form, trace = tree["form"], None
    copies.log.played(row, None)
    if form == NONE:
        return str(tree["reason"])
    try:
        observation = FORMS[form].write(copy, tree["state"], framework)
        if form == "replay":
            if not same(copies.converted(observation), tree["observation"], framework):
                return "the last observation differs"
            if not same(progress(copy), {name: tree[name] for name in progress(copy)}, framework):
                return "the agents in the episode differ"
            trace = trace_of(tree["state"])
        set_progress(copy, tree)
    except Exception as error:  # whatever the user's environment raises: the row is lost, and said to be
        return reason_of(error)
    copies.log.played(row, trace)
    return ""


def _start_afresh(copy: Any, tree: dict[str, Any]) -> None:
    """Reset a copy that did not arrive; its generators go on from the stored states, as far as it has them."""
    copy.reset(seed=0)
    with suppress(Unsuitable):
        set_generators(copy.env, tree["state"]["generators"] if isinstance(tree["state"], dict) else {})
    copy.reset()
