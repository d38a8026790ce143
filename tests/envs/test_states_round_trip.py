"""Environments that were stored, and restored in newly built ones, go on as if nobody had stopped them, bit for bit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation, NormalizeObservation, NormalizeReward, RecordEpisodeStatistics
from gymnasium.wrappers import vector as vector_wrappers

from tests.envs.test_pettingzoo_real import ENVS, pytestmark
from tests.support.agents import copied
from tests.support.device_envs import ENVS as DEVICE_ENVS
from tests.support.parity import assert_same, copied_outputs
from tests.support.schedule import FRAMEWORKS, full_or_short
from tests.support.states import flat_actions, form_of, through_bytes
from workers.envs import make_env, wrap_env
from workers.envs.states import check_state, prepare_state, read_state, write_state
from workers.frameworks import load_framework

ROWS, STEPS = 3, 40
assert pytestmark  # the warnings of real environments are no errors here, either
DEADLY = "butterfly/knights_archers_zombies_v11"
TEAMS = ENVS | {DEADLY: {"spawn_delay": 1, "max_zombies": 20, "line_death": True, "max_cycles": 60}}


def newest() -> list[str]:
    """Return the names of all of Gymnasium's own environments, in their newest versions."""
    found: dict[str, str] = {}
    for spec in gymnasium.registry.values():
        # those with a namespace give arrays of JAX, which Lockstep refuses
        if str(spec.entry_point).startswith("gymnasium.envs.") and not spec.namespace and spec.version is not None:
            name = spec.id.rpartition("-v")[0]
            found[name] = max(found.get(name, ""), spec.id, key=lambda id: int(id.rpartition("-v")[2] or -1))
    return list(found.values())


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "statistics": RecordEpisodeStatistics,
    "normalised": lambda env: NormalizeReward(NormalizeObservation(env)),
    "stacked": partial(FrameStackObservation, stack_size=3),
}
VECTOR_WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "statistics": vector_wrappers.RecordEpisodeStatistics,
    "normalised": vector_wrappers.NormalizeReward,
}


def single(id: str, wrap: Callable[[Any], Any] = lambda env: env, **kwargs: Any) -> Any:
    kwargs.setdefault("max_episode_steps", 30)
    return wrap_env([wrap(gymnasium.make(id, **kwargs)) for _ in range(ROWS)], framework="numpy")


def team(id: str) -> Any:
    return make_env(id, num_envs=ROWS, framework="numpy", **TEAMS[id])


def vector(mode: AutoresetMode, wrap: Callable[[Any], Any] = lambda env: env, id: str = "CartPole-v1") -> Any:
    make = partial(gymnasium.make, id, max_episode_steps=30)
    return wrap_env(wrap(SyncVectorEnv([make] * ROWS, autoreset_mode=mode)), framework="numpy")


BUILDS: dict[str, Callable[[], Any]] = {
    **{id: partial(single, id) for id in newest()},
    **{id: partial(team, id) for id in TEAMS},
    **{f"CartPole, {name}": partial(single, "CartPole-v1", wrap) for name, wrap in WRAPPERS.items()},
    **{f"Hopper, {name}": partial(single, "Hopper-v5", wrap) for name, wrap in WRAPPERS.items()},
    **{f"{mode.name}": partial(vector, mode) for mode in AutoresetMode},
    **{
        f"{mode.name}, {name}": partial(vector, mode, wrap)
        for mode in AutoresetMode
        for name, wrap in VECTOR_WRAPPERS.items()
    },
}
SHORT = [
    *("CartPole-v1", "Blackjack-v1", "HalfCheetah-v5", "Ant-v5", "mpe2.simple_spread_v3", "classic/tictactoe_v3"),
    *(DEADLY, "CartPole, normalised", "Hopper, statistics", "CartPole, stacked"),
    *("NEXT_STEP", "DISABLED", "SAME_STEP, normalised", "SAME_STEP, statistics"),
]


def outputs_of(env: Any, steps: int, generator: np.random.Generator) -> list[Any]:
    outputs = []
    for _ in range(steps):
        observations, rewards, terminated, truncated, infos = copied(env.step(flat_actions(env, generator)))
        for place in (infos, infos.get("final_info", {})):
            if isinstance(place.get("episode"), dict):
                place["episode"].pop("t", None)  # the time
                place["episode"].pop("_t", None)
        outputs.append((observations, rewards, terminated, truncated, infos, copied(env.state())))
    return outputs


@pytest.mark.parametrize("name", full_or_short(list(BUILDS), SHORT))
def test_restored_environments_go_on(name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    build, framework = BUILDS[name], load_framework("numpy")
    steps = 7 + 13 * (len(name) % 5)
    env, other, generator = build(), build(), np.random.default_rng(1)
    if len(name) % 2:
        prepare_state(env, framework, allow_pickle=False)
    env.reset(seed=5)
    outputs_of(env, steps, generator)
    state = through_bytes(read_state(env, framework, allow_pickle=False), framework)
    assert form_of(state) not in ("pickle", "none")
    check_state(other, framework, state)
    assert not write_state(other, framework, state).any()
    assert_same(through_bytes(read_state(other, framework, allow_pickle=False), framework), state)
    again = np.random.default_rng(2)
    expected = outputs_of(env, STEPS, np.random.default_rng(2))
    assert_same(outputs_of(other, STEPS, again), expected)
    for each in (env, other):
        each.close()
    assert not [record for record in caplog.records if record.name == "lockstep"]


DEVICES: dict[str, Callable[[], Any]] = {name: partial(DEVICE_ENVS[name], ROWS, 4) for name in FRAMEWORKS}


@pytest.mark.parametrize("name", [*FRAMEWORKS, "random keys", "torch keys"])
@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_device_environment_goes_on(name: str, is_prepared: bool):
    framework = load_framework({"random keys": "jax", "torch keys": "torch"}.get(name, name))
    example = "jax_env" if name == "random keys" else "torch_env"
    build = DEVICES.get(name) or partial(importlib.import_module(f"examples.{example}").build, ROWS, 4)
    env, other, generator = build(), build(), np.random.default_rng(1)
    if is_prepared:
        prepare_state(env, framework, allow_pickle=False)
    env.reset(seed=5)

    def steps(env: Any, number: int, generator: np.random.Generator) -> list[Any]:
        actions = generator.standard_normal((number, ROWS, 1)).astype(np.float32)
        return [copied_outputs(env.step(framework.from_numpy(each))) for each in actions]

    steps(env, 5, generator)
    state = through_bytes(read_state(env, framework, allow_pickle=False), framework)
    assert form_of(state) == "arrays"
    check_state(other, framework, state)
    assert not write_state(other, framework, state).any()
    expected = steps(env, 20, np.random.default_rng(2))
    assert_same(steps(other, 20, np.random.default_rng(2)), expected)
