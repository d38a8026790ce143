"""Resets of some rows of a Gymnasium vector environment, with ``reset(options={"reset_mask": rows})``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from workers.envs.samples import checked_reset
from workers.errors import EnvError, marked_row

__all__ = ["check_class", "prove_reset_mask", "reset_rows"]

NumpyArray = npt.NDArray[Any]
Rows = npt.NDArray[np.bool_]
Flatten = Callable[[Any], NumpyArray]

_IGNORE_IT = {
    ("gymnasium.envs.classic_control.cartpole", "CartPoleVectorEnv"),
    ("gymnasium.envs.functional_jax_env", "FunctionalJaxVectorEnv"),
}


def check_class(env: VectorEnv[Any, Any, Any]) -> None:
    """Check that `env` is not of a class that is known to ignore the mask.

    Raises:
        EnvError: It is.
    """
    if any((kind.__module__, kind.__qualname__) in _IGNORE_IT for kind in type(env.unwrapped).__mro__):
        raise EnvError(_refusal(env))


def prove_reset_mask(env: VectorEnv[Any, Any, Any], flatten: Flatten, *, seed: int, first_env: int) -> None:
    """Check that `env` resets exactly the masked rows, unless its class is known to; a seeded reset must follow.

    Every row is reset once by mask, even rows first, so that its history does not depend on the number of rows.

    Args:
        env: The environment.
        flatten: Converts its observations to ``(num_envs, size)``.
        seed: Seed of its first row.
        first_env: Index of its first row in the full batch.

    Raises:
        EnvError: It resets other rows, too, or refuses the mask.
    """
    if env.unwrapped is env and (type(env) is AsyncVectorEnv or getattr(env, "resets_by_mask", False)):
        return
    observations = flatten(checked_reset(env.reset(seed=seed))[0])
    even = np.arange(first_env, first_env + env.num_envs) % 2 == 0
    for rows in (even, ~even):
        if rows.any():
            observations, _ = reset_rows(env, flatten, rows, observations[~rows])


def reset_rows(
    env: VectorEnv[Any, Any, Any], flatten: Flatten, rows: Rows, others: NumpyArray
) -> tuple[NumpyArray, dict[str, Any]]:
    """Reset some rows; return the observations of all rows, and infos.

    Args:
        env: The environment.
        flatten: Converts its observations to ``(num_envs, size)``.
        rows: Rows to reset, ``(num_envs,)``.
        others: Copy of the observations of the other rows.

    Raises:
        EnvError: The environment refuses the mask, or changes the other rows.
    """
    try:
        native, infos = checked_reset(env.reset(options=_Options(reset_mask=rows.copy())))
        observations = flatten(native)
    except (TypeError, ValueError, KeyError) as error:
        # an error of one copy has nothing to do with the mask
        if marked_row(error) is not None or type(env.unwrapped) is AsyncVectorEnv:
            raise
        raise EnvError(f"{_refusal(env)} ({type(error).__name__}: {error})") from error
    # an environment may return only the rows that it reset
    after = observations[~rows] if len(observations) == len(rows) else None
    if after is None or not np.array_equal(after, others, equal_nan=others.dtype.kind == "f"):
        raise EnvError(_refusal(env))
    return observations, infos


def _refusal(env: VectorEnv[Any, Any, Any]) -> str:
    id = getattr(env.unwrapped.spec, "id", None)  # other libraries have specs of their own
    remedy = "build it with autoreset_mode=AutoresetMode.SAME_STEP"
    if any(kind.__module__.startswith("envpool.") for kind in type(env.unwrapped).__mro__):
        remedy = "build it with workers.envs.envpool.build"
    elif id is not None:
        remedy = (
            f"use make_env({id!r}, num_envs=…, framework=…), or build it with "
            f"gymnasium.make_vec({id!r}, num_envs=…, vectorization_mode='sync')"
        )
    return (
        f"{env} has autoreset mode {AutoresetMode(env.metadata['autoreset_mode']).name}, but "
        "reset(options={'reset_mask': …}) does not reset exactly the masked environments and leave the others "
        f"unchanged; {remedy}, and normalise observations in the agent, not in a wrapper"
    )


class _Options(dict[str, Any]):
    """Reset options that keep their entries when they are popped.

    Gymnasium's vector environments pop the mask. A wrapper that looks for it afterwards, such as
    RecordEpisodeStatistics, would then assume that all environments were reset.
    """

    def pop(self, key: str, default: Any = None) -> Any:
        return self.get(key, default)
