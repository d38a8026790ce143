"""Environments of envpool (https://envpool.readthedocs.io) for the rows of an `EnvFactory`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from workers.errors import EnvError

__all__ = ["build"]


def build(
    num_envs: int, first_env: int, *, id: str, seed: int | None = None, **kwargs: Any
) -> VectorEnv[Any, Any, Any]:
    """Make the environments of some rows; ``EnvFactory(functools.partial(build, id="Pong-v5", seed=7), num_envs=64)``.

    Args:
        num_envs: Number of rows.
        first_env: Index of the first row in the full batch.
        id: Name of the environment, one of ``envpool.list_all_envs()``.
        seed: The environment of row ``i`` of the full batch is seeded with ``seed + i``; a seed given to ``reset`` is
            ignored then, as it is by envpool. If None, the seed given to ``reset``, such as the trainer's, takes its
            place: the environments are made anew with it, since envpool seeds only what it makes. Without any seed
            they differ from run to run.
        kwargs: Passed to ``envpool.make``, such as ``num_threads``.

    Returns:
        The environments. Their infos are envpool's without ``env_id`` and ``players``, which number the rows.

    Raises:
        EnvError: envpool is not installed, cannot make the environment, or would step it as anything but one batch of
            single-agent environments.
    """

    def make(first_seed: int) -> Any:
        with warnings.catch_warnings():
            # of Gymnasium, about the bounds that envpool gives its spaces: nothing that the user could change
            warnings.filterwarnings("ignore", message=".*precision lowered by casting", category=UserWarning)
            return _make(id, [first_seed + row for row in range(num_envs)], kwargs)

    return _EnvPool(make, f"envpool {id}", None if seed is None else seed + first_env)


def _make(id: str, seeds: Sequence[int], kwargs: dict[str, Any]) -> Any:
    try:
        import envpool
    except ModuleNotFoundError as error:
        raise EnvError(
            f"environments of envpool need the package {error.name!r}, which is not installed; "
            "pip install 'lockstep-rl[envpool]'"
        ) from error
    try:
        # a list rather than its first seed: envpool checks that each of them fits
        pool = envpool.make(id, env_type="gymnasium", num_envs=len(seeds), seed=list(seeds), **kwargs)
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise EnvError(f"envpool cannot make {id!r}: {error}") from error
    _ = pool.observation_space, pool.action_space  # made now, and kept by the pool
    return pool


class _EnvPool(VectorEnv[Any, Any, Any]):
    """An envpool that resets by mask as Gymnasium's own vector environments do, returning all rows."""

    def __init__(self, make: Callable[[int], Any], name: str, first_seed: int | None) -> None:
        self._make = make
        self._name = name
        self._fixed_seed = first_seed is not None
        self._pool = pool = make(_random_seed() if first_seed is None else first_seed)
        if pool.is_async or pool.config["max_num_players"] != 1:
            raise EnvError(
                f"{name} has batch_size {pool.config['batch_size']} and up to {pool.config['max_num_players']} "
                f"players; expected batch_size {pool.num_envs}, the number of environments, and 1 player"
            )
        self.num_envs = pool.num_envs
        self.metadata = dict(pool.metadata)
        self.render_mode = pool.render_mode
        self.single_observation_space = pool.single_observation_space
        self.single_action_space = pool.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._last: tuple[Any, dict[str, Any]] = ({}, {})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None and not self._fixed_seed:
            self._pool = None  # the threads of the old one end before those of the new one start
            self._pool = self._make(seed)
        observations, infos = self._pool.reset(options=options)
        if options is not None and options.get("reset_mask") is not None:
            # envpool returns only the rows of the mask
            observations, infos = _put((observations, infos), self._last, infos["env_id"])
        self._last = observations, infos
        return observations, _without_numbers(infos)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = self._pool.step(actions)
        self._last = observations, infos
        return observations, rewards, terminated, truncated, _without_numbers(infos)

    def render(self) -> Any:
        return self._pool.render()

    def close_extras(self, **kwargs: Any) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None  # envpool's close() leaves its threads; they end with the object

    def __repr__(self) -> str:
        return f"{self._name}(num_envs={self.num_envs})"


def _random_seed() -> int:
    """A seed that leaves room for the rows within envpool's 32 bits, from a generator of its own."""
    return int(np.random.default_rng().integers(2**30))


def _without_numbers(infos: dict[str, Any]) -> dict[str, Any]:
    """Infos without the numbers of the rows, which count from the first row of this pool, not of the full batch."""
    return {key: value for key, value in infos.items() if key not in ("env_id", "players")}


def _put(rows: Any, batch: Any, index: npt.NDArray[np.int32]) -> Any:
    """A tree of `batch` with `rows` in the places `index`, as new arrays."""
    if isinstance(rows, dict):
        return {key: _put(value, batch[key], index) for key, value in rows.items()}
    if isinstance(rows, tuple):
        return tuple(_put(row, other, index) for row, other in zip(rows, batch, strict=True))
    full = np.array(batch)
    full[index] = rows
    return full
