"""Transfer of trained agents: whole, by the states of their modules, or by their own files."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from workers.errors import AgentError
from workers.storage.export import ExportedAgent, copy_state, export_agent, import_agent


class Agent:
    """Has a network, its optimizer and a scheduler that holds the optimizer, all referred to twice."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.policy = nn.Linear(2, 1)
        self.models = {"policy": self.policy, "value": None}
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        self.checkpoint_modules: dict[str, Any] = {"policy": self.policy, "optimizer": self.optimizer, "value": None}
        self.memory: Any = None
        self.steps = 0

    def learn(self) -> None:
        self.steps += 1
        self.memory = torch.full((2,), float(self.steps))
        self.optimizer.zero_grad()
        self.models["policy"](self.memory).sum().backward()  # type: ignore[misc]
        self.optimizer.step()
        self.scheduler.step()


class Unpicklable(Agent):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.writer = threading.Lock()


class WithFiles:
    """Has no modules, but a lock and its own files."""

    def __init__(self, weight: float = 0.0) -> None:
        self.writer = threading.Lock()
        self.weight = weight

    def save(self, path: str) -> None:
        Path(path).write_text(str(self.weight))

    def load(self, path: str) -> None:
        self.weight = float(Path(path).read_text())


class WithNothing:
    def __init__(self) -> None:
        self.writer = threading.Lock()


def numbers(agent: Any) -> list[float]:
    return torch.nn.utils.parameters_to_vector(agent.policy.parameters()).tolist()


def trained(agent: Any, times: int = 3) -> Any:
    before = numbers(agent)
    for _ in range(times):
        agent.learn()
    assert numbers(agent) != before
    return agent


def no_need() -> Any:
    raise AssertionError("make() must not be called")


def sent(agent: Any) -> ExportedAgent:
    """Export an agent and send it across a wire."""
    exported = export_agent(agent, pickle.dumps)
    assert isinstance(exported.data, bytes)
    received: ExportedAgent = pickle.loads(pickle.dumps(exported))
    return received


def test_whole():
    agent = trained(Agent())
    exported = sent(agent)
    assert exported.kind == "pickle"
    back = import_agent(exported, no_need)
    assert numbers(back) == numbers(agent)
    assert (back.steps, back.memory.tolist()) == (3, [3.0, 3.0])
    assert back.models["policy"] is back.policy


def test_by_the_states_of_its_modules():
    agent = trained(Unpicklable())
    exported = sent(agent)
    assert exported.kind == "modules"
    made = Unpicklable(seed=1)
    references = made.policy, made.optimizer
    critic = made.checkpoint_modules["value"] = nn.Linear(1, 1)  # the trained agent does not have it
    assert numbers(made) != numbers(agent)
    assert import_agent(exported, lambda: made) is made
    assert numbers(made) == numbers(agent)
    assert (made.policy, made.optimizer) == references == (made.models["policy"], made.scheduler.optimizer)
    assert made.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**3
    assert made.checkpoint_modules["value"] is critic


def test_by_its_state():
    class WithState(Unpicklable):
        def state_dict(self):
            return {"policy": self.policy.state_dict()}

        def load_state_dict(self, state):
            self.policy.load_state_dict(state["policy"])

    agent, made = trained(WithState()), WithState(seed=1)
    exported = sent(agent)
    assert exported.kind == "state"
    assert import_agent(exported, lambda: made) is made
    assert made.policy.weight.tolist() == agent.policy.weight.tolist()


def test_modules_without_a_state_travel_themselves():
    agent, made = Unpicklable(), Unpicklable(seed=1)
    agent.checkpoint_modules["scale"] = made.checkpoint_modules["scale"] = 1.0
    agent.checkpoint_modules["scale"] = 2.5
    assert import_agent(sent(agent), lambda: made).checkpoint_modules["scale"] == 2.5


def test_by_its_own_file():
    exported = sent(WithFiles(7.5))
    assert exported == ExportedAgent("file", b"7.5")
    assert import_agent(exported, WithFiles).weight == 7.5


def test_the_first_way_that_works_is_taken():
    class All(Unpicklable, WithFiles):
        pass

    agent = All()
    agent.weight = 2.0
    assert export_agent(agent, pickle.dumps).kind == "modules"
    assert export_agent(agent, lambda _: b"whole") == ExportedAgent("pickle", b"whole")
    agent.checkpoint_modules = {}
    assert export_agent(agent, pickle.dumps) == ExportedAgent("file", b"2.0")


def test_an_agent_that_cannot_travel_is_a_named_error():
    exported = sent(WithNothing())
    assert exported.kind == "none"
    with pytest.raises(AgentError) as caught:
        import_agent(exported, no_need)
    message = str(caught.value)
    assert "cannot be brought back" in message
    for reason in ("pickle: TypeError", "_thread.lock", "modules: AttributeError", "file: AttributeError", "'save'"):
        assert reason in message


def through_the_wire(agent: Any) -> Any:
    return pickle.loads(pickle.dumps(agent))


def test_state_is_copied_and_references_stay_good():
    remote = through_the_wire(trained(Agent()))
    mine = Agent(seed=1)
    policy, optimizer, modules = mine.policy, mine.optimizer, mine.checkpoint_modules
    weight = mine.policy.weight
    copy_state(remote, mine)
    assert numbers(mine) == numbers(remote)
    assert (mine.steps, mine.memory.tolist()) == (3, [3.0, 3.0])  # although memory was None, like one of the modules
    assert mine.policy is policy is mine.models["policy"] is mine.checkpoint_modules["policy"]
    assert mine.optimizer is optimizer is mine.scheduler.optimizer
    assert mine.checkpoint_modules is modules
    assert mine.policy.weight is weight
    assert optimizer.param_groups[0]["params"][0] is weight


class WithCoefficient(Agent):
    """Optimises a tensor that is in no module, as skrl's SAC does."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.coefficient = torch.ones(1, requires_grad=True)
        self.modules_of = {"coefficient": self.coefficient}
        self.coefficient_optimizer = torch.optim.Adam([self.coefficient], lr=0.1)
        self.checkpoint_modules["coefficient_optimizer"] = self.coefficient_optimizer

    def learn(self) -> None:
        super().learn()
        self.coefficient_optimizer.zero_grad()
        (2 * self.coefficient).sum().backward()
        self.coefficient_optimizer.step()


def test_a_tensor_that_is_optimised_by_itself_stays_that_of_its_optimizer():
    mine, trained = WithCoefficient(), WithCoefficient(1)
    before = mine.coefficient
    trained.learn()
    copy_state(copy.deepcopy(trained), mine)
    trained.learn()
    mine.learn()
    assert mine.coefficient is before is mine.modules_of["coefficient"]
    assert mine.coefficient.item() == trained.coefficient.item() != 1.0


def test_training_goes_on_as_if_the_agent_had_never_left():
    stayed = trained(Agent(), 6)
    remote, mine = through_the_wire(trained(Agent(), 3)), Agent(seed=1)
    copy_state(remote, mine)
    before = numbers(remote), remote.optimizer.param_groups[0]["lr"]
    trained(mine, 3)
    assert numbers(mine) == numbers(stayed)
    assert mine.optimizer.param_groups[0]["lr"] == stayed.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**6
    assert (numbers(remote), remote.optimizer.param_groups[0]["lr"]) == before


def test_state_of_an_agent_without_modules():
    remote, mine = WithFiles(7.5), WithFiles()
    del remote.writer, mine.writer
    copy_state(through_the_wire(remote), mine)
    assert mine.weight == 7.5


def test_modules_that_only_the_trained_agent_has():
    remote, mine = trained(Agent()), Agent(seed=1)
    remote.checkpoint_modules["critic"] = remote.critic = nn.Linear(1, 1)
    remote.checkpoint_modules["scale"] = 2.5
    modules = mine.checkpoint_modules
    copy_state(through_the_wire(remote), mine)
    assert mine.checkpoint_modules is modules
    assert mine.critic is modules["critic"]  # type: ignore[attr-defined]
    assert mine.critic.weight.tolist() == remote.critic.weight.tolist()  # type: ignore[attr-defined]
    assert modules["scale"] == 2.5
    assert list(modules) == ["policy", "optimizer", "value", "critic", "scale"]


def test_an_agents_own_state_is_left_as_it_is():
    agent = trained(Unpicklable())
    before, lock = numbers(agent), agent.writer
    copy_state(agent, agent)
    assert numbers(agent) == before
    assert agent.writer is lock


class Restorable:
    """Defines how it is unpickled, and has an attribute that refers to it."""

    def __init__(self) -> None:
        self.weight = 0.0
        self.owner = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def test_what_refers_to_the_agent_refers_to_mine_afterwards():
    trained, mine = Restorable(), Restorable()
    trained.weight = 3.0
    copy_state(trained, mine)
    assert mine.weight == 3.0
    assert mine.owner is mine
