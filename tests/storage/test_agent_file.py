"""Agent files: agents continue with the same bits, and files that do not fit are rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from tests.support.agents import NullAgent, copied
from tests.support.parity import assert_same
from tests.support.ppo import STEPS, learn, make, run, state_of
from tests.support.skrl_agents import ROLLOUTS, seed_everything, skrl_ppo
from workers.errors import AgentError
from workers.frameworks import load_framework
from workers.storage.agent_file import FILE_NAMES, dump_agent, load_agent
from workers.storage.state_file import encode_state

TORCH = load_framework("torch")


@pytest.mark.parametrize("actions", ["gaussian", "discrete"])
def test_our_agent_goes_on_with_the_same_bits(framework: str, actions: str):
    trained, adapter = make(framework, actions), load_framework(framework)
    run(trained, range(3 * STEPS))
    name, data = dump_agent(trained, adapter)
    assert name == "state.safetensors"
    fresh = make(framework, actions, seed=1)
    before = state_of(fresh)
    with pytest.raises(AssertionError):
        assert_same(state_of(trained), before)
    load_agent(fresh, name, data, adapter)
    assert_same(state_of(fresh), state_of(trained))
    # past an update, which needs the optimizer's moments
    results = [learn(agent, range(100, 100 + STEPS)) for agent in (trained, fresh)]
    assert_same(results[1], results[0])
    with pytest.raises(AssertionError):
        assert_same(results[1], before)


def test_a_file_of_another_shape_leaves_our_agent_as_it_is(framework: str):
    adapter = load_framework(framework)
    name, data = dump_agent(make(framework, hidden_sizes=(9,)), adapter)
    agent = make(framework)
    run(agent, range(STEPS))
    before = dump_agent(agent, adapter)
    with pytest.raises(AgentError, match=r"PPO cannot load the stored state: AgentError: the state does not fit"):
        load_agent(agent, name, data, adapter)
    for wrong in (data[:-1], b"", encode_state({"models": {}}, adapter), encode_state([1], adapter)):
        with pytest.raises(AgentError, match="PPO cannot load the stored state"):
            load_agent(agent, name, wrong, adapter)
    assert dump_agent(agent, adapter) == before


def trained_skrl(seed: int, updates: int) -> Any:
    seed_everything(seed)
    agent = skrl_ppo(2)
    agent.init(trainer_cfg=None)
    agent.enable_training_mode(True)
    for step in range(updates * ROLLOUTS):
        skrl_step(agent, step)
    return agent


def skrl_step(agent: Any, step: int) -> Any:
    """Run one timestep whose arrays depend only on the step."""
    generator = torch.Generator().manual_seed(step)
    observations, following = torch.randn(2, 2, 4, generator=generator)
    rewards = torch.randn(2, 1, generator=generator)
    with torch.no_grad():
        actions, _ = agent.act(observations, None, timestep=step, timesteps=100)
        agent.record_transition(
            observations=observations,
            states=None,
            actions=actions,
            rewards=rewards,
            next_observations=following,
            next_states=None,
            terminated=rewards > 1,
            truncated=rewards < -1,
            infos={},
            timestep=step,
            timesteps=100,
        )
    agent.post_interaction(timestep=step, timesteps=100)
    return actions.numpy()


def skrl_state(agent: Any) -> Any:
    modules = {name: module for name, module in agent.checkpoint_modules.items() if module is not None}
    return {name: copied(dict(module.state_dict())) for name, module in modules.items()}


def test_skrl_s_agent_comes_back_with_its_optimizer():
    trained = trained_skrl(0, 2)
    name, data = dump_agent(trained, TORCH)
    assert name == "state.safetensors"
    assert {path.split("/")[0] for path in safetensors.numpy.load(data)} >= {"policy", "value", "optimizer"}
    fresh = trained_skrl(1, 0)
    with pytest.raises(AssertionError):
        assert_same(skrl_state(fresh), skrl_state(trained))
    load_agent(fresh, name, data, TORCH)
    assert fresh.checkpoint_modules["policy"] is fresh.models["policy"]  # in place
    assert_same(skrl_state(fresh), skrl_state(trained))
    results = []
    for agent in (trained, fresh):  # past an update, which needs the optimizer's moments
        seed_everything(5)
        results.append([[skrl_step(agent, step) for step in range(200, 200 + ROLLOUTS + 4)], skrl_state(agent)])
    assert_same(results[1], results[0])


class WithFiles(NullAgent):
    """Stores a number in its own file format."""

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = weight

    def save(self, path: str) -> None:
        Path(path).write_text(f"weight {self.weight}")

    def load(self, path: str) -> None:
        self.weight = float(Path(path).read_text().removeprefix("weight "))


class WithModules(WithFiles):
    """Has modules, of which one may have no state that can be written."""

    def __init__(self, weight: float = 0.0, module: Any = None) -> None:
        super().__init__(weight)
        self.checkpoint_modules = {"first": torch.nn.Linear(1, 1), "other": module}


class WithState(WithFiles):
    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "hook": [print]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("load_state_dict() must not be called")


class WithHalf(torch.nn.Module):
    """Has a state of a dtype that NumPy lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(2).to(torch.float8_e5m2))


@pytest.mark.parametrize(
    ("stored", "fresh"),
    [
        (WithFiles(2.5), WithFiles()),
        (WithState(2.5), WithState()),
        (WithModules(2.5, {"hook": print}), WithModules(0.0, {"hook": print})),
        (WithModules(2.5, WithHalf()), WithModules(0.0, WithHalf())),
    ],
    ids=["nothing else", "state", "modules", "dtype"],
)
def test_an_agent_s_own_file_is_the_last_way(stored: Any, fresh: Any):
    name, data = dump_agent(stored, TORCH)
    assert (name, data) == ("agent.bin", b"weight 2.5")
    load_agent(fresh, name, data, TORCH)
    assert fresh.weight == 2.5
    assert name in FILE_NAMES
    with pytest.raises(AgentError, match=r"With\w+ cannot load the stored state: ValueError"):
        load_agent(fresh, name, b"another file", TORCH)


class WithPlainState(WithState):
    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}


@pytest.mark.parametrize("agent", [WithPlainState(), WithModules()], ids=["state", "modules"])
def test_an_agent_with_a_state_never_loads_another_file(agent: Any):
    with pytest.raises(AgentError, match=r"With\w+ cannot load .*agent.bin can run code.*; expected state.safetensors"):
        load_agent(agent, "agent.bin", b"weight 2.5", TORCH)
    assert agent.weight == 0.0


def test_an_agent_whose_state_cannot_be_read_loads_nothing():
    class Unready(WithFiles):
        def state_dict(self) -> Any:
            raise RuntimeError("not now")

        def load_state_dict(self, state: Any) -> None: ...

    agent = Unready()
    with pytest.raises(AgentError, match="Unready cannot load the stored state: RuntimeError: not now"):
        load_agent(agent, "agent.bin", b"weight 2.5", TORCH)
    assert agent.weight == 0.0


def test_modules_go_before_the_agent_s_own_file():
    name, data = dump_agent(WithModules(2.5, {"steps": 3}), TORCH)
    assert name == "state.safetensors"
    agent = WithModules(0.0)
    load_agent(agent, name, data, TORCH)
    assert agent.checkpoint_modules["other"] == {"steps": 3}


def test_an_unwritable_state_without_another_way_says_where():
    class OnlyState(NullAgent):
        def state_dict(self) -> dict[str, Any]:
            return {"deep": [{"hook": len}]}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    with pytest.raises(AgentError, match=r"holds a value of type builtin_function_or_method at /deep/0/hook"):
        dump_agent(OnlyState(), TORCH)


def test_an_agent_with_none_of_them_is_told_all_three():
    with pytest.raises(
        AgentError,
        match=r"NullAgent cannot be stored: .*state_dict\(\) and load_state_dict\(state\), nor checkpoint_modules, "
        r"nor save\(path\) and load\(path\)",
    ):
        dump_agent(NullAgent(), TORCH)
    for name in FILE_NAMES:
        with pytest.raises(AgentError, match="NullAgent cannot load the stored state"):
            load_agent(NullAgent(), name, encode_state({"policy": {"a": np.zeros(2)}}, TORCH), TORCH)
