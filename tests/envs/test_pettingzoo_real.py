"""PettingZoo's environments with random actions: no errors, and copies behave as when stepped alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.multi_agent_oracle import Oracle, assert_rows, columns, draw, flat
from workers.envs import make_env
from workers.envs.registry import make_multi_agent

STEPS = 1000
ALONE = 250
"""Number of steps in which the second copy is compared with a separate environment."""

ENVS: dict[str, dict[str, Any]] = {
    "butterfly/knights_archers_zombies_v11": {"max_cycles": 50, "num_archers": 1, "num_knights": 1},
    "butterfly/cooperative_pong_v6": {"max_cycles": 50, "render_ratio": 6, "ball_speed": 3},
    "classic/tictactoe_v3": {},
    "classic/connect_four_v3": {},
    "classic/rps_v2": {"max_cycles": 7},
    # without remove_on_fall=False, state() fails after a walker has fallen
    "sisl/multiwalker_v9": {"max_cycles": 60, "n_walkers": 2, "terrain_length": 30, "remove_on_fall": False},
    "sisl/pursuit_v5": {"max_cycles": 40, "x_size": 8, "y_size": 8, "n_pursuers": 3, "n_evaders": 4},
    "mpe2.simple_spread_v3": {"max_cycles": 20},
    "mpe2.simple_tag_v3": {"max_cycles": 20, "continuous_actions": True},
    "mpe2.simple_speaker_listener_v4": {"max_cycles": 20},
    "mpe2.simple_world_comm_v3": {"max_cycles": 20, "num_obstacles": 1, "num_forests": 1},
}
pytestmark = [
    # from Box2D's bindings; as an error it would end the process
    pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning"),
    # cooperative_pong creates its observations in render()
    pytest.mark.filterwarnings("ignore:.*render method without specifying any render mode:UserWarning"),
]


def choose(name: str, space: Any, infos: dict[str, Any], row: int, generator: np.random.Generator) -> Any:
    """Choose a legal action, in the format of its space."""
    mask = infos[name].get("action_mask") if isinstance(infos.get(name), dict) else None
    if mask is not None and mask[row].any():
        return space.start + generator.choice(np.flatnonzero(mask[row]))
    if space.dtype.kind == "f":
        return generator.uniform(space.low, space.high).astype(space.dtype)
    return draw(space, generator)


def finite(arrays: Any) -> bool:
    return all(np.isfinite(array).all() for array in arrays.values() if array is not None)


@pytest.mark.parametrize("name", ENVS)
def test_at_random(name, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = make_env(name, num_envs=2, framework="numpy", **ENVS[name])
    alone = Oracle(make_multi_agent(name, ENVS[name]))
    spaces, generator = env.action_spaces, np.random.default_rng(0)
    observations, infos = env.reset(seed=20)
    rows, _ = alone.reset(21)
    ends = 0
    for step in range(STEPS):
        if step < ALONE:
            for agent, given in observations.items():
                assert_rows(given[1:], flat(env.observation_spaces[agent], [rows], agent))
                assert infos["alive"][agent][1, 0] == (agent in alone.alive())
        actions = [{agent: choose(agent, spaces[agent], infos, row, generator) for agent in spaces} for row in range(2)]
        taken = {agent: np.array([columns(space, row[agent]) for row in actions]) for agent, space in spaces.items()}
        observations, *outputs, infos = env.step(taken)
        assert all(map(finite, (observations, *outputs, env.state(), infos.get("final_obs", {}))))
        assert any(alive[0, 0] for alive in infos["alive"].values())
        ends += "final_obs" in infos
        if step < ALONE:
            rows, *expected, _ = alone.step(actions[1])
            for by_agent, own, dtype in zip(outputs, expected, (np.float32, bool, bool), strict=True):
                for agent, given in by_agent.items():
                    assert_rows(given[1], np.array([own.get(agent, 0)], dtype))
            if not alone.env.agents:
                rows, _ = alone.reset()
    assert ends > 10
    env.close()
    alone.env.close()
