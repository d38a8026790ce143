"""PettingZoo environments: made by name, seeded, refused, and driven by the trainer."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, Text
from pettingzoo import AECEnv

from tests.support.agents import RecordingTeam
from tests.support.multi_agent_envs import (
    SCRIPTS,
    TEAM,
    CountingGame,
    CountingTeamEnv,
    NoisyTeamEnv,
    game_factory,
    team_factory,
)
from tests.support.parity import CFG, assert_same, step_trainer
from workers.envs import EnvFactory, make_env, wrap_env
from workers.envs.making import build_rows
from workers.envs.pettingzoo import PettingZooWrapper
from workers.errors import EnvError


def wrapped(*envs: Any, **options: Any) -> PettingZooWrapper:
    return PettingZooWrapper(envs, framework="numpy", **options)


def test_copies_are_seeded_by_their_index():
    whole = wrapped(*(NoisyTeamEnv(discrete=True) for _ in range(4)))
    observations, _ = whole.reset(seed=10)
    for row in range(4):
        alone, _ = NoisyTeamEnv(discrete=True).reset(seed=10 + row)
        for name, array in observations.items():
            np.testing.assert_array_equal(array[row], alone.get(name, np.zeros_like(array[row])))


def test_slices_are_rows_of_the_full_batch():
    def run(first: int, size: int) -> list[Any]:
        env = wrap_env([NoisyTeamEnv(discrete=True, states=True) for _ in range(size)], framework="numpy")
        observations, infos = env.reset(seed=10 + first)
        outputs = [(observations, infos["alive"], env.state())]
        for step in range(80):
            drawn = np.random.default_rng(step).integers(0, 4, (4, 1))[first : first + size]
            *arrays, infos = env.step(dict.fromkeys(env.possible_agents, drawn))
            outputs.append((*arrays, infos["alive"], env.state()))
        return outputs

    whole, part = run(0, 4), run(2, 2)
    taken = [tuple({name: array[2:] for name, array in by_agent.items()} for by_agent in step) for step in whole]
    assert_same(part, taken)
    assert sum(flags.any() for step in part[1:] for flags in step[2].values()) > 3


class Changed(CountingTeamEnv):
    """A team with other names, spaces or tank observations, or without agents after the reset."""

    def __init__(self, *, names=TEAM, space=None, tank=None, empty=False):
        super().__init__(0)
        self.possible_agents = list(names)
        self.space, self.tank, self.empty = space, tank, empty

    def observation_space(self, agent):
        return Box(-1, 1, (5,)) if agent not in TEAM else super().observation_space(agent)

    def action_space(self, agent):
        return self.space or super().action_space(agent if agent in TEAM else "scout")

    def reset(self, seed=None, options=None):
        observations, infos = super().reset()
        if self.empty:
            self.agents = []
        return observations, infos

    def observation(self, name):
        return self.tank if name == "tank" and self.tank is not None else super().observation(name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "counting_team_v0 has no possible_agents; expected the names of all agents that can ever appear"),
        (
            [1, 2],
            r"has possible_agents \[1, 2\]; expected different strings, and none like 1, which would clash with",
        ),
        (["a", "alive"], r"has possible_agents \['a', 'alive'\]; expected different strings, and none like 'alive'"),
        (["a", "_a"], "none like '_a', which would clash with another entry of infos"),
        (["a", "_final_obs"], "none like '_final_obs'"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(names, message):
    with pytest.raises(EnvError, match=message):
        wrapped(Changed(names=names))


def test_an_environment_without_possible_agents_is_refused():
    env = CountingTeamEnv(0)
    del env.possible_agents
    with pytest.raises(EnvError, match="has no possible_agents; expected"):
        wrapped(env)
    with pytest.raises(EnvError, match=r"multi_agent_envs.CountingTeamEnv cannot be wrapped; .*with possible_agents"):
        wrap_env(env, framework="numpy")


def test_spaces_without_a_fixed_width_are_refused():
    with pytest.raises(
        EnvError, match=r"counting_team_v0: action space of 'scout': Text.*is not supported; expected Box"
    ):
        wrapped(Changed(space=Text(3)))
    env = CountingTeamEnv(0)
    env.state_space = Text(3)  # type: ignore[assignment]
    with pytest.raises(EnvError, match=r"counting_team_v0: state space: Text.*is not supported"):
        wrapped(env)


def test_no_agent_after_a_reset_is_refused():
    with pytest.raises(EnvError, match=r"counting_team_v0 has no agent after reset\(\); expected at least one"):
        wrapped(Changed(empty=True)).reset()


@pytest.mark.parametrize(
    ("tank", "given"),
    [
        (np.zeros(4, np.float32), r"has shape \(4,\)"),
        (np.zeros((5, 5)), r"has shape \(5, 5\)"),
        ("a tank", "is of type str"),
        ({"a": 1}, "is of type dict"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(tank, given):
    with pytest.raises(EnvError, match=rf"the observation of 'tank' {given}; expected .*, as in Box") as caught:
        wrapped(Changed(), Changed(tank=tank)).reset()
    assert caught.value.__notes__ == ["in copy 1 of counting_team_v0"]


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (1, 2), (4,)])
def test_actions_of_another_shape_are_refused(shape):
    env = wrapped(CountingTeamEnv(0), CountingTeamEnv(1))
    env.reset()
    actions = {"scout": np.ones((2, 1)), "tank": np.zeros(shape), "medic": np.ones((2, 2))}
    with pytest.raises(EnvError, match=r"counting_team_v0: 'tank': actions have shape .*; expected \(2, 2\)"):
        env.step(actions)


@pytest.mark.parametrize(
    ("name", "agents", "is_turn_based"),
    [
        ("mpe2.simple_spread_v3", ["agent_0", "agent_1", "agent_2"], False),
        ("classic/tictactoe_v3", ["player_1", "player_2"], True),
    ],
)
def test_environments_by_name(name, agents, is_turn_based):
    env = make_env(name, num_envs=3, framework="numpy")
    assert isinstance(env, PettingZooWrapper)
    assert (env.num_envs, env.possible_agents) == (3, agents)
    observations, infos = env.reset(seed=5)
    assert sum(int(alive[0, 0]) for alive in infos["alive"].values()) == (1 if is_turn_based else 3)
    assert env.recipe is not None
    part = build_rows(env.recipe, 2, 1, framework="numpy", seed=None)
    assert_same(part.reset(seed=6)[0], {name: rows[1:] for name, rows in observations.items()})


class Odd(CountingTeamEnv):
    """Commits `fault` in its second step."""

    def __init__(self, fault: str) -> None:
        super().__init__(0, {"scout": (2, "truncated"), "tank": (9, "truncated"), "medic": (9, "terminated")})
        self.fault = fault

    def step(self, actions: Any) -> Any:
        observations, rewards, *flags, infos = super().step(actions)
        if self.step_count == 2 and self.fault == "no observation":
            observations["tank"] = None
        if self.step_count == 2 and self.fault == "no final observation":
            del observations["scout"]
        if self.step_count == 2 and self.fault == "no reward":
            rewards["medic"] = None
        if self.step_count == 2 and self.fault == "stranger":
            self.agents.append("stranger")
        if self.step_count == 2 and self.fault == "error":
            raise RuntimeError("the physics has blown up")
        return observations, rewards, *flags, infos


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no observation", "returned no observation for 'tank'; expected one, because"),
        ("no final observation", "returned no observation for 'scout'; expected one, because"),
        ("no reward", "the reward of 'medic' is None; expected a number"),
        ("stranger", r"has the agents \['stranger'\]; expected only agents in its possible_agents"),
        ("error", "the physics has blown up"),
    ],
)
def test_what_a_copy_may_not_do_is_told(fault, message):
    env = PettingZooWrapper([CountingTeamEnv(0), Odd(fault)], framework="numpy")
    env.reset(seed=0)
    actions = {"scout": np.ones((2, 1)), "tank": np.zeros((2, 2)), "medic": np.zeros((2, 2))}
    env.step(actions)
    with pytest.raises((EnvError, RuntimeError), match=message) as caught:
        env.step(actions)
    assert caught.value.__notes__ == ["in copy 1 of counting_team_v0"]


def test_copies_of_different_kinds_are_refused():
    fewer, other = CountingTeamEnv(1), CountingTeamEnv(1)
    fewer.possible_agents = ["scout", "tank"]
    other._action_spaces["scout"] = Discrete(9)
    for odd, message in (
        (fewer, r"copy 1 has possible_agents \['scout', 'tank'\]; expected those of the first"),
        (other, r"'scout' of copy 1 has the spaces .*Discrete\(9\)\); expected .*Discrete\(5, start=1\)"),
    ):
        with pytest.raises(EnvError, match=message):
            wrap_env([CountingTeamEnv(0), odd], framework="numpy")


def test_states_that_there_are_not_are_refused():
    with pytest.raises(EnvError, match="states is 'all'; expected one of own, joint, none"):
        make_env("classic/rps_v2", num_envs=1, framework="numpy", states="all")
    with pytest.raises(EnvError, match="states is 'joint'; expected 'own' for an environment that is not PettingZoo's"):
        make_env("CartPole-v1", num_envs=1, framework="numpy", states="joint")


def test_actions_of_every_agent_are_expected():
    env = make_env("classic/rps_v2", num_envs=1, framework="numpy")
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"given for \['player_0'\]; expected actions for \['player_0', 'player_1'\]"):
        env.step({"player_0": np.zeros((1, 1), int)})


def test_keyword_arguments_and_joint_states_by_name():
    env = make_env("mpe2.simple_adversary_v3", num_envs=1, framework="numpy", N=3, max_cycles=2)
    assert len(env.possible_agents) == 4
    env.reset(seed=0)
    for _ in range(2):
        infos = env.step({name: np.zeros((1, 1), int) for name in env.possible_agents})[-1]
    assert infos["_final_obs"].tolist() == [True]
    env = make_env("classic/rps_v2", num_envs=2, framework="numpy", states="joint")
    env.reset(seed=0)
    assert env.state()["player_0"].shape == (2, 8)
    assert build_rows(env.recipe, 1, 0, framework="numpy", seed=None).state_spaces["player_1"].shape == (8,)


@pytest.mark.parametrize("name", ["NoSuchEnv-v0", "no.such_v0", "classic/no_such_v0", "no/such_v0", "json"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(EnvError, match=rf"make '{name}', .* neither a PettingZoo environment nor a module"):
        make_env(name, num_envs=1, framework="numpy")


def test_a_module_whose_import_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_team_v0.py").write_text("import no_such_package")
    with pytest.raises(EnvError, match="'broken_team_v0' cannot be imported: No module named 'no_such_package'"):
        make_env("broken_team_v0", num_envs=1, framework="numpy")
    code = "from tests.support.multi_agent_envs import CountingGame\n\ndef env(**kwargs): return CountingGame(**kwargs)"
    (tmp_path / "sound_game_v0.py").write_text(code)
    assert make_env("sound_game_v0", num_envs=2, framework="numpy", row=3).possible_agents == ["anna", "bert", "cleo"]
    sys.modules.pop("sound_game_v0")


def test_environments_as_they_are_and_in_lists():
    assert isinstance(CountingGame(0), AECEnv)
    for envs, rows in ((CountingGame(0), 1), ([CountingGame(0), CountingGame(1)], 2), ((CountingTeamEnv(0),), 1)):
        env = wrap_env(envs, framework="numpy")
        assert isinstance(env, PettingZooWrapper)
        assert env.num_envs == rows
        assert wrap_env(env, framework="numpy") is env
    game = CountingGame(0)
    with pytest.raises(EnvError, match="the list contains the same environment more than once"):
        wrap_env([game, game], framework="numpy")


def test_mixed_lists_are_refused():
    with pytest.raises(
        EnvError, match=r"CountingTeamEnv, .*TimeLimit cannot be wrapped; .*single environments of one kind"
    ):
        wrap_env([CountingTeamEnv(0), gymnasium.make("CartPole-v1")], framework="numpy")


def train(env: EnvFactory, steps: int, scopes: list[int]) -> tuple[list[RecordingTeam], list[dict[str, float]]]:
    spaces = build_rows(env, 1, 0, framework="torch", seed=None).action_spaces
    agents = [partial(RecordingTeam, spaces)] * len(scopes)
    with step_trainer("torch")(env=env, agents=agents, scopes=scopes, cfg={**CFG, "timesteps": steps}) as trainer:
        trainer.collect_metrics()
        for _ in range(steps):
            trainer.train()
        return list(trainer.agents), trainer.collect_metrics()


def episodes(metrics: dict[str, float]) -> dict[str, Any]:
    """Get return (mean, min, max) and length (mean) by agent, and those of the team by ``""``."""
    found: dict[str, list[float]] = {}
    for tag, value in metrics.items():
        if tag.startswith("Episode / "):
            *name, _ = tag.removeprefix("Episode / ").split(" / ")
            found.setdefault("".join(name), []).append(value)
    return {name: pytest.approx(values, rel=1e-6) for name, values in found.items()}


def test_what_a_team_acts_on_and_records():
    """Row 0, as in the first trace of test_pettingzoo_wrapper; the actions are 2, 1, 2, 1, ... or a legal one."""
    (agent,), _ = train(team_factory(1, arrival=2), 6, [1])
    acts = [arguments for name, arguments in agent.calls if name == "act"]
    seen = ["".join(name[0] for name in TEAM if act["infos"]["alive"][name][0, 0]) for act in acts]
    assert seen == ["st", "st", "tm", "tm", "t", "st"]
    # every action is legal except step % 5; the first action is 1
    assert [act["infos"]["scout"]["action_mask"][0].tolist() for act in acts[:2]] == [[0, 1, 1, 1, 1], [1, 0, 1, 1, 1]]
    assert [record["actions"]["scout"].tolist() for record in agent.records()[:2]] == [[[2]], [[1]]]
    tank = [[0, 1, 0, 0, -1], [0, 1, 0, 1, 2], [0, 1, 0, 2, 1], [0, 1, 0, 3, 2], [0, 1, 0, 4, 1], [0, 1, 1, 0, -1]]
    assert [act["observations"]["tank"][0].tolist() for act in acts] == tank
    records = agent.records()
    assert [record["observations"]["tank"][0].tolist() for record in records] == tank
    # the true final observation after the fifth step
    assert [record["next_observations"]["tank"][0].tolist() for record in records] == [
        *tank[1:5],
        [0, 1, 0, 5, 2],
        [0, 1, 1, 1, 1],
    ]
    assert [record["next_observations"]["scout"][0].tolist() for record in records] == [
        *([0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1])
    ]
    states = [[0, 0, 0, 2], [0, 0, 1, 2], [0, 0, 2, 2], [0, 0, 3, 2], [0, 0, 4, 1], [0, 1, 0, 2]]
    assert [act["states"]["medic"][0].tolist() for act in acts] == states
    assert [record["states"]["medic"][0].tolist() for record in records] == states
    next_states = [*states[1:5], [0, 0, 5, 0], [0, 1, 1, 2]]
    assert [record["next_states"]["medic"][0].tolist() for record in records] == next_states
    flags = ["".join(name[0] for name in TEAM if record["terminated"][name][0, 0]) for record in records]
    assert flags == ["", "s", "", "m", "", ""]
    assert [record["truncated"]["tank"].tolist() for record in records] == [[[step == 5]] for step in range(1, 7)]


def test_rows_of_two_scopes():
    """Scopes of row 0 and of rows 1 and 2; the first two columns of every record are the row and the agent."""
    agents, _ = train(team_factory(3), 12, [1, 2])
    for agent, rows in zip(agents, ([0], [1, 2]), strict=True):
        for record in agent.records():
            for index, name in enumerate(TEAM):
                for kind in ("observations", "next_observations"):
                    for row, columns in zip(rows, record[kind][name], strict=True):
                        assert columns[:2].tolist() == [row, index] or not columns.any()
        seen = [record["infos"]["medic"]["name"].tolist() for record in agent.records()[:2]]
        assert seen == [[f"{row}/medic" for row in rows]] * 2


def test_returns_and_lengths_of_agents_and_team():
    """After 6 steps (see `SCRIPTS`): one episode of row 0, two of row 1, one of row 2."""
    assert SCRIPTS[2]["tank"] == (1, "terminated")
    _, (first, second) = train(team_factory(3), 6, [1, 2])
    # tank: 100.1 + 100.2 + ...; team: the sum over its agents
    assert episodes(first) == {
        "scout": [0.3, 0.3, 0.3, 2],
        "tank": [501.5, 501.5, 501.5, 5],
        "medic": [801, 801, 801, 4],
        "": [1302.8, 1302.8, 1302.8, 5],
    }
    # scout: 1000.1 + 1000.2 + 1000.3, then 30 more, and row 2: 2000.1 + ... + 2000.4
    assert episodes(second) == {
        "scout": [(3000.6 + 3030.6 + 8001) / 3, 3000.6, 8001, (3 + 3 + 4) / 3],
        "tank": [(3300.6 + 3330.6 + 2100.1) / 3, 2100.1, 3330.6, (3 + 3 + 1) / 3],
        "medic": [(3600.6 + 3630.6 + 13202.1) / 3, 3600.6, 13202.1, (3 + 3 + 6) / 3],
        "": [(9901.8 + 9991.8 + 23303.2) / 3, 9901.8, 23303.2, (3 + 3 + 6) / 3],
    }


def test_length_is_the_number_of_timesteps_in_which_an_agent_acted():
    """The medic appears at step 2, with a reward, and acts in steps 3 and 4. In the game, players take turns."""
    _, (team,) = train(team_factory(1, arrival=2), 5, [1])
    assert episodes(team)["medic"] == [600.9, 600.9, 600.9, 2]
    assert episodes(team)[""] == [1102.7, 1102.7, 1102.7, 5]
    _, (game,) = train(game_factory(1), 5, [1])
    assert episodes(game) == {
        "anna": [1.5, 1.5, 1.5, 2],
        "bert": [200.3, 200.3, 200.3, 1],
        "cleo": [1001.5, 1001.5, 1001.5, 2],
        "": [1203.3, 1203.3, 1203.3, 5],
    }


def test_a_game_through_the_trainer():
    """A player also records while it waits, with the rewards of the others' moves and whether it acted."""
    (agent,), _ = train(game_factory(1), 5, [1])
    records = agent.records()
    acts = [arguments for name, arguments in agent.calls if name == "act"]
    alive = ["".join(name[0] for name, alive in act["infos"]["alive"].items() if alive[0, 0]) for act in acts]
    assert alive == ["a", "b", "c", "a", "c"]
    np.testing.assert_array_equal(
        [record["rewards"]["bert"][0, 0] for record in records], np.array([100.1, 100.2, 0, 0, 0], np.float32)
    )
    assert [record["terminated"]["bert"][0, 0] for record in records] == [False, True, False, False, False]
    assert [record["next_observations"]["cleo"][0, :4].tolist() for record in records] == [
        [0, 2, 0, moves] for moves in (1, 2, 3, 4, 5)
    ]
