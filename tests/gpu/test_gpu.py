"""On a GPU: seeds, devices, checkpoints, and that nothing waits for the device."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu.device import AGENT_CFG, DEVICE, ENVS, LINEAR, ROLLOUTS, build, train, values
from workers.errors import WorkerError
from workers.frameworks import Framework, load_framework


def assert_close(one: Any, other: Any, tolerance: float = 2e-3) -> None:
    """Compare trees of arrays with the tolerance that is promised between devices."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, (list, tuple)):
        for each, twin in zip(one, other, strict=True):
            assert_close(each, twin, tolerance)
    elif not isinstance(one, str):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def assert_same(one: Any, other: Any) -> None:
    """Compare trees of arrays to the last bit."""
    assert_close(one, other, 0.0)


def test_a_seed_repeats(framework):
    first, again, other = (train(framework, seed=seed) for seed in (3, 3, 4))
    assert_close(first[0], again[0])
    assert_close(first[1], again[1])
    if framework != "warp":  # whose kernels may sum in any order
        assert_same(first, again)
    assert not np.allclose(first[0][0][0], other[0][0][0])


def test_an_agent_has_the_same_weights_at_the_start_on_every_device(framework):
    states = [train(framework, 1, at=at, env_at=at)[1][0]["models"] for at in (DEVICE, "cpu")]
    names = [name for name in states[0] if name.startswith(("policy", "value"))]
    assert_same({name: states[0][name] for name in names}, {name: states[1][name] for name in names})


@pytest.mark.parametrize(("at", "env_at"), [(DEVICE, "cpu"), ("cpu", DEVICE)])
def test_environments_and_agents_on_different_devices(framework, at, env_at):
    adapter = load_framework(framework)
    with build(framework, agents=2, at=at, env_at=env_at) as trainer:
        assert f"{adapter.device_name(adapter.find_device(at))} of " in str(trainer)
        for _ in range(ROLLOUTS + 1):
            outputs = trainer.train()
        assert adapter.is_on_host(outputs[0]) == (env_at == "cpu" or DEVICE == "cpu")
        assert all(np.isfinite(values(framework, outputs[0])).ravel())


@pytest.mark.parametrize(("at", "to"), [(DEVICE, "cpu"), ("cpu", DEVICE), (DEVICE, DEVICE)])
def test_checkpoints_carry_over(framework, tmp_path: Path, at, to):
    with build(framework, at=at, env_at=at) as trainer:
        for _ in range(ROLLOUTS + 3):
            trainer.train()
        trainer.save(tmp_path / "checkpoint")
        following = values(framework, trainer.train()[:4])
        state = values(framework, trainer.agents[0].state_dict())
    with build(framework, at=to, env_at=to) as other:
        other.load(tmp_path / "checkpoint")
        assert_same(values(framework, other.agents[0].state_dict()), state)
        given = values(framework, other.train()[:4])
        if at == to:
            assert_close(given, following)


def test_an_agent_is_pickled_with_its_device(framework):
    with build(framework) as trainer:
        trainer.train()
        agent = trainer.agents[0]
        copy = pickle.loads(pickle.dumps(agent))
        assert str(copy.device) == str(agent.device)
        assert_same(values(framework, copy.state_dict()), values(framework, agent.state_dict()))


def test_agents_that_overlap_compute_as_if_alone(framework, monkeypatch):
    pairs = [train(framework, agents=2)[1]]
    monkeypatch.setattr(type(load_framework(framework)), "lanes", Framework.lanes)
    pairs.append(train(framework, agents=2)[1])
    assert_close(pairs[0], pairs[1])
    assert not np.allclose(pairs[0][0]["models"]["value.0.weight"], pairs[0][1]["models"]["value.0.weight"])


def test_numbers_that_are_not_finite_are_found(framework, monkeypatch):
    with build(framework) as trainer:
        trainer.train()
        real = trainer.env.step

        def spoilt(actions: Any) -> Any:
            _, *rest = real(actions)
            nothing = load_framework(framework).from_numpy(np.full((ENVS, 48), np.nan, np.float32))
            return (load_framework(framework).to_device(nothing, trainer.env.device), *rest)

        monkeypatch.setattr(trainer.env, "step", spoilt)

        def go_on() -> None:
            for _ in range(100):
                trainer.train()

        with pytest.raises(WorkerError, match=r"not finite since timestep 2|are nan"):
            go_on()


def test_the_users_generator_stays(on_torch):
    import torch

    def state() -> Any:
        return torch.cuda.get_rng_state(DEVICE) if DEVICE != "cpu" else torch.get_rng_state()

    torch.manual_seed(5)
    before = state()
    train("torch", 3)
    assert torch.equal(state(), before)


def test_the_default_device(on_torch):
    import torch

    torch.set_default_device(DEVICE)
    try:
        with build("torch", at=None) as trainer:
            trainer.train()
            assert trainer.agents[0].device == torch.device(DEVICE)
    finally:
        torch.set_default_device("cpu")


def test_graphs_compute_what_their_functions_do(on_torch, monkeypatch):
    from workers.agents.torch.workspace import Workspace

    captured = train("torch")
    monkeypatch.setattr(Workspace, "run", lambda self, function, *args: function(*args))
    assert_close(captured, train("torch"))


def test_an_agent_goes_on_after_it_was_loaded(on_torch):
    """Graphs that were captured before must not be used with tensors that have been replaced."""
    with build("torch") as trainer:
        for _ in range(2 * ROLLOUTS + 3):
            trainer.train()
        [agent] = trainer.agents
        agent.load_state_dict(values("torch", agent.state_dict()))
        snapshot = agent.snapshot()
        for _ in range(2 * ROLLOUTS):
            trainer.train()
        agent.restore(snapshot)
        for _ in range(2 * ROLLOUTS):
            trainer.train()
        assert np.isfinite(values("torch", agent.state_dict())["models"]["value.0.weight"]).all()


def test_an_agent_repeats_its_numbers_after_it_was_trained(on_torch):
    """Captured functions draw no random numbers, so they hold no generator."""
    import torch

    with build("torch") as trainer:
        for _ in range(2 * ROLLOUTS):
            trainer.train()
        [agent] = trainer.agents
    agent.enable_training_mode(False)
    acted = []
    for _ in range(2):
        torch.manual_seed(0)
        rows = torch.zeros(ENVS, 48, device=DEVICE)
        acted.append(values("torch", agent.act(rows, None, timestep=0, timesteps=1)[0]))
    assert_same(acted[0], acted[1])


@pytest.mark.skipif(DEVICE == "cpu", reason="torch tells of synchronisations with a GPU only")
@pytest.mark.parametrize("agents", [1, 2])
def test_the_host_waits_once_for_an_update(on_torch, agents, monkeypatch):
    import torch

    from workers.agents.torch import PPO

    read: list[bool] = []
    real = PPO._read_scalars

    def counted(agent: PPO, reading: Any) -> Any:
        read.append(True)
        return real(agent, reading)

    monkeypatch.setattr(PPO, "_read_scalars", counted)
    with build("torch", agents=agents) as trainer:
        for _ in range(3 * ROLLOUTS):
            trainer.train()
        trainer.collect_metrics()
        read.clear()
        for timestep in range(2 * ROLLOUTS + 1):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                trainer.train()
                torch.cuda.set_sync_debug_mode("default")
            waits = [str(one.message) for one in caught if "synchroniz" in str(one.message)]
            assert not waits, (timestep, waits)
        assert read == [True] * 2 * agents, "an update is read once"


@pytest.mark.skipif(DEVICE == "cpu", reason="a guard of transfers between devices")
def test_jax_transfers_nothing_within_a_rollout(framework):
    if framework != "jax":
        pytest.skip("a guard of JAX")
    import jax

    with build("jax") as trainer:
        for _ in range(2 * ROLLOUTS):
            trainer.train()
        with jax.transfer_guard("disallow"):
            for _ in range(ROLLOUTS - 1):
                trainer.train()


def test_masks_of_agents_that_act(framework):
    """Rows that do not act are left out, and legal actions may be given on the device."""
    from gymnasium.spaces import Discrete

    from workers.agents import load_ppo

    adapter = load_framework(framework)
    device = adapter.find_device(DEVICE)
    agent = load_ppo(framework)(
        observation_space=LINEAR[framework].observation_space,
        action_space=Discrete(3),
        num_envs=ENVS,
        cfg=AGENT_CFG,
        device=DEVICE,
    )
    agent.enable_training_mode(True)
    rng = np.random.default_rng(0)

    def given(array: Any) -> Any:
        return adapter.to_device(adapter.from_numpy(array), device)

    for timestep in range(2 * ROLLOUTS + 1):
        clock: Any = {"timestep": timestep, "timesteps": 99}
        legal = rng.random((ENVS, 3)) < 0.5
        legal[:, 0] |= ~legal.any(1)
        infos = {"alive": given(rng.random((ENVS, 1)) < 0.8), "action_mask": given(legal)}
        if timestep < 5:  # masks may appear after functions were captured
            infos, legal = {}, np.ones_like(legal)
        rows, column = (given(rng.normal(size=(ENVS, width)).astype(np.float32)) for width in (48, 1))
        flags = given(rng.random((ENVS, 1)) < 0.1)
        actions, _ = agent.act(rows, None, infos=infos, **clock)
        assert legal[np.arange(ENVS), values(framework, actions)[:, 0]].all()
        agent.record_transition(
            observations=rows, states=None, actions=actions, rewards=column, next_observations=rows, next_states=None,
            terminated=flags, truncated=flags, infos={}, **clock,
        )  # fmt: skip
        agent.post_interaction(**clock)
    state = values(framework, agent.state_dict())
    assert all(np.isfinite(array).all() for array in state["models"].values())
