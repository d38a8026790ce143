"""`clone` and hyper-parameters of one trainer: what they copy and change, what they refuse, and what they leave."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.agents import NullAgent
from tests.support.parity import CFG, assert_same, copied_outputs, step_trainer
from tests.support.skrl_agents import skrl_ppo
from tests.trainer.test_save_load import make_ppo
from trainer.torch import StepTrainer
from workers.agents.independent import IndependentAgents
from workers.agents.torch import PPO
from workers.envs import make_env
from workers.errors import AgentError, ConfigError, DivergedError, LifecycleError, ScopeError, WorkerError
from workers.scope.agent_runner import AgentRunner

TEAM = "mpe2.simple_spread_v3"
RATES = (1e-2, 1e-3, 1e-4)


def population(agents: Any = None, **options: Any) -> Any:
    """Return a trainer with three scopes of different sizes, whose agents have different learning rates."""
    agents = agents or [partial(make_ppo, learning_rate=rate) for rate in RATES]
    env = make_env("CartPole-v1", num_envs=6, framework="torch")
    cfg: Any = {**CFG, "timesteps": 100}
    return StepTrainer(env=env, agents=agents, cfg=cfg, scopes=[3, 1, 2], **{"seed": 3, **options})


def held(trainer: Any) -> Any:
    return trainer._session.snapshot(allow_pickle=True), trainer._about()


def test_targets_take_over_what_the_source_has_learnt():
    with population() as trainer:
        trainer.run(11)  # a rollout, and three timesteps of the next
        source, target, other = trainer.agents
        before = held(trainer)
        trainer.clone(0, [2])
        assert_same(target.snapshot(), trainer.agents[1].snapshot())
        now = held(trainer)
        assert now[0].agents[:2] == before[0].agents[:2]
        assert (now[0].envs, now[1]) == (before[0].envs, before[1])
        assert_same([name for name, _ in trainer.agent_files()], ["state.safetensors"] * 3)
        files = trainer.agent_files()
        assert files[0] == files[2] != files[1]
        assert (source._recorded, target._recorded, other._recorded) == (3, 3, 0)
        assert [values["learning_rate"] for values in trainer.hyperparameters()] == [1e-2, 1e-3, 1e-2]
        trainer.run(16)  # each goes on with its own environments and random numbers
        assert len({data for _, data in trainer.agent_files()}) == 3


def test_a_target_goes_on_as_if_it_had_loaded_the_file():
    """Its environments and random stream are those of a run in which it loads the state by itself."""
    results = []
    for clones in (True, False):
        with population() as trainer:
            trainer.run(11)
            if clones:
                trainer.clone(1, (0, 2))
            else:
                for index in (0, 2):
                    trainer.agents[index].load_state_dict(trainer.agents[1].state_dict())
            results.append([[copied_outputs(trainer.train()) for _ in range(20)], trainer.agent_files()])
    assert_same(results[0], results[1])


def test_no_targets():
    with population() as trainer:
        before = held(trainer)
        trainer.clone(0, [])
        assert_same(held(trainer), before)


def test_a_checkpoint_holds_clones_and_hyperparameters(tmp_path: Path):
    results = []
    with population() as trainer:
        trainer.run(11)
        trainer.clone(0, [1, 2])
        trainer.set_hyperparameters(1, {"discount_factor": 0.5, "learning_rate": 0.5})
        trainer.save(tmp_path / "checkpoint")
        values = trainer.hyperparameters()
        results.append([[copied_outputs(trainer.train()) for _ in range(20)], trainer.agent_files()])
    with population() as trainer:
        trainer.set_hyperparameters(2, {"discount_factor": 0.25})
        trainer.load(tmp_path / "checkpoint")
        assert trainer.hyperparameters() == values
        assert [one["discount_factor"] for one in values] == [0.99, 0.5, 0.99]
        results.append([[copied_outputs(trainer.train()) for _ in range(20)], trainer.agent_files()])
    assert_same(results[0], results[1])


def test_scopes_that_there_are_not():
    refused: list[tuple[Any, Any, str]] = [
        (3, [1], "source is 3; expected the index of a scope, from 0 to 2"),
        (-1, [1], "source is -1; expected the index"),
        (0, [1, 3], "a target is 3; expected the index of a scope, from 0 to 2"),
        ("0", [1], "source is '0'; expected the index"),
        (True, [0], "source is True; expected the index"),
        (1, [0, 1], r"targets are \[0, 1\]; expected each only once, and without the source, 1"),
        (1, [2, 2], r"targets are \[2, 2\]; expected each only once"),
    ]
    with population() as trainer:
        before = held(trainer)
        for source, targets, message in refused:
            with pytest.raises(ScopeError, match=message):
                trainer.clone(source, targets)
        assert_same(held(trainer), before)


class Kept(NullAgent):
    """An agent with a state of one array, or of its own file."""

    def __init__(self, values: Any, _: Any) -> None:
        super().__init__()
        self.values = np.array(values)

    def save(self, path: str) -> None:
        Path(path).write_bytes(self.values.tobytes())

    def load(self, path: str) -> None:
        self.values = np.frombuffer(Path(path).read_bytes())


class Stated(Kept):
    def state_dict(self) -> Any:
        return {"values": self.values, "moments": {}}

    def load_state_dict(self, state: Any) -> None:
        self.values = np.array(state["values"])


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (partial(make_ppo, hidden_sizes=(9,)), r"state\['models'\]\['policy.network.0.weight'\] has shape \(8, 4\)"),
        (partial(make_ppo, hidden_sizes=(8, 8)), "lacks 'policy.network.4.weight'"),
        (partial(make_ppo, normalize_observations=False), "has the unexpected 'normalizers.observations.mean'"),
        (partial(make_ppo, activation="relu"), "it has the activation relu; expected the activation tanh"),
        (partial(Kept, [0.0]), "it is a Kept"),
    ],
)
def test_an_agent_that_does_not_fit_leaves_all_unchanged(odd: Any, message: str):
    told = "the agent of scope 2 cannot take over the state of that of scope 0, a PPO: "
    with population([make_ppo, make_ppo, odd]) as trainer:
        trainer.run(9)
        before = held(trainer)
        with pytest.raises(AgentError, match=f"{told}.*{message}"):
            trainer.clone(0, [1, 2])
        assert_same(held(trainer), before)
        trainer.train()


class Duo(NullAgent):
    """A multi-agent of a user's own, with a state for each of its parts."""

    def __init__(self, parts: Any, _: Any) -> None:
        super().__init__()
        self.parts = parts

    def state_dict(self) -> Any:
        return {name: {"values": np.zeros(2), "moments": {}} for name in self.parts}

    def load_state_dict(self, state: Any) -> None:
        raise AssertionError


def team(scope: Any, groups: Any = None, **cfg: Any) -> IndependentAgents:
    env: Any = make_env(TEAM, num_envs=1, framework="torch")
    spaces = {"observation_spaces": env.observation_spaces, "action_spaces": env.action_spaces}
    make = partial(PPO, cfg={"rollouts": 8, "hidden_sizes": (8,), **cfg})
    return IndependentAgents(
        make, possible_agents=env.possible_agents, **spaces, num_envs=scope.num_envs, groups=groups
    )


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        ([partial(Duo, "ab"), partial(Duo, "ac")], "a Duo: state has the unexpected 'b'"),
        (
            [team, partial(team, groups={"all": ["agent_0", "agent_1", "agent_2"]})],
            "it has 'all' of PPO with the activation tanh; expected 'agent_0' of",
        ),
        ([team, partial(team, activation="elu")], "it has 'agent_0' of PPO with the activation elu, 'agent_1' of"),
    ],
)
def test_teams_that_do_not_fit(agents: Any, message: str):
    with step_trainer("torch")(
        env=make_env(TEAM, num_envs=4, framework="torch"), agents=agents, cfg={**CFG, "timesteps": 100}
    ) as trainer:
        before = trainer.agent_files()
        with pytest.raises(AgentError, match=message):
            trainer.clone(0, [1])
        assert trainer.agent_files() == before


def test_nan_does_not_spread():
    states = [0.0, np.nan], [0.0, 1.0], [np.nan, np.nan]
    with population([partial(Stated, values) for values in states]) as trainer:
        with pytest.raises(
            DivergedError, match=r"scope 1 cannot take over the state of that of scope 0, .* NaN in value"
        ):
            trainer.clone(0, [1])
        trainer.clone(0, [2])
        trainer.clone(1, [0])
        assert_same([agent.values.tolist() for agent in trainer.agents[:2]], [[0.0, 1.0]] * 2)


def test_agents_with_files_of_their_own():
    with population([partial(Kept, [index, 7.0]) for index in range(3)]) as trainer:
        trainer.clone(2, [0])
        assert [agent.values.tolist() for agent in trainer.agents] == [[2.0, 7.0], [1.0, 7.0], [2.0, 7.0]]


def test_agents_of_skrl():
    with population([lambda scope: skrl_ppo(scope.num_envs)] * 3) as trainer:
        trainer.run(20)
        before = trainer.agent_files()
        trainer.clone(2, [1])
        assert trainer.agent_files() == [before[0], before[2], before[2]]
        trainer.run(20)
        with pytest.raises(AgentError, match=r"the agent of scope 0, PPO\w*, has no hyper-parameters that can change"):
            trainer.hyperparameters()
        with pytest.raises(AgentError, match=r"scope 1, PPO\w*, has .* give it hyperparameters\(\), which"):
            trainer.set_hyperparameters(1, {"learning_rate": 0.5})


def test_an_agent_that_cannot_be_stored():
    with (
        population([NullAgent] * 3) as trainer,
        pytest.raises(AgentError, match="NullAgent cannot be stored: it has neither state_dict"),
    ):
        trainer.clone(0, [1])


def test_an_agent_that_fails_after_all_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    with population() as trainer:

        def fail(self: Any, name: str, data: bytes) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(AgentRunner, "load_agent_file", fail)
        with pytest.raises(WorkerError, match=r"scope 1 .*and scope 2 .*ZeroDivisionError"):
            trainer.clone(0, [1, 2])
        with pytest.raises(LifecycleError, match=r"train\(\) after an iteration that failed"):
            trainer.train()


CALLS: dict[str, Any] = {
    "clone()": lambda trainer: trainer.clone(0, [1]),
    "hyperparameters()": lambda trainer: trainer.hyperparameters(),
    "set_hyperparameters()": lambda trainer: trainer.set_hyperparameters(0, {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_trainer_that_is_not_ready(name: str):
    with population() as trainer:
        for _ in trainer.iterate(3):
            break
        steps = trainer.iterate(3)
        next(steps)
        message = f"{name} inside a loop over iterate".replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(LifecycleError, match=message):
            CALLS[name](trainer)
        steps.close()
        CALLS[name](trainer)
    with pytest.raises(LifecycleError, match="after close"):
        CALLS[name](trainer)


def test_hyperparameters_of_one_scope_change():
    with population() as trainer:
        before = trainer.hyperparameters()
        assert [values["learning_rate"] for values in before] == list(RATES)
        trainer.set_hyperparameters(1, {"ratio_clip": 0.125, "learning_rate": 0.5})
        assert trainer.hyperparameters() == [
            before[0],
            before[1] | {"ratio_clip": 0.125, "learning_rate": 0.5},
            before[2],
        ]
        refused: list[tuple[Any, Any, Any, str]] = [
            (3, {}, ScopeError, "scope is 3; expected the index of a scope, from 0 to 2"),
            (0, {"rollouts": 9.0}, AgentError, "'rollouts' cannot be changed during a run"),
            (0, {"ratio_clip": -1.0}, ConfigError, "PPOCfg.ratio_clip is -1.0; expected a number > 0"),
        ]
        state = held(trainer)
        for scope, values, error, message in refused:
            with pytest.raises(error, match=message):
                trainer.set_hyperparameters(scope, values)
        assert_same(held(trainer), state)
        trainer.train()


class Tunable(NullAgent):
    """A user's own agent."""

    values: Any = None

    def hyperparameters(self) -> Any:
        return self.values

    def set_hyperparameters(self, values: Any) -> None:
        self.values = dict(values)


def test_an_agent_of_a_users_own():
    with population([Tunable] * 3) as trainer:
        for scope in range(3):
            trainer.set_hyperparameters(scope, {"noise": np.float32(scope)})
        values = trainer.hyperparameters()
        assert values == [{"noise": 0.0}, {"noise": 1.0}, {"noise": 2.0}]
        assert all(type(one["noise"]) is float for one in values)
        trainer.agents[1].values = ["noise"]
        with pytest.raises(
            AgentError, match=r"Tunable.hyperparameters\(\) returned \['noise'\]; expected numbers by name"
        ):
            trainer.hyperparameters()
