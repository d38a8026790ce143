"""The states of environments that can only be kept as a whole, and of wrappers around copies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from workers.envs.states.choice import NONE, Choice, Memory, not_kept, remembered_choice
from workers.envs.states.copy import WholeCopy
from workers.envs.states.forms import FORMS
from workers.envs.states.layers import are_layers, read_layer, write_layers
from workers.envs.states.prove import harmless, reason_of
from workers.envs.states.values import Unsuitable
from workers.errors import EnvError
from workers.frameworks import Framework

__all__ = ["check_whole", "read_whole", "read_wrappers", "write_whole", "write_wrappers"]

_logger = logging.getLogger("lockstep")

_WRAPPERS = "wrappers"


def read_whole(env: Any, memory: Memory, framework: Framework, *, allow_pickle: bool) -> dict[str, Any]:
    """Return the tree of wrapped environments; form "none" if they cannot be kept, which is logged once."""
    copy = WholeCopy(env, framework)
    choice = remembered_choice(copy, memory, framework, allow_pickle=allow_pickle, in_use=True)
    if choice.form is not None:
        try:
            return {
                "form": choice.form.name,
                "num_envs": int(env.num_envs),
                "state": choice.form.read(copy, _no_trace, framework),
            }
        except Unsuitable as error:
            memory.say(not_kept(Choice(None, {choice.form.name: reason_of(error)}), copy, memory.name))
    return {"form": NONE}


def _no_trace() -> Any:
    raise Unsuitable("it is not made of copies")


def read_wrappers(env: Any, wrappers: Sequence[Any], memory: Memory, framework: Framework) -> dict[str, Any]:
    """Return the tree of wrappers around copies; form "none" if they cannot be kept, which is logged once."""
    try:
        parts = [read_layer(wrapper, framework) for wrapper in wrappers]
        return {"form": _WRAPPERS, "num_envs": int(env.num_envs), "layers": parts}
    except Unsuitable as error:
        choice = Choice(None, {_WRAPPERS: reason_of(error)})
        memory.say(not_kept(choice, WholeCopy(env, framework), memory.name))
        return {"form": NONE}


def check_whole(env: Any, tree: Any, framework: Framework, *, has_rows: bool) -> None:
    """Check that a tree can be one of `read_whole` for an environment, or of `read_wrappers` if there are rows.

    Raises:
        EnvError: It cannot.
    """
    form = tree.get("form") if isinstance(tree, dict) else None
    if form not in (None, NONE) and tree.get("num_envs") != env.num_envs:
        raise EnvError(f"the stored state is that of {tree.get('num_envs')!r} rows together; expected {env.num_envs}")
    if has_rows:
        is_good = form == _WRAPPERS and are_layers(tree.get("layers"), framework)
    elif form == NONE:
        return
    else:
        is_good = isinstance(form, str) and form in FORMS and FORMS[form].check(tree.get("state"), framework)
    if not is_good:
        raise EnvError(f"the stored state of the environments as a whole, of the form {form!r}, is damaged or unknown")


def write_whole(env: Any, tree: dict[str, Any], framework: Framework) -> bool:
    """Restore wrapped environments; return whether they were."""
    if tree["form"] == NONE:
        return False
    try:
        with harmless(framework):
            FORMS[tree["form"]].write(WholeCopy(env, framework), tree["state"], framework)
    except Exception as error:  # whatever the user's environment raises: all rows are lost, and said to be
        _logger.warning("%s could not be restored, so all its rows are truncated: %s", env, reason_of(error))
        return False
    return True


def write_wrappers(wrappers: Sequence[Any], tree: dict[str, Any], framework: Framework) -> None:
    """Restore wrappers around copies.

    Raises:
        Unsuitable: They are others.
    """
    write_layers(wrappers, tree["layers"], framework)
