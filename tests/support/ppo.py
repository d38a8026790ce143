"""Agents of every framework and their inputs: arrays are made in NumPy, and results are compared as NumPy arrays."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.spaces.utils import flatten

from tests.support.agents import copied
from tests.support.parity import assert_same, ppo
from workers.agents.base import discrete_components
from workers.agents.ppo import PPO
from workers.frameworks import load_framework

STEPS, ENVS, WIDTH, STATE_WIDTH = 4, 3, 5, 2
BOX = Box(-np.inf, np.inf, (WIDTH,))
STATES = Box(-np.inf, np.inf, (STATE_WIDTH,))
ACTIONS: dict[str, gymnasium.Space[Any]] = {"discrete": Discrete(3, start=2), "gaussian": Box(-np.inf, np.inf, (2,))}
MULTI_DISCRETE = MultiDiscrete([3, 2, 4], start=[-1, 5, 0])
BOUNDED = Box(np.array([10.0, -0.5], np.float32), np.array([20.0, 0.25], np.float32))
HALF_BOUNDED = Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, np.inf], np.float32))
CLOCK: dict[str, Any] = {"timestep": 0, "timesteps": 100}

Arrays = dict[str, npt.NDArray[Any]]


def integer_dtype(framework: str) -> type[np.integer[Any]]:
    """Return the dtype of discrete actions."""
    return np.int32 if framework == "jax" else np.int64


def seed_everything(framework: str, seed: int) -> None:
    """Seed NumPy's global generator, and the framework's if it has one."""
    np.random.seed(seed)
    adapter = load_framework(framework)
    adapter.random_stream(seed).swap()


def make(
    framework: str,
    actions: str | gymnasium.Space[Any] = "gaussian",
    *,
    asymmetric: bool = False,
    num_envs: int = ENVS,
    seed: int | None = 0,
    **cfg: Any,
) -> PPO:
    """Build a small agent in training mode. Agents of one seed are equal; None leaves the global generators alone."""
    defaults = {"rollouts": STEPS, "mini_batches": 2, "learning_epochs": 2, "hidden_sizes": (8,), "kl_threshold": 0.01}
    if seed is not None:
        seed_everything(framework, seed)
    agent = ppo(framework)(
        observation_space=BOX,
        action_space=ACTIONS[actions] if isinstance(actions, str) else actions,
        state_space=STATES if asymmetric else None,
        num_envs=num_envs,
        cfg=defaults | cfg,
    )
    agent.init()
    agent.enable_training_mode(True)
    return agent


def with_head(framework: str, space: gymnasium.Space[Any], outputs: npt.NDArray[Any], **cfg: Any) -> PPO:
    """Return an agent in evaluation whose network returns `outputs` for every observation."""
    agent = make(framework, space, hidden_sizes=(), **cfg)
    agent.enable_training_mode(False)
    state = state_of(agent)
    state["models"]["policy.network.0.weight"][...] = 0.0
    state["models"]["policy.network.0.bias"][...] = outputs
    agent.load_state_dict(state)
    return agent


# Arrays.


def to_framework(framework: str, tree: Any) -> Any:
    """Return the tree with arrays of the framework in place of NumPy's."""
    if isinstance(tree, dict):
        return {key: to_framework(framework, value) for key, value in tree.items()}
    return load_framework(framework).from_numpy(tree) if isinstance(tree, np.ndarray) else tree


def state_of(agent: PPO) -> dict[str, Any]:
    """Return the agent's `state_dict` with NumPy arrays."""
    state: dict[str, Any] = copied(agent.state_dict())
    return state


def learned(agent: PPO) -> dict[str, Any]:
    """Return a state whose statistics are no initial ones, and whose actions depend much on observations."""
    state = state_of(agent)
    rng, models = np.random.default_rng(11), state["models"]
    for name, array in models.items():
        if name.startswith("normalizers.") and not name.endswith("count"):
            array[...] = rng.uniform(0.2, 2.0, array.shape)
        elif name.endswith("bias"):
            array[...] = 0.2 * rng.normal(size=array.shape)
    heads = [name for name in models if name.startswith("policy.network.") and name.endswith("weight")]
    models[heads[-1]][...] *= 300.0
    return state


def same(first: Any, second: Any) -> bool:
    """Return whether two trees are equal bit for bit."""
    try:
        assert_same(first, second)
    except AssertionError:
        return False
    return True


U = 2.0**-24
"""Unit roundoff of float32: the maximum error of one operation, relative to its result. CPUs differ in the order of
sums and in fused operations, so bounds are for the worst case: all roundings of a chain in one direction.
"""


def assert_close(given: Any, expected: Any, tolerance: float, path: str = "") -> None:
    """Assert that arrays and numbers differ by no more than `tolerance` of the largest value of each array.

    Strings must be equal.
    """
    if isinstance(expected, dict):
        assert given.keys() == expected.keys(), f"{path}: {sorted(given)} are not {sorted(expected)}"
        for key in expected:
            assert_close(given[key], expected[key], tolerance, f"{path}.{key}")
        return
    if isinstance(expected, str):
        assert given == expected, f"{path}: {given!r} is not {expected!r}"
        return
    assert np.shape(given) == np.shape(expected), f"{path}: {np.shape(given)} is not {np.shape(expected)}"
    limit = tolerance * float(np.abs(expected).max())
    np.testing.assert_allclose(given, expected, rtol=0.0, atol=limit, err_msg=path)


def flat(space: gymnasium.Space[Any], samples: list[Any]) -> npt.NDArray[np.float32]:
    """Return samples of a space as flat rows."""
    rows: list[Any] = [flatten(space, sample) for sample in samples]
    return np.stack(rows).astype(np.float32)


# Interaction.


def transition(agent: PPO, step: int, **changes: Any) -> Arrays:
    """Return arguments of `record_transition` that depend only on the step, so that two agents can get the same."""
    rng = np.random.default_rng(step)

    def draw(width: int) -> npt.NDArray[Any]:
        return rng.normal(1.0, 2.0, (agent.num_envs, width)).astype(np.float32)

    given = {"observations": draw(WIDTH), "rewards": draw(1), "next_observations": draw(WIDTH)}
    given |= {"terminated": draw(1) > 2.5, "truncated": draw(1) > 2.5}
    if agent.state_space is not None:
        given |= {"states": draw(STATE_WIDTH), "next_states": draw(STATE_WIDTH)}
    if components := discrete_components(agent.action_space):
        rows = [[rng.integers(values.start, values.stop) for values in components] for _ in range(agent.num_envs)]
        given["actions"] = np.array(rows)
    else:
        given["actions"] = draw(agent.action_space.shape[0]) / 2  # type: ignore[index]
    return given | changes


def rollout(agent: PPO, steps: range) -> Arrays:
    """Return the arguments of several timesteps, ``(timesteps, num_envs, size)``."""
    given = [transition(agent, step) for step in steps]
    return {name: np.stack([each[name] for each in given]) for name in given[0]}


def act(
    agent: PPO, observations: npt.NDArray[Any], infos: dict[str, Any] | None = None
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return sampled and mean actions."""
    given = to_framework(agent.framework, {"observations": observations, "infos": infos})
    actions, outputs = agent.act(states=None, **given, **CLOCK)
    return copied(actions), copied(outputs["mean_actions"])


def record(agent: PPO, given: dict[str, Any]) -> None:
    """Record a transition, with arrays of NumPy or of the framework, and learn if the rollout is full."""
    rest: dict[str, Any] = {"states": None, "next_states": None, "infos": {}} | CLOCK
    agent.record_transition(**rest | to_framework(agent.framework, given))
    agent.post_interaction(**CLOCK)


def run(agent: PPO, steps: range, infos: Any = None, **changes: Any) -> list[npt.NDArray[Any]]:
    """Do several timesteps and return the actions; `infos` is a function that returns those of a timestep, or None."""
    taken: list[npt.NDArray[Any]] = []
    for step in steps:
        given = transition(agent, step, **changes)
        agent.pre_interaction(**CLOCK)
        actions, mean_actions = act(agent, given["observations"], infos(step) if infos else None)
        taken += [actions, mean_actions]
        record(agent, given | {"actions": actions})
    return taken


def fix_orders(agent: PPO, seed: int = 0) -> npt.NDArray[Any]:
    """Make every update take the samples in the returned orders, ``(learning_epochs, samples)``."""
    rng, samples = np.random.default_rng(seed), agent.cfg.rollouts * agent.num_envs
    orders = np.array([rng.permutation(samples) for _ in range(agent.cfg.learning_epochs)], np.int32)
    agent._draw_orders = lambda: to_framework(agent.framework, orders)  # type: ignore[method-assign]
    return orders


def learn(agent: PPO, steps: range, **changes: Any) -> dict[str, Any]:
    """Return the state after fixed transitions, with fixed mini-batches."""
    fix_orders(agent)
    for step in steps:
        record(agent, transition(agent, step, **changes))
    return state_of(agent)


def flags(*values: bool) -> npt.NDArray[np.bool_]:
    """Return one flag for each environment."""
    return np.array(values).reshape(-1, 1)


def learn_bandit(framework: str, actions: str | gymnasium.Space[Any]) -> tuple[float, float]:
    """Return mean rewards, at most 1, before and after learning which actions each of three observations requires."""
    cfg: dict[str, Any] = {"rollouts": 8, "learning_epochs": 4, "mini_batches": 4, "learning_rate": 3e-3}
    agent = make(framework, actions, num_envs=32, hidden_sizes=(16,), **cfg)
    before = _play(agent, 8)
    _play(agent, 400)
    agent.enable_training_mode(False)
    return before, _play(agent, 20)


def _play(agent: PPO, steps: int) -> float:
    """Return the mean reward of several timesteps; in evaluation, that of the mean actions."""
    rng, components, total = np.random.default_rng(steps), discrete_components(agent.action_space), 0.0
    ended = np.ones((agent.num_envs, 1), np.bool_)
    for _ in range(steps):
        context = rng.integers(0, 3, agent.num_envs)
        observations = np.eye(WIDTH)[context].astype(np.int64)
        taken = act(agent, observations)[0 if agent.training else 1]
        if components:  # the wanted value depends on the component and on the observation
            wanted = np.array([[values[(i + k) % len(values)] for k, values in enumerate(components)] for i in context])
            rewards = (taken == wanted).mean(1, keepdims=True)
        else:
            rewards = 1.0 - np.abs(taken - (context - 1.0)[:, None]).mean(1, keepdims=True)
        given = {"observations": observations, "next_observations": observations, "actions": taken}
        record(agent, given | {"rewards": rewards.astype(np.float32), "terminated": ended, "truncated": ~ended})
        total += float(rewards.mean()) / steps
    return total
