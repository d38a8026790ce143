"""What a snapshot keeps of the environments of a worker: a part for each scope, or one for all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from workers.by_agent import concatenate_rows, map_arrays
from workers.envs.states import EnvState
from workers.errors import CheckpointError
from workers.frameworks import Framework
from workers.types import Arrays, Outcome

__all__ = ["Rows", "SliceState", "cut_outcome", "join_parts", "split_parts"]

Rows = tuple[int, int]
"""Rows ``(start, stop)`` of the full batch."""


class SliceState(NamedTuple):
    """The state of an `EnvSlice` between two iterations.

    Attributes:
        spaces: Text of the observation and action spaces, to compare.
        env: The state of the environments; None if they have not been reset yet.
        observations: The observations to act on; None if the environments must be reset first.
        states: The states to act on, or None.
        alive: Masks of the agents that are alive, by agent name; empty if the environments do not tell.
        reset_infos: Infos of the observations if they are those of an explicit reset, else None.
        scalars: The durations that have not been collected yet; see `workers.scalars.Scalars.state`.
    """

    spaces: list[str]
    env: EnvState | None
    observations: Arrays | None
    states: Arrays | None
    alive: Mapping[str, Any]
    reset_infos: dict[str, Any] | None
    scalars: Mapping[str, Any]


def split_parts(state: SliceState, ranges: Sequence[Rows]) -> dict[Rows, dict[str, Any]]:
    """Return the state as plain data by rows: of each range, or of all ranges if it can only be kept as a whole.

    Args:
        state: The state.
        ranges: Consecutive rows of the full batch.
    """
    env, first = state.env, ranges[0][0]
    is_whole = env is not None and (env.rows is None or env.whole is not None)
    if is_whole:
        ranges = [(first, ranges[-1][1])]
    return {rows: _part(state, slice(rows[0] - first, rows[1] - first), is_whole) for rows in ranges}


def _part(state: SliceState, rows: slice, is_whole: bool) -> dict[str, Any]:
    def part(arrays: Any) -> Any:
        return map_arrays(lambda array: None if array is None else array[rows], arrays)

    env = state.env
    return {
        "is_whole": is_whole,
        "spaces": state.spaces,
        "env": None if env is None else {"rows": env.rows and env.rows[rows], "whole": env.whole},
        "observations": part(state.observations),
        "states": part(state.states),
        "alive": part(dict(state.alive)),
        "reset_infos": state.reset_infos,
        "scalars": state.scalars,
    }


def join_parts(parts: Mapping[Rows, dict[str, Any]], rows: Rows, framework: Framework) -> SliceState:
    """Return the state of some rows from parts of `split_parts`, by rows.

    Raises:
        CheckpointError: The parts are those of other rows, or can only be loaded as a whole.
        LookupError, TypeError, ValueError: They are no such parts.
    """
    ordered = sorted(parts.items())
    stops = [rows[0], *(stop for (_, stop), _ in ordered)]
    starts = [*(start for (start, _), _ in ordered), rows[1]]
    if stops != starts or (len(parts) > 1 and any(part["is_whole"] for part in parts.values())):
        kept = ", ".join(f"{start}:{stop}" for (start, stop), _ in ordered)
        raise CheckpointError(
            f"the environments of the rows {rows[0]}:{rows[1]} cannot be loaded from those of {kept or 'no rows'}: "
            "they, or wrappers around them, can only be stored as a whole; load with the slices with which the "
            "checkpoint was saved: all rows together in local and shared mode, each scope by itself in sharded mode"
        )
    trees = [tree for _, tree in ordered]
    first = trees[0]
    if any(tree["spaces"] != first["spaces"] or (tree["env"] is None) != (first["env"] is None) for tree in trees):
        raise ValueError("its parts differ")

    def joined(name: str) -> Any:
        return None if first[name] is None else _joined([tree[name] for tree in trees], framework)

    env = first["env"]
    if env is not None:
        by_row = None if env["rows"] is None else [row for tree in trees for row in tree["env"]["rows"]]
        env = EnvState(by_row, env["whole"])
    return SliceState(
        list(first["spaces"]),
        env,
        joined("observations"),
        joined("states"),
        joined("alive"),
        first["reset_infos"],
        first["scalars"],
    )


def _joined(parts: list[Any], framework: Framework) -> Any:
    """Concatenate rows; None if there are none, such as the states of an agent without states."""
    if isinstance(parts[0], dict):
        return {name: _joined([part[name] for part in parts], framework) for name in parts[0]}
    return None if parts[0] is None else concatenate_rows(parts, framework)


def cut_outcome(
    final: Arrays,
    final_states: Arrays | None,
    observations: Arrays,
    infos: Mapping[str, Any],
    alive: Mapping[str, Any],
    framework: Framework,
) -> Outcome:
    """Return the outcome of a step that truncates every episode, without rewards.

    Args:
        final: The last observations, ``(num_envs, size)``.
        final_states: The last states, or None.
        observations: The observations after a reset.
        infos: The infos of the reset.
        alive: Masks ``(num_envs, 1)`` of the agents that were alive, by agent name, as far as they are known.
        framework: The framework of the arrays.
    """
    num_envs = len(next(iter(final.values())) if isinstance(final, dict) else final)

    def flags(value: bool) -> Any:
        return framework.from_numpy(np.full((num_envs, 1), value))

    def each(make: Callable[[str], Any]) -> Any:
        return {name: make(name) for name in final} if isinstance(final, dict) else make("")

    def truncated(name: str) -> Any:
        mask = alive.get(name)
        values = mask if mask is None or isinstance(mask, np.ndarray) else framework.to_numpy(mask)
        return flags(True) if values is None else framework.from_numpy(values.reshape(num_envs, 1).astype(np.bool_))

    told = {"final_obs": final, "_final_obs": np.ones(num_envs, np.bool_)}
    if final_states is not None:
        told |= {"final_state": final_states, "_final_state": np.ones(num_envs, np.bool_)}
    rewards = each(lambda _: framework.from_numpy(np.zeros((num_envs, 1), np.float32)))
    return Outcome(observations, rewards, each(lambda _: flags(False)), each(truncated), {**infos, **told})
