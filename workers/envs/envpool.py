"""envpool environments (https://envpool.readthedocs.io) for an `EnvFactory`."""

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
    """Make the envpool environments of a range of rows.

    Usage: ``EnvFactory(functools.partial(build, id="Pong-v5", seed=7), num_envs=64)``.

    Args:
        num_envs: Number of rows.
        first_env: Index of the first row in the full batch.
        id: Name of the environment, one of ``envpool.list_all_envs()``.
        seed: Row ``i`` of the full batch is seeded with ``seed + i``, and seeds passed to ``reset`` are ignored, as in
            envpool. If None, the seed passed to ``reset``, such as the trainer's, is used instead: the environments
            are made again with it, because envpool seeds environments only when it makes them. Without any seed, the
            environments differ from run to run.
        kwargs: Passed to ``envpool.make``, such as ``num_threads``.

    Returns:
        The environments. Their infos are envpool's without ``env_id`` and ``players``, which number the rows.

    Raises:
        EnvError: envpool is not installed, cannot make the environment, or would not step it as one batch of
            single-agent environments.
    """
    envpool = _import()

    def make(first_seed: int) -> Any:
        with warnings.catch_warnings():
            # Gymnasium's warning about the bounds of envpool's spaces, which the user cannot change
            warnings.filterwarnings("ignore", message=".*precision lowered by casting", category=UserWarning)
            return _make(envpool, id, [first_seed + row for row in range(num_envs)], kwargs)

    return _EnvPool(make, f"envpool {id}", None if seed is None else seed + first_env)


def _import() -> Any:
    """Import envpool, before a pool exists.

    If a part of its first import fails, envpool keeps the exception and with it every frame on the stack, so that a
    pool in such a frame would never be freed.
    """
    try:
        import envpool
    except ModuleNotFoundError as error:
        raise EnvError(
            f"envpool environments need the package {error.name!r}, which is not installed; "
            "pip install 'lockstep-rl[envpool]'"
        ) from error
    return envpool


def _make(envpool: Any, id: str, seeds: Sequence[int], kwargs: dict[str, Any]) -> Any:
    try:
        # all seeds instead of the first: envpool then checks the range of each
        pool = envpool.make(id, env_type="gymnasium", num_envs=len(seeds), seed=list(seeds), **kwargs)
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise EnvError(f"envpool cannot make {id!r}: {error}") from error
    _ = pool.observation_space, pool.action_space  # the pool creates them on first access and keeps them
    return pool


class _EnvPool(VectorEnv[Any, Any, Any]):
    """An envpool that resets by mask like Gymnasium's vector environments and returns all rows."""

    resets_by_mask = True

    def __init__(self, make: Callable[[int], Any], name: str, first_seed: int | None) -> None:
        self._make = make
        self._name = name
        self._fixed_seed = first_seed is not None
        self._pool = pool = make(_random_seed() if first_seed is None else first_seed)
        if pool.is_async or pool.config["max_num_players"] != 1:
            raise EnvError(
                f"{name} has batch_size {pool.config['batch_size']} and up to {pool.config['max_num_players']} "
                f"players; expected batch_size {pool.num_envs} (the number of environments) and 1 player"
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
            self._pool = None  # end the old pool's threads before the new pool starts its own
            self._pool = self._make(seed)
        observations, infos = self._pool.reset(options=options)
        if options is not None and options.get("reset_mask") is not None:
            # envpool returns only the masked rows
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
        self._pool = None  # envpool's close() keeps its threads, which end with the object

    def __repr__(self) -> str:
        return f"{self._name}(num_envs={self.num_envs})"


def _random_seed() -> int:
    """Draw a seed from a separate generator, low enough that the seeds of all rows fit envpool's 32 bits."""
    return int(np.random.default_rng().integers(2**30))


def _without_numbers(infos: dict[str, Any]) -> dict[str, Any]:
    """Remove the row numbers, which count from the first row of this pool instead of the full batch."""
    return {key: value for key, value in infos.items() if key not in ("env_id", "players")}


def _put(rows: Any, batch: Any, index: npt.NDArray[np.int32]) -> Any:
    """Return a copy of the tree `batch` with `rows` at the positions `index`."""
    if isinstance(rows, dict):
        return {key: _put(value, batch[key], index) for key, value in rows.items()}
    if isinstance(rows, tuple):
        return tuple(_put(row, other, index) for row, other in zip(rows, batch, strict=True))
    full = np.array(batch)
    full[index] = rows
    return full
