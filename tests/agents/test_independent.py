"""IndependentAgents: one single agent for each agent name or group of names, in every framework."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from tests.support import parity
from tests.support.agents import NullAgent, copied
from tests.support.multi_agent_envs import NoisyTeamEnv, noisy_team_factory
from tests.support.parity import CFG, assert_same, run
from tests.support.ppo import to_framework
from workers.agents.independent import IndependentAgents
from workers.envs import EnvFactory, MultiAgentEnvWrapper, Wrapper, make_env
from workers.envs.making import build_rows
from workers.errors import AgentError, WorkerError
from workers.types import Scope

NAMES = ["left", "right", "keeper"]
WIDTHS = {"left": 3, "right": 3, "keeper": 2}
PPO_CFG = {"rollouts": 4, "mini_batches": 2, "hidden_sizes": (8,)}
CLOCK: dict[str, Any] = {"timestep": 0, "timesteps": 10}


def make(framework: str, groups: Any = None, num_envs: int = 2, **changes: Any) -> IndependentAgents:
    spaces = {name: Box(-np.inf, np.inf, (width,), np.float32) for name, width in WIDTHS.items()}
    given = {
        "possible_agents": NAMES,
        "observation_spaces": spaces,
        "action_spaces": dict.fromkeys(NAMES, Discrete(3)),
        "num_envs": num_envs,
        "groups": groups,
    }
    return IndependentAgents(partial(parity.ppo(framework), cfg=PPO_CFG), **given | changes)


class RowAgent(NullAgent):
    """A stand-in for a single agent: acts on its first observation column and keeps its arguments."""

    framework = "numpy"

    def __init__(self, num_envs: int, **spaces: Any) -> None:
        super().__init__()
        self.num_envs, self.spaces = num_envs, spaces
        self.given: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...

    def act(  # type: ignore[override]
        self, observations: Any, states: Any, *, infos: Any, timestep: int, timesteps: int
    ) -> Any:
        self.given.append({"observations": observations, "states": states, "infos": infos})
        return observations[:, :1] * 10, {"mean_actions": observations[:, :1] * 100}

    def record_transition(self, **given: Any) -> None:
        self.given.append(given)


def columns(**values: list[float]) -> dict[str, Any]:
    return {name: np.array(rows, np.float32).reshape(-1, 1) for name, rows in values.items()}


def test_groups_get_the_rows_of_their_agents():
    team = IndependentAgents(
        RowAgent,
        possible_agents=NAMES,
        observation_spaces=dict.fromkeys(NAMES, Box(0, 9, (1,))),
        action_spaces=dict.fromkeys(NAMES, Discrete(3)),
        num_envs=2,
        groups={"wings": ["left", "right"]},
    )
    assert {group: member.num_envs for group, member in team.members.items()} == {"wings": 4, "keeper": 2}
    seen = columns(left=[1, 2], right=[3, 4], keeper=[5, 6])
    infos: dict[str, Any] = {
        "alive": {"left": [[1], [0]], "right": [[1], [1]], "keeper": [[0], [1]]},
        "right": {"action_mask": np.array([[1, 0, 1], [0, 1, 1]]), "_action_mask": np.array([True, True])},
    }
    infos["alive"] = {name: np.array(rows, np.bool_) for name, rows in infos["alive"].items()}
    actions, outputs = team.act(seen, dict.fromkeys(NAMES), infos=infos, **CLOCK)
    for name in NAMES:
        np.testing.assert_array_equal(actions[name], seen[name] * 10)
        np.testing.assert_array_equal(outputs[name]["mean_actions"], seen[name] * 100)
    wings, keeper = (team.members[group].given[0] for group in ("wings", "keeper"))
    assert wings["observations"].ravel().tolist() == [1, 2, 3, 4]
    assert wings["states"] is None
    assert wings["infos"]["alive"].ravel().tolist() == [True, False, True, True]
    assert wings["infos"]["action_mask"].tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 1], [0, 1, 1]]
    assert keeper["infos"].keys() == {"alive"}
    kinds = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    arrays: dict[str, Any] = {
        kind: columns(left=[i, i + 1], right=[i + 2, i + 3], keeper=[0, 0]) for i, kind in enumerate(kinds)
    }
    states: dict[str, Any] = {"states": dict.fromkeys(NAMES), "next_states": None}
    team.record_transition(**arrays, **states, infos=infos, **CLOCK)
    recorded = team.members["wings"].given[1]
    for i, kind in enumerate(kinds):
        assert recorded[kind].ravel().tolist() == [i, i + 1, i + 2, i + 3]
    assert recorded["states"] is recorded["next_states"] is None


class AsSingleAgent(Wrapper):
    """The only agent of a multi-agent environment, as a single-agent environment."""

    def __init__(self, env: MultiAgentEnvWrapper) -> None:
        self.framework, self._env = env.framework, env

    num_envs = property(lambda self: self._env.num_envs)
    observation_space = property(lambda self: self._env.observation_spaces["agent_0"])
    action_space = property(lambda self: self._env.action_spaces["agent_0"])
    state_space = property(lambda self: self._env.state_spaces["agent_0"])

    def reset(self, *, seed: int | None = None) -> Any:
        observations, infos = self._env.reset(seed=seed)
        return observations["agent_0"], self._of_one(infos)

    def step(self, actions: Any) -> Any:
        *arrays, infos = self._env.step({"agent_0": actions})
        return *(by_agent["agent_0"] for by_agent in arrays), self._of_one(infos)

    def state(self) -> Any:
        return self._env.state()["agent_0"]

    def render(self) -> Any: ...
    def close(self) -> None: ...

    @staticmethod
    def _of_one(infos: dict[str, Any]) -> dict[str, Any]:
        own = infos.get("agent_0", {}) | {"alive": infos["alive"]["agent_0"]}
        for key in ("final_obs", "final_state"):
            if key in infos:
                own |= {key: infos[key]["agent_0"], f"_{key}": infos[f"_{key}"]}
        return own


def test_a_team_of_one_is_a_single_agent(framework):
    options: dict[str, Any] = {"agents": 1, "discrete": True, "masks": True, "states": True}
    multi = noisy_team_factory(3, **options)

    def single(num_envs: int, first_env: int) -> Any:
        return AsSingleAgent(build_rows(multi, num_envs, first_env, framework=framework, seed=None))

    env = build_rows(multi, 1, 0, framework=framework, seed=None)
    spaces = {
        "observation_space": env.observation_spaces["agent_0"],
        "action_space": env.action_spaces["agent_0"],
        "state_space": env.state_spaces["agent_0"],
    }

    def ppo(scope: Scope) -> Any:
        return parity.ppo(framework)(**spaces, num_envs=scope.num_envs, cfg=PPO_CFG)

    def team(scope: Scope) -> Any:
        by_name = {f"{kind}s": {"agent_0": space} for kind, space in spaces.items()}
        member = partial(parity.ppo(framework), cfg=PPO_CFG)
        return IndependentAgents(member, possible_agents=["agent_0"], **by_name, num_envs=scope.num_envs)

    steps = 24
    alone, ppos = run(steps, framework=framework, env=EnvFactory(single, num_envs=3), agents=ppo, seed=3)
    teams_outputs, teams = run(steps, framework=framework, env=multi, agents=team, seed=3)
    for one, other in zip(alone, teams_outputs, strict=True):
        assert_same([by_agent["agent_0"] for by_agent in other[:4]], list(one[:4]))
    assert_same(copied(teams[0].state_dict()["agent_0"]), copied(ppos[0].state_dict()))
    assert any("_final_obs" in output[4] for output in alone)


def test_tags_name_the_group():
    env = noisy_team_factory(4, agents=3, discrete=True)
    spaces = build_rows(env, 1, 0, framework="torch", seed=None)

    def team(scope: Scope) -> Any:
        return IndependentAgents(
            partial(parity.ppo("torch"), cfg=PPO_CFG),
            possible_agents=spaces.possible_agents,
            observation_spaces=spaces.observation_spaces,
            action_spaces=spaces.action_spaces,
            num_envs=scope.num_envs,
        )

    with parity.step_trainer("torch")(env=env, agents=team, cfg=CFG, seed=0) as trainer:
        trainer.collect_metrics()
        for _ in range(40):
            trainer.train()
        scalars = trainer.collect_metrics()[0]
    for name in ("agent_0", "agent_1", "agent_2"):
        assert {f"Loss / {name} / Policy loss", f"Learning / {name} / Learning rate"} <= scalars.keys()
        assert scalars[f"Episode / {name} / Length (mean)"] >= 1.0
    assert "Loss / Policy loss" not in scalars
    assert scalars["Episode / Length (mean)"] > scalars["Episode / agent_0 / Length (mean)"]


def test_a_state_that_does_not_fit_changes_nothing(framework):
    team, other = make(framework), make(framework)
    before = copied(team.state_dict())
    wrong: Any = other.state_dict()
    wrong["keeper"] = wrong["left"]
    with pytest.raises(AgentError, match="'keeper': the state does not fit this agent"):
        team.load_state_dict(wrong)
    assert_same(copied(team.state_dict()), before)
    with pytest.raises(AgentError, match=r"the state is for \['left'\]; expected \['left', 'right', 'keeper'\]"):
        team.load_state_dict({"left": wrong["left"]})
    team.load_state_dict(other.state_dict())
    assert_same(copied(team.state_dict()), copied(other.state_dict()))


def test_files_go_from_framework_to_framework(tmp_path):
    team = make("torch", {"wings": ["left", "right"]})
    team.save(tmp_path / "team")
    other = make("warp", {"wings": ["left", "right"]})
    other.load(tmp_path / "team")
    assert_same(copied(other.state_dict()), copied(team.state_dict()))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"wings": ["left", "up"]}, "groups contain 'up'; expected only agents from"),
        ({"wings": ["left", "right"], "all": ["right"]}, "'right' is in the groups .* more than once"),
        ({"none": []}, "the group 'none' has no agents"),
        ({"keeper": ["left", "right"]}, "a group is named after the agent 'keeper'"),
        ({"all": ["left", "keeper"]}, "'left' and 'keeper' of the group 'all' have different observation spaces"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(AgentError, match=message):
        make("torch", groups)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("single", "is a single agent, but the environments have the agents .*IndependentAgents"),
        (
            "others",
            r"is for the agents \['left', 'right', 'keeper'\], but the environments have \['agent_0', 'agent_1'",
        ),
        ("wide", "'agent_1' of the agent of scope 0, .* expects observations of width 9"),
    ],
)
def test_agents_that_do_not_fit_the_environment_are_refused(kind, message):
    env = noisy_team_factory(2, agents=2, discrete=True)

    def factory(scope: Scope) -> Any:
        one = NoisyTeamEnv(2, discrete=True)
        if kind == "single":
            space = one.observation_space("agent_0")
            return parity.ppo("torch")(observation_space=space, action_space=Discrete(4), num_envs=2, cfg=PPO_CFG)
        if kind == "others":
            return make("torch")
        spaces = {"agent_0": one.observation_space("agent_0"), "agent_1": Box(-1, 1, (9,))}
        names: dict[str, Any] = {"possible_agents": list(spaces), "action_spaces": dict.fromkeys(spaces, Discrete(4))}
        return make("torch", **names, observation_spaces=spaces)

    with pytest.raises(AgentError, match=message):
        parity.step_trainer("torch")(env=env, agents=factory, cfg=CFG)


def test_what_cannot_be_a_single_agent_is_refused():
    spaces: dict[str, Any] = {f"{kind}_spaces": dict.fromkeys(NAMES, Discrete(3)) for kind in ("observation", "action")}
    with pytest.raises(AgentError, match="NullAgent of the group 'left' lacks framework, state_dict, load_state_dict"):
        IndependentAgents(lambda **_: NullAgent(), possible_agents=NAMES, **spaces, num_envs=2)
    with pytest.raises(
        AgentError, match=r"state_spaces has no space for 'keeper'; .* omit state_spaces if the agents see no"
    ):
        make("torch", state_spaces={"left": Discrete(3), "right": Discrete(3), "keeper": None})
    with pytest.raises(AgentError, match="observation_spaces has no space for 'keeper'"):
        make("torch", observation_spaces={"left": Discrete(3), "right": Discrete(3)})
    with pytest.raises(AgentError, match=r"groups is \['left'\]; expected a mapping of group names to agent names"):
        make("torch", ["left"])


def test_masks_of_another_shape_are_refused():
    seen = to_framework("torch", {name: np.ones((2, width), np.float32) for name, width in WIDTHS.items()})
    alive = dict.fromkeys(NAMES, to_framework("torch", np.ones(2, np.bool_)))
    with pytest.raises(AgentError, match=r"infos\['alive'\]\['left'\] has shape \(2,\); expected \(2, 1\)"):
        make("torch").act(seen, None, infos={"alive": alive}, **CLOCK)


def test_a_multi_agent_needs_a_multi_agent_environment():
    with pytest.raises(AgentError, match=r"is a multi-agent for .*, but the environments have a single agent"):
        parity.step_trainer("torch")(
            env=make_env("CartPole-v1", num_envs=2, framework="torch"), agents=make("torch"), cfg=CFG
        )


def test_actions_of_other_names_are_refused():
    class Forgetful(IndependentAgents):
        def act(self, *arguments: Any, **others: Any) -> Any:
            actions, outputs = super().act(*arguments, **others)
            return {"agent_0": actions["agent_0"]}, outputs

    env = build_rows(noisy_team_factory(2, agents=2, discrete=True), 2, 0, framework="torch", seed=0)
    spaces = {f"{kind}_spaces": getattr(env, f"{kind}_spaces") for kind in ("observation", "action")}
    agent = Forgetful(parity.ppo("torch"), possible_agents=env.possible_agents, **spaces, num_envs=2)
    message = r"act\(\) returned actions of \['agent_0'\]; expected a dictionary with keys"
    with (
        parity.step_trainer("torch")(env=env, agents=agent, cfg=CFG) as trainer,
        pytest.raises(WorkerError, match=message),
    ):
        trainer.train()


def test_learners_are_given_arrays_of_their_framework(framework):
    team = make(framework, {"wings": ["left", "right"]})
    seen = to_framework(framework, {name: np.ones((2, width), np.float32) for name, width in WIDTHS.items()})
    actions, _ = team.act(seen, None, **CLOCK)
    assert {name: tuple(array.shape) for name, array in actions.items()} == dict.fromkeys(NAMES, (2, 1))
