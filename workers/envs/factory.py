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
from workers.types import Env, MultiAgentEnv, missing_members

__all__ = ["EnvFactory", "check_env", "is_multi_agent", "make_env", "wrap_env"]


@dataclass(frozen=True)
class EnvFactory:
    """Environments that are built where they are stepped, for any range of rows.

    Attributes:
        build: Called with ``(num_envs, first_env)``; makes the environments of the rows ``first_env`` to
            ``first_env + num_envs``: a Gymnasium vector environment, something already wrapped, or a list of
            `num_envs` single environments, Gymnasium's or PettingZoo's. It is called once for all rows in local and in
            shared mode, and once per scope in sharded mode, so it must not depend on what was built before. What it
            builds resets ended environments in ``step``, for every batch size.
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
        env = wrap_env(built, framework=framework)
        check_env(env, framework)
        if env.num_envs != num_envs:
            raise EnvError(
                f"the environment factory was asked for {num_envs} environments from row {first_env} on and built "
                f"{env.num_envs}; build(num_envs, first_env) must return num_envs of them"
            )
        return env


def make_env(id: str, *, num_envs: int, framework: str, states: str = "own", **kwargs: Any) -> Any:
    """Make copies of a registered environment, wrapped; they can be rebuilt for any range of rows.

    Args:
        id: Name of the environment: one of Gymnasium's, such as ``"CartPole-v1"``, one of PettingZoo's, such as
            ``"classic/tictactoe_v3"``, or a module with ``parallel_env`` or ``env``, such as
            ``"mpe2.simple_spread_v3"``.
        num_envs: Number of copies.
        framework: Name of the framework whose arrays it takes and gives.
        states: Of a multi-agent environment: ``"own"``, the environment's where it has them; ``"joint"``, the
            observations of all agents, one after the other; ``"none"``.
        kwargs: Passed to ``gymnasium.make``, ``pettingzoo.make`` or the module's function.

    Raises:
        EnvError: There is no such environment, or `num_envs` is less than 1.
    """
    check_num_envs(num_envs, f"make_env({id!r})")
    build = partial(_make_registered, id, kwargs, framework, states)
    recipe = EnvFactory(build, num_envs=num_envs, framework=framework)
    env = recipe.make(num_envs, 0, framework=framework, seed=None)
    env.recipe = recipe
    return env


def _make_registered(
    id: str, kwargs: dict[str, Any], framework: str, states: str, num_envs: int, _first_env: int
) -> Any:
    envs = [_make_single(id, kwargs) for _ in range(num_envs)]
    return wrap_env(envs, framework=framework, states=states)


def _make_single(id: str, kwargs: dict[str, Any]) -> Any:
    try:
        return gymnasium.make(id, **kwargs)
    except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound) as error:
        from workers.envs.registry import make_multi_agent

        env = make_multi_agent(id, kwargs)
        if env is None:
            raise EnvError(
                f"gymnasium cannot make {id!r}, and it is neither PettingZoo's nor a module with parallel_env (MPE's "
                f"come with pip install 'lockstep-rl[multiagent]'): {error}"
            ) from error
        return env
    except gymnasium.error.Error as error:
        raise EnvError(f"gymnasium cannot make {id!r}: {error}") from error


def wrap_env(env: Any, *, framework: str, states: str = "own") -> Any:
    """Wrap what the user has: an environment of Gymnasium or PettingZoo, a vector environment, or a list of the former.

    What is already wrapped is returned as it is.

    Args:
        env: The environment or environments.
        framework: Name of the framework whose arrays are taken and given.
        states: As for `make_env`.

    Raises:
        EnvError: It is none of these.
    """
    is_wrapped = _is_wrapped(env)
    singles = list(env) if isinstance(env, Sequence) else [env]
    if len({id(single) for single in singles}) < len(singles):
        raise EnvError("one environment is in the list several times; make one for each row")
    if singles and not is_wrapped and all(hasattr(single, "possible_agents") for single in singles):
        from workers.envs.pettingzoo import PettingZooWrapper

        return PettingZooWrapper(singles, framework=framework, states=states)  # type: ignore[arg-type]
    if states != "own":
        raise EnvError(f"states is {states!r}; expected 'own' for what is no environment of PettingZoo's")
    if is_wrapped:
        return env
    if isinstance(env, VectorEnv):
        return GymnasiumWrapper(env, framework=framework)
    if singles and all(isinstance(single, gymnasium.Env) for single in singles):
        return GymnasiumWrapper(vectorize(singles), framework=framework)
    given = singles if isinstance(env, (list, tuple)) and singles else [env]
    kinds = ", ".join(dict.fromkeys(f"{type(one).__module__}.{type(one).__qualname__}" for one in given))
    raise EnvError(
        f"{kinds} cannot be wrapped; expected a gymnasium.Env, a gymnasium.vector.VectorEnv, a Parallel or AEC "
        "environment of PettingZoo (with possible_agents), or a list of single environments of one kind"
    )


def is_multi_agent(env: Any) -> bool:
    """Whether a wrapped environment, ours or another library's, gives and takes dictionaries by agent name."""
    return isinstance(env, MultiAgentEnvWrapper) or (not isinstance(env, Wrapper) and hasattr(env, "possible_agents"))


def _is_wrapped(env: Any) -> bool:
    """Whether it is one of our wrappers, or has the members of one (another library's wrapper)."""
    if isinstance(env, (Wrapper, MultiAgentEnvWrapper)):
        return True
    return not isinstance(env, (gymnasium.Env, VectorEnv)) and not _missing_members(env)


def _missing_members(env: Any) -> list[str]:
    role = MultiAgentEnv if is_multi_agent(env) else Env
    if role is MultiAgentEnv and not hasattr(env, "num_envs"):
        return ["num_envs"]  # PettingZoo's own: looking for its spaces makes it warn
    return missing_members(env, role)


def check_env(env: Any, framework: str) -> None:
    """Check that `env` can be driven by a trainer of this framework.

    Raises:
        EnvError: It lacks a member, has no rows, or is for another framework.
    """
    kind = type(env).__qualname__
    if missing := _missing_members(env):
        raise EnvError(f"environment {kind} lacks {', '.join(missing)}; wrap it with wrap_env(env, framework=…)")
    check_num_envs(env.num_envs, f"environment {kind}")
    if isinstance(env, (Wrapper, MultiAgentEnvWrapper)) and env.framework != framework:
        raise EnvError(f"environment {kind} is for {env.framework!r}, but the trainer is for {framework!r}")


def check_num_envs(num_envs: Any, owner: str) -> None:
    """Check a number of environments.

    Raises:
        EnvError: It is no integer of at least 1.
    """
    if not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
        raise EnvError(f"{owner} has num_envs {num_envs!r}; expected an integer of at least 1")
