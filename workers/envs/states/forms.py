"""The forms in which the state of one copy of an environment can be kept."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Protocol

from workers.envs.states.layers import Layers
from workers.envs.states.log import Trace
from workers.envs.states.mujoco import has_simulation
from workers.envs.states.own import own_state
from workers.envs.states.replay import Replay
from workers.envs.states.values import Unsuitable
from workers.envs.statistics import layers
from workers.errors import type_name
from workers.frameworks import Framework

__all__ = ["FORMS", "Form", "Pickled", "forms_for"]


class Form(Protocol):
    """A way to keep the state of one copy.

    Attributes:
        name: Name of the form in the trees.
    """

    name: str

    def read(self, copy: Any, trace: Callable[[], Trace], framework: Framework) -> Any:
        """Return the state as a tree that shares nothing with the copy; raise `Unsuitable` if that is impossible."""

    def write(self, copy: Any, state: Any, framework: Framework) -> Any:
        """Bring a copy that was built alike to the state; raise `Unsuitable` if it does not arrive."""

    def check(self, state: Any, framework: Framework) -> bool:
        """Return whether a tree can be a state of this form."""


class Pickled:
    """The environment itself, as a copy made by pickling."""

    name = "pickle"

    def read(self, copy: Any, trace: Callable[[], Trace], framework: Framework) -> Any:
        """Return an unpickled copy of the environment, an object that only pickle can store."""
        try:
            return pickle.loads(pickle.dumps(copy.env))
        except Exception as error:  # the classes are the user's
            raise Unsuitable(f"it cannot be pickled ({type_name(type(error))}: {error})") from error

    def write(self, copy: Any, state: Any, framework: Framework) -> None:
        """Give the environment the attributes of a copy of the stored one."""
        attributes = vars(pickle.loads(pickle.dumps(state)))  # a copy: the state may be needed again
        vars(copy.env).clear()
        vars(copy.env).update(attributes)

    def check(self, state: Any, framework: Framework) -> bool:
        """Return whether an object can be an environment."""
        return callable(getattr(state, "step", None)) and callable(getattr(state, "reset", None))


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Layers("own"),
        Layers("mujoco"),
        Replay(),
        Layers("attributes"),
        Layers("arrays", in_place=True),
        Pickled(),
    )
}


def forms_for(env: Any, *, by_row: bool, allow_pickle: bool) -> list[Form]:
    """Return the forms that may suit an environment, in the order in which they are tried.

    Args:
        env: One copy, or wrapped environments that are kept as a whole.
        by_row: Whether it is one copy.
        allow_pickle: Whether it may be pickled.
    """
    found = list(layers(env))
    if any(own_state(layer) is not None for layer in found):
        names = ["own", "replay"] if by_row else ["own"]
    elif not by_row:
        names = ["arrays"]
    elif has_simulation(found[-1]):
        names = ["mujoco", "replay"]
    else:
        names = ["replay", "attributes"]
    return [FORMS[name] for name in (*names, *(["pickle"] if allow_pickle else []))]
