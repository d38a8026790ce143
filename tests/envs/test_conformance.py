"""`check_env` accepts environments that keep the contract, and rejects each that breaks a rule of it."""

from __future__ import annotations

from functools import partial
from itertools import cycle
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper

from tests.envs.test_reset_mask import Counting
from tests.support.device_envs import ENVS, TorchEnv
from tests.support.envs import NoisyEnv
from tests.support.foreign import ForeignEnv
from tests.support.multi_agent_envs import game_factory, noisy_team_factory, team_factory
from tests.support.processes import descendants
from workers.envs import EnvFactory, Wrapper, check_env, make_env, wrap_env
from workers.errors import EnvError


def test_good_environments_pass(framework):
    for env in (
        NoisyEnv,
        lambda: NoisyEnv(3, discrete=True),
        gymnasium.make("CartPole-v1"),
        [NoisyEnv(), NoisyEnv()],
        EnvFactory(lambda n, first: [NoisyEnv() for _ in range(n)], num_envs=1),
        make_env("CartPole-v1", num_envs=8, framework=framework),
        wrap_env([NoisyEnv(), NoisyEnv()], framework=framework),
        EnvFactory(ENVS[framework], num_envs=5),
        ForeignEnv(framework=framework),
    ):
        check_env(env, framework=framework, steps=40)


@pytest.mark.parametrize("build", [team_factory, game_factory, noisy_team_factory])
def test_good_teams_pass(build, framework):
    check_env(build(5), framework=framework, steps=30)


def test_action_masks_are_respected():
    """An illegal move ends a game of tic-tac-toe, with a warning of PettingZoo."""
    check_env(make_env("classic/tictactoe_v3", num_envs=3, framework="numpy"))


class Broken(NoisyEnv):
    """Breaks one rule."""

    def __init__(self, fault: str) -> None:
        super().__init__(3)
        self.fault = fault
        if fault == "no space":
            del self.observation_space

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if self.fault == "no seed":
            self._position = np.random.default_rng().normal(size=3).astype(np.float32)
            return self._position.copy(), {}
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        given = list(super().step(action))
        if self.fault == "noise" and given[4]:
            given[0] += np.random.default_rng().normal(size=3).astype(np.float32)
        if self.fault == "reward" and given[2]:
            given[1] = None
        if self.fault == "NaN" and given[3]:
            given[0][2] = np.nan
        return tuple(given)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no space", "observation_space|does not pass gymnasium"),
        ("no seed", "does not pass gymnasium.utils.env_checker.check_env"),
        ("noise", "observations differ between two runs with the same seed, first in step"),
        ("reward", "row [012]: the reward is None; expected a number"),
        ("NaN", "row [012]: .*final observations are nan in column 2"),
    ],
)
def test_broken_environments_are_rejected(fault, message):
    with pytest.raises((EnvError, AttributeError), match=message):
        check_env(lambda: Broken(fault))


def test_shared_state_between_copies_is_rejected():
    count = [0]

    class Sharing(NoisyEnv):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            count[0] += seed is None
            return super().reset(seed=seed)

        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return observation + np.float32(count[0]), *rest

    def build(num_envs: int, first_env: int) -> Any:
        count[0] = 0
        return [Sharing(3) for _ in range(num_envs)]

    with pytest.raises(
        EnvError, match=r"observations of rows 1 and 2 differ .* must build the same rows for any range"
    ):
        check_env(EnvFactory(build, num_envs=3))


def test_rows_that_depend_on_the_slice_are_rejected():
    def build(num_envs: int, first_env: int) -> Any:
        return [NoisyEnv(3) if first_env else Shifted(3) for _ in range(num_envs)]

    class Shifted(NoisyEnv):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return observation + 1, *rest

    with pytest.raises(
        EnvError, match="observations of rows 1 and 2 differ between a batch of 3 rows and one that star"
    ):
        check_env(EnvFactory(build, num_envs=3))


class Endless(TorchEnv):
    """A wrapper that does not say where its episodes ended."""

    def step(self, actions: Any) -> Any:
        *outputs, infos = super().step(actions)
        return *outputs, {key: value for key, value in infos.items() if "final" not in key}


def test_a_wrapper_that_keeps_final_observations_to_itself_is_rejected():
    with pytest.raises(EnvError, match=r"has ended, but infos\['final_obs'\] and infos\['_final_obs'\]"):
        check_env(EnvFactory(Endless, num_envs=3), framework="torch")


def test_environments_that_cannot_be_wrapped_are_rejected():
    with pytest.raises(EnvError, match=r"builtins\.int cannot be wrapped"):
        check_env(3)
    with pytest.raises(EnvError, match=r"builtins\.NoneType cannot be wrapped"):
        check_env(lambda: None)
    with pytest.raises(EnvError, match=r"make it with make_env\('CartPole-v1'"):
        check_env("CartPole-v1")
    with pytest.raises(EnvError, match="reset_mask"):
        check_env(Counting(3, 0, AutoresetMode.DISABLED, "ignores"))


class NotFinite(NoisyEnv):
    """Gives infinity and two kinds of NaN, which differ only in their sign; every instance gives both in turn."""

    signs = cycle([np.float32(np.nan), -np.float32(np.nan)])

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        observation, infos = super().reset(seed=seed)
        observation[0] = next(self.signs)
        return observation, infos

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        observation[1] = np.inf
        return observation, next(self.signs), *rest


def test_what_is_not_finite_passes_where_it_is_allowed(framework):
    next(NotFinite.signs)

    def build(num_envs: int, first_env: int) -> Any:
        next(NotFinite.signs)
        return [NotFinite(3) for _ in range(num_envs)]

    with pytest.raises(EnvError, match="does not pass gymnasium"):
        check_env(EnvFactory(build, num_envs=3), framework=framework)
    check_env(EnvFactory(build, num_envs=3, allow_nonfinite=True), framework=framework, steps=40)
    check_env(wrap_env(build(2, 0), framework=framework, allow_nonfinite=True), steps=40)
    with pytest.raises(EnvError, match="observations are nan in column 0"):
        check_env(wrap_env(build(2, 0), framework=framework), steps=40)


@pytest.mark.parametrize("fault", [0.0, 1.0])
def test_a_difference_beside_nan_is_found(fault):
    class Beside(NoisyEnv):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            observation[:] = np.nan, fault * np.random.default_rng().random(), 0.0
            return observation, *rest

    factory = EnvFactory(lambda n, first: [Beside(3) for _ in range(n)], num_envs=2, allow_nonfinite=True)
    if not fault:
        return check_env(factory, steps=5)
    with pytest.raises(EnvError, match="observations differ between two runs with the same seed, first in step 1"):
        check_env(factory, steps=5)


class Open(NoisyEnv):
    """Notes which instances are open; breaks a rule at the end of an episode, or when it is closed."""

    alive: ClassVar[list[Open]] = []

    def __init__(self, fault: str = "") -> None:
        super().__init__(3)
        self.fault = fault
        self.alive.append(self)

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, infos = super().step(action)
        return observation, None if self.fault == "reward" and terminated else reward, terminated, truncated, infos

    def close(self) -> None:
        self.alive.remove(self)
        if self.fault == "close":
            raise RuntimeError("stays open")


def build_open(fault: str, num_envs: int, first_env: int) -> Any:
    many = num_envs + (num_envs > 1 and fault == "number")
    envs: list[Any] = [Open("reward" if fault.startswith("reward") else fault) for _ in range(many)]
    if fault == "reward, vector":
        return SyncVectorEnv([lambda env=env: env for env in envs])  # type: ignore[misc]
    return {"kind": [*envs, 3], "twice": envs * 2}.get(fault, envs)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("", ""),
        ("reward", "row [012]: the reward is None"),
        ("reward, vector", "row [012]: the reward is None"),
        ("number", "built 4 environments, starting at row 0; expected 3"),
        ("kind", r"builtins\.int cannot be wrapped"),
        ("twice", "the same environment more than once"),
        ("close", "stays open"),
    ],
)
def test_whatever_is_found_what_was_built_is_closed(fault, message, caplog):
    Open.alive.clear()
    factory = EnvFactory(partial(build_open, fault), num_envs=3)
    if message:
        with pytest.raises((EnvError, RuntimeError), match=message):
            check_env(factory)
    else:
        check_env(factory)
    assert Open.alive == []
    assert caplog.records == []


def test_an_environment_that_cannot_be_closed_is_rejected():
    class Stuck(NoisyEnv):
        def close(self) -> None:
            raise RuntimeError("stays open")

    with pytest.raises(EnvError, match=r"close\(\) failed: .*stays open"):
        check_env(Stuck)


def test_an_error_of_closing_does_not_hide_what_was_found(caplog):
    class Stuck(Open):
        def close(self) -> None:
            super().close()
            raise RuntimeError("stays open")

    Open.alive.clear()
    # without Gymnasium's check, which would be the first to build and close
    factory = EnvFactory(lambda n, first: [Stuck("reward") for _ in range(n)], num_envs=2, allow_nonfinite=True)
    with pytest.raises(EnvError, match="the reward is None"):
        check_env(factory)
    assert Open.alive == []
    assert caplog.text.count("environment GymnasiumWrapper could not be closed: ") == 1


class WithoutRewards(VectorWrapper):
    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = super().step(actions)
        return observations, rewards * np.nan, *rest


def test_no_process_is_left_by_an_environment_that_fails():
    def build(num_envs: int, first_env: int) -> Any:
        return WithoutRewards(AsyncVectorEnv([partial(NoisyEnv, 3)] * num_envs, context="spawn"))

    before = {process.pid for process in descendants("spawn_main")}
    with pytest.raises(EnvError, match="rewards are nan"):
        check_env(EnvFactory(build, num_envs=2))
    assert not {process.pid for process in descendants("spawn_main")} - before


class Squares(gymnasium.Env[Any, Any]):
    """Leaves its space after some steps."""

    observation_space = Discrete(50)
    action_space = Box(-1, 1, (1,))

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return self.count**2, 0.0, False, False, {}


def test_a_category_outside_of_the_space_is_rejected():
    with pytest.raises(EnvError, match=r"row 0: an observation is 64; expected one in Discrete\(50\)"):
        check_env(Squares)


class Batch(Wrapper):
    """Environments that are a batch of their own: the observation is the row, and the number of steps."""

    framework = "torch"
    made = 0
    closed = 0

    def __init__(self, num_envs: int = 2, first_env: int = 0, *, fault: float = 0.0) -> None:
        self.num_envs, self._first, self._fault = num_envs, first_env, fault
        self.observation_space, self.action_space = Box(-np.inf, np.inf, (2,)), Discrete(2)
        Batch.made += 1

    def reset(self, *, seed: int | None = None) -> Any:
        self._observations = torch.zeros(self.num_envs, 2)
        self._observations[:, 0] = torch.arange(self._first, self._first + self.num_envs)
        return self._observations.clone(), {}

    def step(self, actions: Any) -> Any:
        self._observations[:, 1] += 1 + self._fault * self.num_envs
        flags = torch.zeros(self.num_envs, 1, dtype=torch.bool)
        return self._observations.clone(), torch.zeros(self.num_envs, 1), flags, flags, {}

    def render(self) -> None: ...

    def close(self) -> None:
        Batch.closed += 1


class Demanding(Batch):
    def __init__(self, num_envs: int, first_env: int) -> None:
        super().__init__(num_envs, first_env)


@pytest.mark.parametrize("build", [Batch, Demanding, lambda: Batch(5), lambda n, first: Batch(n, first)])
def test_wrappers_of_ones_own_pass_with_whatever_builds_them(build: Any):
    before = Batch.made - Batch.closed
    check_env(build, steps=5)
    assert Batch.made - Batch.closed == before


def test_a_function_that_builds_rows_is_checked_as_a_factory():
    with pytest.raises(
        EnvError, match="observations of rows 1 and 2 differ between a batch of 3 rows and one that sta"
    ):
        check_env(lambda n, first: Batch(n, first, fault=0.5), steps=5)


def test_a_function_that_cannot_be_called_is_refused():
    with pytest.raises(EnvError, match=r"cannot be called as build\(num_envs, first_env\)"):
        check_env(lambda row: Batch())


def test_what_a_wrapper_does_not_set_is_named():
    class Unset(Batch):
        def __init__(self) -> None: ...

    with pytest.raises(EnvError, match="Unset lacks num_envs, observation_space, action_space"):
        check_env(Unset())
