"""How environments come to be: wrapped as they are, made by name, or built for any range of rows by a factory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from workers.envs.base import MultiAgentEnvWrapper, Wrapper
from workers.envs.gymnasium import GymnasiumWrapper, vectorize
from workers.errors import EnvError
from workers.seeding import skrl_key
from workers.types import Env, required_members

__all__ = ["EnvFactory", "check_env", "make_env", "wrap_env"]


@dataclass(frozen=True)
class EnvFactory:
    """Environments that are built where they are stepped, for any range of rows.

    Attributes:
        build: Called with ``(num_envs, first_env)``; makes the environments of the rows ``first_env`` to
            ``first_env + num_envs``: a Gymnasium vector environment, something already wrapped, or a list of
            `num_envs` single environments. It is called once for all rows in local and in shared mode, and once per
            scope in sharded mode, so it must not depend on what was built before. What it builds resets ended
            environments in ``step``, for every batch size.
        num_envs: Number of environments in all.
        framework: Name of the framework whose arrays they take and give; the trainer's if None.
    """

    build: Callable[[int, int], Any]
    _: KW_ONLY
    num_envs: int
    framework: str | None = None

    def make(self, num_envs: int, first_env: int, *, framework: str, seed: int | None) -> Any:
        """Build and wrap the environments of some rows.

        Args:
            num_envs: Number of rows.
            first_env: Index of the first row in the full batch.
            framework: Name of the trainer's framework.
            seed: The trainer's seed.

        Raises:
            EnvError: What was built has not these rows, or is no environment.
        """
        with skrl_key(framework, None if seed is None else seed + first_env):
            built = self.build(num_envs, first_env)
        env = built if _is_wrapped(built) else wrap_env(built, framework=framework)
        check_env(env, framework)
        if env.num_envs != num_envs:
            raise EnvError(
                f"the environment factory was asked for {num_envs} environments from row {first_env} on and built "
                f"{env.num_envs}; build(num_envs, first_env) must return num_envs of them"
            )
        return env


def make_env(id: str, *, num_envs: int, framework: str, **kwargs: Any) -> Wrapper:
    """Make copies of a registered Gymnasium environment, wrapped; they can be rebuilt for any range of rows.

    Args:
        id: Name of the environment, such as ``"CartPole-v1"``.
        num_envs: Number of copies.
        framework: Name of the framework whose arrays it takes and gives.
        kwargs: Passed to ``gymnasium.make``.

    Raises:
        EnvError: There is no such environment, or `num_envs` is less than 1.
    """
    check_num_envs(num_envs, f"make_env({id!r})")
    recipe = EnvFactory(partial(_make_registered, id, kwargs), num_envs=num_envs, framework=framework)
    env: Wrapper = recipe.make(num_envs, 0, framework=framework, seed=None)
    env.recipe = recipe
    return env


def _make_registered(id: str, kwargs: dict[str, Any], num_envs: int, _first_env: int) -> VectorEnv[Any, Any, Any]:
    try:
        return vectorize([gymnasium.make(id, **kwargs) for _ in range(num_envs)])
    except gymnasium.error.Error as error:
        raise EnvError(f"gymnasium cannot make {id!r}: {error}") from error


def wrap_env(env: Any, *, framework: str) -> Any:
    """Wrap what the user has: a Gymnasium environment, a vector environment, or a list of single environments.

    What is already wrapped is returned as it is.

    Raises:
        EnvError: It is none of these.
    """
    if _is_wrapped(env):
        return env
    if isinstance(env, VectorEnv):
        return GymnasiumWrapper(env, framework=framework)
    singles = [env] if isinstance(env, gymnasium.Env) else env
    if isinstance(singles, Sequence) and singles and all(isinstance(single, gymnasium.Env) for single in singles):
        if len({id(single) for single in singles}) < len(singles):
            raise EnvError("one environment is in the list several times; make one for each row")
        return GymnasiumWrapper(vectorize(singles), framework=framework)
    raise EnvError(
        f"{type(env).__module__}.{type(env).__qualname__} cannot be wrapped; expected a gymnasium.Env, "
        "a gymnasium.vector.VectorEnv, or a list of gymnasium.Env"
    )


def _is_wrapped(env: Any) -> bool:
    """Whether it is one of our wrappers, or has the members of one (another library's wrapper)."""
    if isinstance(env, (Wrapper, MultiAgentEnvWrapper)):
        return True
    return not isinstance(env, (gymnasium.Env, VectorEnv)) and not _missing_members(env)


def _missing_members(env: Any) -> list[str]:
    return [name for name in required_members(Env) if not hasattr(env, name)]


def check_env(env: Any, framework: str) -> None:
    """Check that `env` can be driven by a trainer of this framework.

    Raises:
        EnvError: It lacks a member, has no rows, is for another framework, or is a multi-agent environment.
    """
    kind = type(env).__qualname__
    if isinstance(env, MultiAgentEnvWrapper):
        raise EnvError(f"{kind} is a multi-agent environment, which this version does not train")
    if missing := _missing_members(env):
        raise EnvError(f"environment {kind} lacks {', '.join(missing)}; wrap it with wrap_env(env, framework=…)")
    check_num_envs(env.num_envs, f"environment {kind}")
    if isinstance(env, Wrapper) and env.framework != framework:
        raise EnvError(f"environment {kind} is for {env.framework!r}, but the trainer is for {framework!r}")


def check_num_envs(num_envs: Any, owner: str) -> None:
    """Check a number of environments.

    Raises:
        EnvError: It is no integer of at least 1.
    """
    if not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
        raise EnvError(f"{owner} has num_envs {num_envs!r}; expected an integer of at least 1")
