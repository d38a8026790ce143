"""What the arrays that an environment gives must be like, by output and agent."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, NamedTuple

import gymnasium
from gymnasium.spaces.utils import flatdim

from workers.errors import EnvError
from workers.members import is_of_skrl
from workers.spaces import action_width

__all__ = ["FLAGS", "Expected", "expected_of", "spaces_of"]

FLAGS = "flags (bool or 0 and 1)"


class Expected(NamedTuple):
    """What the arrays of one output must be like.

    Attributes:
        shape: ``(num_envs, size)``; the size is None if it is unknown.
        sizes: Sizes that a row may have in any shape; none for rewards and flags, which are columns.
        kinds: Allowed kinds of dtypes; see `Framework.kind`.
        dtypes: The dtypes, for errors.
        is_flag: Whether the values must be 0 and 1.
    """

    shape: tuple[int, int | None]
    sizes: tuple[int | None, ...] = ()
    kinds: str = "bif"
    dtypes: str = "real numbers"
    is_flag: bool = False

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape is accepted."""
        if shape == self.shape:
            return True
        if not self.sizes or len(shape) < 2:
            return False
        return shape[0] == self.shape[0] and (None in self.sizes or math.prod(shape[1:]) in self.sizes)

    @property
    def text(self) -> str:
        """The shape, for errors."""
        rows, size = self.shape
        return f"({rows}, {'size' if size is None else size})"


def expected_of(env: Any, rows: int, *, is_ours: bool, is_team: bool) -> dict[str, dict[Any, Expected]]:
    """Return what is expected of each output, by agent name; by None in a single-agent environment."""
    spaces = spaces_of(env, "observation_space", is_team=is_team)
    is_skrls = is_of_skrl(env)
    observations = {name: _of_observations(space, rows, is_ours, is_skrls) for name, space in spaces.items()}
    spaces = spaces_of(env, "state_space", is_team=is_team)
    states = {name: _of_space(space, rows, is_ours) for name, space in spaces.items()}
    flags = Expected((rows, 1), kinds="bif" if is_skrls else "bi", dtypes=FLAGS, is_flag=True)
    return {
        "observations": observations,
        "final observations": observations,
        "states": states,
        "final states": states,
        "rewards": dict.fromkeys(spaces, Expected((rows, 1))),
        "terminated": dict.fromkeys(spaces, flags),
        "truncated": dict.fromkeys(spaces, flags),
    }


def spaces_of(env: Any, kind: str, *, is_team: bool) -> dict[Any, Any]:
    """Return the spaces by agent name; None if there are none."""
    if not is_team:
        return {None: getattr(env, kind, None)}
    spaces = getattr(env, f"{kind}s", None) or {}
    return {name: spaces.get(name) for name in env.possible_agents}


def _of_observations(space: Any, rows: int, is_ours: bool, is_skrls: bool) -> Expected:
    expected = _of_space(space, rows, is_ours)
    kind = space.dtype.kind if isinstance(space, gymnasium.spaces.Box) else None
    if kind == "f" and not is_skrls:
        return expected._replace(kinds="f", dtypes=f"floats, as in {space}")
    if is_ours and kind in ("i", "u"):
        return expected._replace(kinds="bi", dtypes=f"integers, as in {space}")
    return expected


def _of_space(space: Any, rows: int, is_ours: bool) -> Expected:
    if not isinstance(space, gymnasium.Space) or not space.is_np_flattenable:
        return Expected((rows, None), (None,))
    sizes = [flatdim(space)]
    if not is_ours:
        with suppress(EnvError):  # a space that only the other library supports
            sizes.append(action_width(space))
    return Expected((rows, sizes[0]), tuple(sizes))
