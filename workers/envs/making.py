"""Creation of environments: wrapped, made by name, or built by a factory for any range of rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from workers.envs.base import EnvFactory
from workers.envs.checking import check_no_name, check_num_envs, check_wrapped, is_wrapped
from workers.envs.copies import vectorize
from workers.envs.gymnasium import GymnasiumWrapper
from workers.errors import EnvError, close_or_log
from workers.seeding import skrl_key

__all__ = ["build_rows", "closed_on_error", "closers_of", "imports_module", "make_env", "wrap_env"]


@contextmanager
def closed_on_error(built: Any) -> Iterator[None]:
    """Close what was built if the body raises; errors of closing are logged.

    Args:
        built: An environment, a sequence of them, or anything else that a factory returned.
    """
    try:
        yield
    except BaseException:
        for what, close in closers_of(built):
            close_or_log(what, close)
        raise


def closers_of(built: Any) -> list[tuple[str, Callable[[], object]]]:
    """Return what closes a factory's product, as `workers.errors.close_all` takes it.

    Args:
        built: See `closed_on_error`.
    """
    envs = {id(env): env for env in (built if isinstance(built, Sequence) else [built])}
    return [
        (f"environment {type(env).__qualname__}", env.close)
        for env in envs.values()
        if hasattr(env, "close") and not isinstance(env, type)
    ]


def build_rows(factory: EnvFactory, num_envs: int, first_env: int, *, framework: str, seed: int | None) -> Any:
    """Build and wrap the environments of a range of rows.

    Args:
        factory: Factory of the environments.
        num_envs: Number of rows.
        first_env: Index of the first row in the full batch.
        framework: Name of the trainer's framework.
        seed: The trainer's seed.

    Raises:
        EnvError: The factory returned another number of environments, or something that is not an environment. What it
            returned is closed.
    """
    with skrl_key(framework, None if seed is None else seed + first_env):
        built = factory.build(num_envs, first_env)
    with closed_on_error(built):
        env = wrap_env(built, framework=framework, allow_nonfinite=factory.allow_nonfinite)
        check_wrapped(env, framework)
        if env.num_envs != num_envs:
            raise EnvError(
                f"the environment factory built {env.num_envs} environments, starting at row {first_env}; expected "
                f"{num_envs}: build(num_envs, first_env) must return num_envs environments"
            )
    return env


def make_env(
    id: str, *, num_envs: int, framework: str, states: str = "own", allow_nonfinite: bool = False, **kwargs: Any
) -> Any:
    """Make wrapped copies of a registered environment that can be rebuilt for any range of rows.

    Args:
        id: Name of the environment: from Gymnasium, such as ``"CartPole-v1"``, from PettingZoo, such as
            ``"classic/tictactoe_v3"``, or of a module with ``parallel_env`` or ``env``, such as
            ``"mpe2.simple_spread_v3"``.
        num_envs: Number of copies.
        framework: Name of the framework whose arrays the environment takes and returns.
        states: States of a multi-agent environment: ``"own"``, those of the environment, if it has any; ``"joint"``,
            the concatenated observations of all agents; ``"none"``, no states.
        allow_nonfinite: Whether observations, states and rewards may be NaN or infinite, which is an error otherwise.
        kwargs: Passed to ``gymnasium.make``, ``pettingzoo.make`` or the module's function.

    Raises:
        EnvError: There is no such environment, or `num_envs` is less than 1.
    """
    check_num_envs(num_envs, f"make_env({id!r})")
    registered = gymnasium.registry.get(id, id)  # workers know only what their imports register
    build = partial(_make_registered, registered, kwargs, framework, states)
    recipe = EnvFactory(build, num_envs=num_envs, framework=framework, allow_nonfinite=allow_nonfinite)
    env = build_rows(recipe, num_envs, 0, framework=framework, seed=None)
    env.recipe = recipe
    return env


def imports_module(id: str) -> bool:
    """Whether `make_env` imports a module that the name names: it is not that of a registered environment."""
    if ":" in id:
        return True
    try:
        gymnasium.spec(id)
    except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound):
        from workers.envs.registry import is_registered

        return not is_registered(id)
    except (gymnasium.error.Error, ValueError):  # make_env fails
        pass
    return False


def _make_registered(
    registered: str | EnvSpec, kwargs: dict[str, Any], framework: str, states: str, num_envs: int, _first_env: int
) -> Any:
    id = registered if isinstance(registered, str) else registered.id
    envs: list[Any] = []
    with closed_on_error(envs):
        for _ in range(num_envs):
            with _mujocos_warnings_once(id):
                envs.append(_make_single(id, registered, kwargs))
        return wrap_env(envs, framework=framework, states=states)


_made: set[str] = set()
"""Names of the environments that this process has made, and whose warnings it has shown."""


@contextmanager
def _mujocos_warnings_once(id: str) -> Iterator[None]:
    """Silence the warnings of MuJoCo's C library for all copies of an environment but the first."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is None or id not in _made:
        _made.add(id)
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _make_single(id: str, registered: str | EnvSpec, kwargs: dict[str, Any]) -> Any:
    try:
        return gymnasium.make(registered, **kwargs)
    except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound) as error:
        from workers.envs.registry import make_multi_agent

        env = make_multi_agent(id, kwargs)
        if env is None:
            raise EnvError(
                f"gymnasium cannot make {id!r}, and it is neither a PettingZoo environment nor a module with "
                f"parallel_env (for MPE, pip install 'lockstep-rl[multiagent]'): {error}"
            ) from error
        return env
    except gymnasium.error.Error as error:
        raise EnvError(f"gymnasium cannot make {id!r}: {error}") from error


def wrap_env(env: Any, *, framework: str, states: str = "own", allow_nonfinite: bool = False) -> Any:
    """Wrap a Gymnasium or PettingZoo environment, a Gymnasium vector environment, or a list of single environments.

    A wrapped environment is returned as it is.

    Args:
        env: The environment or environments.
        framework: Name of the framework whose arrays the wrapper takes and returns.
        states: See `make_env`.
        allow_nonfinite: See `make_env`; True sets the attribute of an environment that is already wrapped, too.

    Raises:
        EnvError: `env` cannot be wrapped, or `states` does not suit it.
    """
    wrapped = _wrapped(env, framework, states)
    if allow_nonfinite:
        wrapped.allow_nonfinite = True
    return wrapped


def _wrapped(env: Any, framework: str, states: str) -> Any:
    check_no_name(env, framework)
    wrapped = is_wrapped(env)
    singles = list(env) if isinstance(env, Sequence) else [env]
    ids = [id(single) for single in singles if hasattr(single, "step")]
    if len(set(ids)) < len(ids):
        raise EnvError("the list contains the same environment more than once; make one environment for each row")
    if singles and not wrapped and all(hasattr(single, "possible_agents") for single in singles):
        from workers.envs.pettingzoo import PettingZooWrapper

        return PettingZooWrapper(singles, framework=framework, states=states)  # type: ignore[arg-type]
    if states != "own":
        raise EnvError(f"states is {states!r}; expected 'own' for an environment that is not PettingZoo's")
    if wrapped:
        return env
    if isinstance(env, VectorEnv):
        return GymnasiumWrapper(env, framework=framework)
    if singles and all(isinstance(single, gymnasium.Env) for single in singles):
        return GymnasiumWrapper(vectorize(singles), framework=framework)
    given = singles if isinstance(env, (list, tuple)) and singles else [env]
    kinds = ", ".join(dict.fromkeys(f"{type(one).__module__}.{type(one).__qualname__}" for one in given))
    raise EnvError(
        f"{kinds} cannot be wrapped; expected a gymnasium.Env, a gymnasium.vector.VectorEnv, a PettingZoo Parallel or "
        "AEC environment (with possible_agents), or a list of single environments of one kind"
    )
