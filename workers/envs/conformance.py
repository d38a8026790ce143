"""`check_env`: whether an environment keeps the contract, for users' tests and `lockstep doctor`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env as check_single
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from workers.by_agent import map_arrays
from workers.envs.base import EnvFactory, MultiAgentEnvWrapper, Wrapper, recipe_of
from workers.envs.checking import check_wrapped, is_multi_agent, is_wrapped
from workers.envs.making import build_rows, closed_on_error, closers_of, wrap_env
from workers.envs.outputs import EnvChecks
from workers.envs.samples import checked_reset, checked_step
from workers.errors import EnvError, close_all, marked_row, message_of
from workers.frameworks import Framework, load_framework
from workers.info_rows import check_infos
from workers.infos import take_rows
from workers.spaces import flat_actions
from workers.types import Outcome

__all__ = ["check_env"]

_ADVICE = (
    ".*is different from the unwrapped version",  # wrappers are part of what is trained on
    ".*Not able to test alternative render modes",
    ".*A Box (observation|action) space m(in|ax)imum value is",
)
"""Warnings of Gymnasium's check that do not apply."""

_ROWS = 3
_SEED = 20


def check_env(env: Any, *, framework: str = "numpy", steps: int = 200) -> None:
    """Check that an environment keeps the contract: for the tests of those who write environments.

    Checks Gymnasium's own rules for one copy (`gymnasium.utils.env_checker.check_env`); then, with random actions, the
    shapes, kinds and categories of everything that reset and step return, finite numbers, resets at the end of
    episodes, infos, and whether a seed repeats the numbers. If the environment can be built, it also checks that rows
    that are built on their own have the numbers that they have in a batch, as in Ray. Of a factory, the first three
    environments are checked.

    Where ``allow_nonfinite`` is set, Gymnasium's check is left out, because it refuses NaN. What is built here is
    closed, whatever is found.

    Usage::

        def test_my_env():
            check_env(MyEnv)

    Args:
        env: A class or function that makes an environment (Gymnasium, PettingZoo, or any that a trainer takes); an
            `EnvFactory`, or its function ``build(num_envs, first_env)``; or any environment that a trainer takes. One
            that is handed over is reset and stepped, but not closed.
        framework: Name of the framework for an environment that is not wrapped.
        steps: Number of steps; episodes should end in it.

    Raises:
        EnvError: The environment breaks a rule; the message says which.
    """
    if _makes_one(env):
        with _closed(env()) as made:
            if isinstance(made, VectorEnv) or is_wrapped(made):  # it cannot be built for any rows
                check_env(made, framework=framework, steps=steps)
                return
    factory = _factory(env)
    if factory is None:
        given = [env] if isinstance(env, gymnasium.Env) else env if isinstance(env, (list, tuple)) else []
        for single in given:
            _check_single(single)
        wrapped = wrap_env(env, framework=framework)
        framework = getattr(wrapped, "framework", framework)
        check_wrapped(wrapped, framework)
        _check_repeats(lambda: nullcontext(wrapped), framework, wrapped.num_envs, steps)
        return
    framework = factory.framework or framework
    if not factory.allow_nonfinite:
        with _closed(factory.build(1, 0)) as built:
            framework = getattr(built, "framework", framework)
            for single in built if isinstance(built, (list, tuple)) else []:
                _check_single(single)
    rows = min(factory.num_envs, _ROWS)

    def build(start: int, count: int) -> AbstractContextManager[Any]:
        return _closed(build_rows(factory, count, start, framework=framework, seed=_SEED))

    whole = _check_repeats(lambda: build(0, rows), framework, rows, steps)
    if rows > 1 and whole is not None:
        with build(1, rows - 1) as part:
            _check_rows(whole, _trace(part, framework, 1, rows, steps))


def _factory(env: Any) -> EnvFactory | None:
    """Return what builds the environment for any range of rows; None if that is unknown."""
    if _makes_one(env):
        return EnvFactory(lambda num_envs, first_env: [env() for _ in range(num_envs)], num_envs=_ROWS)
    return EnvFactory(env, num_envs=_ROWS) if _is_function(env) else recipe_of(env)


def _makes_one(env: Any) -> bool:
    """Return whether this is a function or a class that is called without arguments."""
    try:
        if _is_function(env):
            inspect.signature(env).bind()
            return True
    except TypeError:
        pass
    except ValueError:  # not written in Python
        return True
    return False


def _is_function(env: Any) -> bool:
    return isinstance(env, type) or (callable(env) and not hasattr(env, "step"))


@contextmanager
def _closed(built: Any) -> Iterator[Any]:
    """Close what was built; after an error in the body, errors of closing are logged."""
    with closed_on_error(built):
        yield built
    try:
        close_all(closers_of(built))
    except Exception as error:
        raise EnvError(f"close() failed: {message_of(error)}") from error


def _check_single(env: Any) -> None:
    if not isinstance(env, gymnasium.Env):
        return
    try:
        with warnings.catch_warnings():
            for advice in _ADVICE:
                warnings.filterwarnings("ignore", message=advice)
            check_single(env, skip_render_check=True, skip_close_check=True)
    except Exception as error:
        raise EnvError(
            f"{env} does not pass gymnasium.utils.env_checker.check_env: {type(error).__name__}: {error}"
        ) from error


def _check_repeats(
    build: Callable[[], AbstractContextManager[Any]], framework: str, rows: int, steps: int
) -> list[Any] | None:
    """Check two runs with the same seed; return the first one's numbers, or None if the environment takes no seed."""
    with build() as first:
        traces = [_trace(first, framework, 0, rows, steps)]
        with build() as second:
            traces.append(_trace(second, framework, 0, rows, steps))
    if not isinstance(first, (Wrapper, MultiAgentEnvWrapper)):
        return None
    for step, (one, other) in enumerate(zip(*traces, strict=True)):
        if different := _difference(one, other):
            raise EnvError(
                f"environment {first}: {different} differ between two runs with the same seed, first in step {step}; "
                "draw all random numbers from self.np_random, which super().reset(seed=seed) seeds"
            )
    return traces[0]


def _check_rows(whole: list[Any], part: list[Any]) -> None:
    for step, (one, other) in enumerate(zip(whole, part, strict=True)):
        later = [map_arrays(lambda array: array[1:], arrays) for arrays in one]
        if different := _difference(later, other):
            raise EnvError(
                f"{different} of rows 1 and 2 differ between a batch of 3 rows and one that starts at row 1, first in "
                f"step {step}; build(num_envs, first_env) must build the same rows for any range, and copies must not "
                "share anything"
            )


def _difference(one: list[Any], other: list[Any]) -> str | None:
    """Return which outputs differ, or None."""
    names = ("observations", "rewards", "terminated", "truncated")
    for name, arrays, others in zip(names, one, other, strict=False):
        pairs = [(arrays[key], others[key]) for key in arrays] if isinstance(arrays, dict) else [(arrays, others)]
        if any(a.shape != b.shape or _bytes(a) != _bytes(b) for a, b in pairs):
            return name
    return None


def _bytes(array: Any) -> bytes:
    """Return the bytes of an array, with one NaN for all of them."""
    data: bytes = (np.where(np.isnan(array), np.nan, array) if array.dtype.kind == "f" else array).tobytes()
    return data


def _trace(env: Any, framework: str, first: int, stop: int, steps: int) -> list[Any]:
    """Return the outputs of the reset and of every step as NumPy arrays; rows from `first` get the same actions."""
    try:
        return _checked_trace(env, load_framework(framework), first, stop, steps)
    except EnvError as error:
        if (row := marked_row(error)) is None:
            raise
        raise EnvError(f"row {first + row}: {error}") from error


def _checked_trace(env: Any, framework: Framework, first: int, stop: int, steps: int) -> list[Any]:
    is_ours = isinstance(env, (Wrapper, MultiAgentEnvWrapper))
    checks, draw = EnvChecks(env, framework), _Actions(env, first, stop, framework)
    prove = getattr(env, "prove_reset_mask", None)
    if prove is not None:
        prove(seed=_SEED + first, first_env=first)
    observations, infos = checked_reset(env.reset(seed=_SEED + first) if is_ours else env.reset())
    infos = check_infos(infos, checks.name)
    checks.check_reset(observations, env.state(), infos, 0)

    def as_numpy(arrays: Any) -> Any:
        return map_arrays(lambda array: np.array(framework.to_numpy(array)), arrays)

    trace = [[as_numpy(observations)]]
    for step in range(1, steps + 1):
        *arrays, infos = checked_step(env.step(draw(infos)))
        infos = check_infos(infos, checks.name)
        outcome = Outcome._make([*arrays, infos])
        states = env.state()
        checks.transition(outcome, states, timestep=step)
        trace.append([as_numpy(arrays) for arrays in outcome[:4]])
        if is_ours and not is_multi_agent(env):
            checks.check_ends(outcome)
        take_rows(infos, 0, 1, env.num_envs, framework)
    checks.read()
    return trace


class _Actions:
    """Random actions: legal ones if the infos have a mask."""

    def __init__(self, env: Any, first: int, stop: int, framework: Framework) -> None:
        self._first, self._rows, self._framework = first, stop, framework
        self._spaces = env.action_spaces if is_multi_agent(env) else env.action_space
        spaces = self._spaces.values() if is_multi_agent(env) else [self._spaces]
        self._batches = [batch_space(space, stop) for space in spaces]
        for index, batch in enumerate(self._batches):
            batch.seed(_SEED + index)
        self._generator = np.random.default_rng(_SEED)

    def __call__(self, infos: dict[str, Any]) -> Any:
        """Return flat actions; row i is the same whichever row is the first."""
        if not isinstance(self._spaces, dict):
            return self._draw(self._spaces, self._batches[0], infos.get("action_mask"))
        masks = {name: infos[name] if isinstance(infos.get(name), dict) else {} for name in self._spaces}
        return {
            name: self._draw(space, batch, masks[name].get("action_mask"))
            for (name, space), batch in zip(self._spaces.items(), self._batches, strict=True)
        }

    def _draw(self, space: Any, batch: Any, mask: Any) -> Any:
        flat = flat_actions(space, batch.sample())
        chances = self._generator.random((self._rows, int(getattr(space, "n", 1))))
        if mask is not None and isinstance(space, gymnasium.spaces.Discrete):
            legal = np.asarray(mask, np.bool_)
            best = np.where(legal, chances[self._first :], -1.0).argmax(axis=1)
            flat[self._first :] = int(space.start) + best[:, None]
        return self._framework.from_numpy(flat[self._first :])
