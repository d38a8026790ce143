"""PettingZoo environments in our wrapper; the traces are written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box
from pettingzoo.utils.conversions import parallel_to_aec, parallel_to_aec_wrapper

from tests.support.multi_agent_envs import (
    SCRIPTS,
    TEAM,
    CountingGame,
    CountingTeamEnv,
    build_game,
    build_team,
)
from tests.support.parity import assert_same, copied_outputs
from workers.envs.base import MultiAgentEnvWrapper
from workers.envs.pettingzoo import PettingZooWrapper


def wrapped(*envs: Any, **options: Any) -> PettingZooWrapper:
    return PettingZooWrapper(envs, framework="numpy", **options)


def actions_at(step: int, rows: int) -> dict[str, Any]:
    """Return a team's actions in a step, counted from 1: tank ``(step, -1)``, medic ``(step % 3, 3)``."""
    actions = {"scout": [1 + step % 5], "tank": [step, -1], "medic": [step % 3, 3]}
    return {name: np.array([action] * rows, np.float32) for name, action in actions.items()}


def trace(env: MultiAgentEnvWrapper, steps: int) -> list[Any]:
    """Return copies of the outputs of the reset and the steps, each with the states."""
    outputs = [copied_outputs((*env.reset(), env.state()))]
    for step in range(1, steps + 1):
        outputs.append(copied_outputs((*env.step(actions_at(step, env.num_envs)), env.state())))
    return outputs


def named(flags: dict[str, Any], row: int = 0) -> str:
    """Return the first letters of the agents whose flag is set."""
    return "".join(name[0] for name, flag in flags.items() if flag[row, 0])


# One copy, row 7. The scout is terminated at step 2; the medic appears at step 2 and is terminated at 4; the tank is
# truncated at 5, when the copy is reset. Columns: row, agent, episode, step, and the agent's last action.
ABSENT = [0, 0, 0, 0, 0, 0]
ONE_COPY = [
    # scout, tank, medic; rewards; terminated, truncated, alive
    ([7, 0, 0, 0], [7, 1, 0, 0, -1], ABSENT, None, "", "", "st"),
    ([7, 0, 0, 1], [7, 1, 0, 1, 1], ABSENT, [7000.1, 7100.1, 0], "", "", "st"),
    ([7, 0, 0, 2], [7, 1, 0, 2, 2], [7, 2, 0, 2, -1, -1], [7000.2, 7100.2, 7200.2], "s", "", "tm"),
    ([0, 0, 0, 0], [7, 1, 0, 3, 3], [7, 2, 0, 3, 0, 3], [0, 7100.3, 7200.3], "", "", "tm"),
    ([0, 0, 0, 0], [7, 1, 0, 4, 4], [7, 2, 0, 4, 1, 3], [0, 7100.4, 7200.4], "m", "", "t"),
    ([7, 0, 1, 0], [7, 1, 1, 0, -1], ABSENT, [0, 7100.5, 0], "", "t", "st"),
    ([7, 0, 1, 1], [7, 1, 1, 1, 6], ABSENT, [7010.1, 7110.1, 0], "", "", "st"),
]
STATES = [[7, 0, 0, 2], [7, 0, 1, 2], [7, 0, 2, 2], [7, 0, 3, 2], [7, 0, 4, 1], [7, 1, 0, 2], [7, 1, 1, 2]]


def assert_one_copy(outputs: list[Any]) -> None:
    (observations, infos, states), *steps = outputs
    nothing: dict[str, Any] = {name: np.zeros((1, 1)) for name in TEAM}
    given = [(observations, None, nothing, nothing, infos, states), *steps]
    for output, row, state in zip(given, ONE_COPY, STATES, strict=True):
        observations, rewards, terminated, truncated, infos, states = output
        assert [observations[name].tolist() for name in TEAM] == [[columns] for columns in row[:3]]
        assert {observations[name].dtype for name in TEAM} == {np.dtype(np.float32)}
        if rewards is not None:
            assert [rewards[name].tolist() for name in TEAM] == [[[np.float32(number)]] for number in row[3] or ()]
            assert {rewards[name].dtype for name in TEAM} == {np.dtype(np.float32)}
            assert {flags[name].dtype for flags in (terminated, truncated) for name in TEAM} == {np.dtype(bool)}
        assert (named(terminated), named(truncated), named(infos["alive"])) == row[4:]
        assert infos["alive"]["scout"].shape == (1, 1)
        assert [states[name].tolist() for name in TEAM] == [[state]] * 3
    ends = [index for index, output in enumerate(given) if "final_obs" in output[4]]
    assert ends == [5]
    infos = given[5][4]
    assert {name: rows.tolist() for name, rows in infos["final_obs"].items()} == {
        "scout": [[0, 0, 0, 0]],
        "tank": [[7, 1, 0, 5, 5]],
        "medic": [ABSENT],
    }
    assert [infos["final_state"][name].tolist() for name in TEAM] == [[[7, 0, 5, 0]]] * 3
    assert infos["_final_obs"].tolist() == infos["_final_state"].tolist() == [True]


def test_one_copy_step_by_step():
    assert_one_copy(trace(wrapped(CountingTeamEnv(7, SCRIPTS[0], arrival=2)), 6))


def test_an_aec_environment_that_is_parallelizable_is_as_a_parallel_one():
    """PettingZoo either loops over the agents or returns the original Parallel environment."""
    for convert in (parallel_to_aec_wrapper, parallel_to_aec):
        assert_one_copy(trace(wrapped(convert(CountingTeamEnv(7, SCRIPTS[0], arrival=2))), 6))
    envs = [CountingTeamEnv(row, SCRIPTS[row], arrival=2 * (row == 0)) for row in range(3)]
    converted = wrapped(*(parallel_to_aec_wrapper(env) for env in envs))
    same = wrapped(*(CountingTeamEnv(row, SCRIPTS[row], arrival=2 * (row == 0)) for row in range(3)))
    assert_same(trace(converted, 30), trace(same, 30))


# Rows 0, 1 and 2, after the reset and after steps 1 to 6: "row agent episode step" of each row. "----" is a row of
# zeros; T marks an agent that was terminated in the step, U one that was truncated. Row 1 ends at steps 3 and 6, row 0
# at 5, row 2 at 6.
ROWS = {
    "scout": [
        "0000  1000  2000 ",
        "0001  1001  2001 ",
        "0002T 1002  2002 ",
        "----  1010U 2003 ",
        "----  1011  2004U",
        "0010  1012  ---- ",
        "0011  1020U 2010 ",
    ],
    "tank": [
        "0100  1100  2100 ",
        "0101  1101  2101T",
        "0102  1102  ---- ",
        "0103  1110U ---- ",
        "0104  1111  ---- ",
        "0110U 1112  ---- ",
        "0111  1120U 2110 ",
    ],
    "medic": [
        "0200  1200  2200 ",
        "0201  1201  2201 ",
        "0202  1202  2202 ",
        "0203  1210U 2203 ",
        "0204T 1211  2204 ",
        "0210  1212  2205 ",
        "0211  1220U 2210T",
    ],
}
ALIVE = {
    "scout": ["111", "111", "011", "011", "010", "110", "111"],
    "tank": ["111", "110", "110", "110", "110", "110", "111"],
    "medic": ["111", "111", "111", "111", "011", "111", "111"],
}
REWARDS = {
    "scout": "0.1 1000.1 2000.1, 0.2 1000.2 2000.2, 0 1000.3 2000.3, 0 1010.1 2000.4, 0 1010.2 0, 10.1 1010.3 0",
    "tank": "100.1 1100.1 2100.1, 100.2 1100.2 0, 100.3 1100.3 0, 100.4 1110.1 0, 100.5 1110.2 0, 110.1 1110.3 0",
    "medic": "200.1 1200.1 2200.1, 200.2 1200.2 2200.2, 200.3 1200.3 2200.3, 200.4 1210.1 2200.4, 0 1210.2 2200.5, "
    "210.1 1210.3 2200.6",
}
FINAL = {
    3: {"scout": "---- 1003 ----", "tank": "---- 1103 ----", "medic": "---- 1203 ----"},
    5: {"scout": "---- ---- ----", "tank": "0105 ---- ----", "medic": "---- ---- ----"},
    6: {"scout": "---- 1013 ----", "tank": "---- 1113 ----", "medic": "---- 1213 2206"},
}


def rows(table: str) -> list[list[int]]:
    return [[int(digit) for digit in row[:4].replace("-", "0")] for row in table.split()]


def test_three_copies_step_by_step():
    env = wrapped(*build_team(3, 0))
    (observations, infos, _), *steps = trace(env, 6)
    for name in TEAM:
        assert observations[name][:, :4].tolist() == rows(ROWS[name][0])
        assert infos["alive"][name].ravel().tolist() == [True] * 3
    for step, (observations, rewards, terminated, truncated, infos, _) in enumerate(steps, start=1):
        assert ("final_obs" in infos) == (step in FINAL)
        for name in TEAM:
            table = ROWS[name][step]
            assert observations[name][:, :4].tolist() == rows(table), (step, name)
            assert terminated[name].ravel().tolist() == ["T" in table[at : at + 5] for at in (0, 6, 12)]
            assert truncated[name].ravel().tolist() == ["U" in table[at : at + 5] for at in (0, 6, 12)]
            assert infos["alive"][name].ravel().tolist() == [alive == "1" for alive in ALIVE[name][step]]
            numbers = REWARDS[name].split(",")[step - 1].split()
            assert rewards[name].ravel().tolist() == [np.float32(number) for number in numbers]
            if step in FINAL:
                assert infos["final_obs"][name][:, :4].tolist() == rows(FINAL[step][name]), (step, name)
    masks = {step: steps[step - 1][4]["_final_obs"].tolist() for step in FINAL}
    assert masks == {3: [False, True, False], 5: [True, False, False], 6: [False, True, True]}
    final_states = {step: steps[step - 1][4]["final_state"]["tank"].tolist() for step in FINAL}
    assert final_states == {
        3: [[0, 0, 0, 0], [1, 0, 3, 0], [0, 0, 0, 0]],
        5: [[0, 0, 5, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        6: [[0, 0, 0, 0], [1, 1, 3, 0], [2, 0, 6, 0]],
    }
    assert steps[4][5]["medic"].tolist() == [[0, 1, 0, 3], [1, 1, 2, 3], [2, 0, 5, 1]]
    assert env.agents == ["scout", "tank", "medic"]


def test_agents_are_those_alive_in_any_copy():
    env = wrapped(CountingTeamEnv(0, SCRIPTS[0], arrival=3), CountingTeamEnv(1, SCRIPTS[0], arrival=3))
    env.reset()
    listed = [env.agents]
    for step in range(1, 6):
        env.step(actions_at(step, 2))
        listed.append(env.agents)
    both = ["scout", "tank"]
    assert listed == [both, both, ["tank"], ["tank", "medic"], ["tank"], both]


def test_infos_by_agent_with_masks():
    """After step 2, in which row 0's scout falls and row 2's tank is absent, and step 3, in which row 1 ends."""
    _, _, (*_, second, _), (*_, third, _) = trace(wrapped(*build_team(3, 0)), 3)
    assert second["scout"]["step"].tolist() == [2, 2, 2]
    assert second["scout"]["name"].tolist() == ["0/scout", "1/scout", "2/scout"]
    assert second["scout"]["action_mask"].tolist() == [[1, 1, 0, 1, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 0]]
    assert (second["scout"]["fell"].tolist(), second["scout"]["_fell"].tolist()) == ([2, 0, 0], [True, False, False])
    assert (second["_scout"].tolist(), second["_tank"].tolist()) == ([True] * 3, [True, True, False])
    assert second["tank"]["name"].tolist() == ["0/tank", "1/tank", None]
    assert "final_info" not in second
    assert third["scout"]["step"].tolist() == [0, 0, 3]
    assert third["scout"]["action_mask"].tolist() == [[0] * 5, [1, 0, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert third["scout"]["_action_mask"].tolist() == third["_scout"].tolist() == [False, True, True]
    assert third["final_info"]["scout"]["fell"].tolist() == [0, 3, 0]
    assert third["final_info"]["medic"]["name"].tolist() == [None, "1/medic", None]
    assert third["_final_info"].tolist() == third["final_info"]["_scout"].tolist() == [False, True, False]


class Stateless(CountingTeamEnv):
    state_space = None  # type: ignore[assignment]


def test_joint_states_are_all_observations():
    env = wrapped(*(Stateless(row, SCRIPTS[row]) for row in range(3)), states="joint")
    assert env.state_spaces["tank"] == Box(-np.inf, np.inf, (15,), np.float32)
    outputs = trace(env, 6)
    for observations, *_, states in outputs:
        joined = np.concatenate([observations[name] for name in TEAM], axis=1)
        assert all(states[name].tobytes() == joined.tobytes() for name in TEAM)
    infos = outputs[5][4]
    assert infos["_final_state"].tolist() == [True, False, False]
    assert infos["final_state"]["medic"].tolist() == [[0, 0, 0, 0, 0, 1, 0, 5, 5, *ABSENT], [0] * 15, [0] * 15]
    assert wrapped(Stateless(0)).state() == dict.fromkeys(TEAM)
    assert wrapped(Stateless(0)).state_spaces == dict.fromkeys(TEAM)
    joint = wrapped(CountingTeamEnv(0), states="joint").state_spaces
    assert joint["tank"] == Box(-np.inf, np.inf, (15,), np.float32)
    assert wrapped(CountingTeamEnv(0), states="none").state() == dict.fromkeys(TEAM)
    assert wrapped(CountingTeamEnv(0)).state_spaces["tank"] == CountingTeamEnv.state_space


def test_an_agent_that_comes_and_ends_in_one_step():
    """Its only row is its final observation, with its flag and its reward; it never acted."""
    script = {"scout": (3, "terminated"), "tank": (3, "terminated"), "medic": (1, "truncated")}
    env = wrapped(CountingTeamEnv(0, script, arrival=1))
    outputs = trace(env, 2)
    observations, rewards, terminated, truncated, infos, _ = outputs[1]
    assert observations["medic"][0, :4].tolist() == [0, 2, 0, 1]
    assert rewards["medic"].item() == pytest.approx(200.1)
    assert not terminated["medic"].item()
    assert truncated["medic"].item()
    assert not infos["alive"]["medic"].item()
    observations, rewards, terminated, truncated, infos, _ = outputs[2]
    assert not observations["medic"].any()
    assert not any(array["medic"].item() for array in (rewards, truncated, infos["alive"]))


# The game of row 3, with five moves; Bert drops out by his own move, the second one. Observations: (row, player,
# episode, moves), then the mask. Columns: mask; moves observed by anna, bert and cleo, None where the row is zero;
# rewards; terminated; alive.
GAME = [
    ([1, 1, 1, 0], (0, 0, 0), None, "", "a"),
    ([0, 1, 1, 1], (1, 1, 1), (3000.1, 3100.1, 3200.1), "", "b"),
    ([1, 0, 1, 1], (2, 2, 2), (3000.2, 3100.2, 3200.2), "b", "c"),
    ([1, 1, 0, 1], (3, None, 3), (3000.3, 0, 3200.3), "", "a"),
    ([1, 1, 1, 0], (4, None, 4), (3000.4, 0, 3200.4), "", "c"),
    ([1, 1, 1, 0], (0, 0, 0), (3000.5, 0, 3200.5), "ac", "a"),
]


def test_a_turn_based_game_move_by_move():
    game = CountingGame(3, {"bert": (2, "terminated")}, moves=5)
    env = wrapped(game)
    observations, infos = env.reset()
    rewards, terminated, truncated = None, *({name: np.zeros((1, 1), bool) for name in game.possible_agents},) * 2
    moves = []
    for step, (mask, shown, reward, ended, alive) in enumerate(GAME):
        episode = int(step == 5)
        for index, (name, done) in enumerate(zip(game.possible_agents, shown, strict=True)):
            row = [0] * 8 if done is None else [3, index, episode, done, *mask]
            assert observations[name].tolist() == [row], (step, name)
            assert infos[name]["action_mask"].tolist() == [[bool(bit) for bit in row[4:]]]
            assert infos[f"_{name}"].tolist() == infos[name]["_action_mask"].tolist() == [done is not None]
        if rewards is not None:
            given = [rewards[name][0, 0] for name in game.possible_agents]
            np.testing.assert_array_equal(given, np.array(reward, np.float32))
        assert (named(terminated), named(truncated), named(infos["alive"])) == (ended, "", alive)
        if step == 5:
            break
        legal = {name: [[mask.index(1)]] for name in game.possible_agents if name[0] == alive}
        moves.append(mask.index(1))
        # waiting players get illegal actions, which are ignored
        actions = {name: np.array(legal.get(name, [[mask.index(0)]])) for name in game.possible_agents}
        taken = game.moved
        observations, rewards, terminated, truncated, infos = env.step(actions)
    assert taken == list(zip(["anna", "bert", "cleo", "anna", "cleo"], moves, strict=True))
    finals = {name: rows.tolist() for name, rows in infos["final_obs"].items()}
    assert finals == {"anna": [[3, 0, 0, 5, 0, 1, 1, 1]], "bert": [[0] * 8], "cleo": [[3, 2, 0, 5, 0, 1, 1, 1]]}
    assert infos["final_info"]["cleo"]["moves"].tolist() == [5]


def legal_actions(env: MultiAgentEnvWrapper, infos: dict[str, Any]) -> dict[str, Any]:
    """Return the first legal action of each player."""
    return {name: infos[name]["action_mask"].argmax(axis=1)[:, None] for name in env.possible_agents}


def test_a_player_who_is_out_while_another_moves():
    """Anna's move truncates Cleo; Bert is next, then Anna again."""
    env = wrapped(CountingGame(1, {"cleo": (1, "truncated")}, moves=4))
    _, infos = env.reset()
    flags, alive = [], [named(infos["alive"])]
    for _ in range(4):
        observations, _, terminated, truncated, infos = env.step(legal_actions(env, infos))
        flags.append((named(terminated), named(truncated), observations["cleo"][0, :4].tolist()))
        alive.append(named(infos["alive"]))
    assert flags == [
        ("", "c", [1, 2, 0, 1]),
        ("", "", [0, 0, 0, 0]),
        ("", "", [0, 0, 0, 0]),
        ("ab", "", [1, 2, 1, 0]),
    ]
    assert alive == ["a", "b", "a", "b", "a"]


def test_several_games_whose_players_take_turns_on_their_own():
    """Row 0 has five moves, row 1 six; Bert drops out after two moves in both."""
    env = wrapped(*build_game(2, 0))
    _, infos = env.reset()
    alive = []
    for _ in range(7):
        alive.append("".join(named(infos["alive"], row) for row in range(2)))
        infos = env.step(legal_actions(env, infos))[-1]
    assert alive == ["aa", "bb", "cc", "aa", "cc", "aa", "ba"]


class Leaving(CountingTeamEnv):
    """The scout leaves after step 2 without a flag; it may still have an observation at the end."""

    is_seen = False

    def step(self, actions):
        outputs = super().step(actions)
        if self.step_count == 2:
            self.agents.remove("scout")
            for output in outputs:
                del output["scout"]
        if self.step_count == 4 and self.is_seen:
            outputs[0]["scout"] = self.observation("scout")
        return outputs


@pytest.mark.parametrize("is_seen", [False, True])
def test_an_agent_that_leaves_without_a_flag_ends_when_its_copy_is_reset(is_seen):
    """It is truncated only if it has an observation: otherwise there is no value to bootstrap from."""
    env = Leaving(5, {"tank": (3, "terminated"), "medic": (4, "terminated")})
    env.is_seen = is_seen
    _, *steps = trace(wrapped(env), 5)
    flags = [tuple(map(named, (terminated, truncated))) for _, _, terminated, truncated, _, _ in steps]
    assert flags == [("", ""), ("", ""), ("t", ""), ("m", "s") if is_seen else ("sm", ""), ("", "")]
    assert steps[3][4]["final_obs"]["scout"][0].tolist() == ([5, 0, 0, 4] if is_seen else [0] * 4)
    assert [named(infos["alive"]) for *_, infos, _ in steps] == ["stm", "tm", "m", "stm", "stm"]
    assert [observations["scout"][0].tolist() for observations, *_ in steps[1:4]] == [[0] * 4, [0] * 4, [5, 0, 1, 0]]


class Listing(CountingTeamEnv):
    """Keeps listing ended agents, with their flags and arbitrary observations and rewards."""

    def step(self, actions):
        if self.step_count == 0:
            self.ended = [{}, {}]  # type: ignore[var-annotated]
        self.agents = [name for name in self.agents if not any(name in ended for ended in self.ended)]
        observations, rewards, *flags, infos = super().step(actions)
        for ended, flag in zip(self.ended, flags, strict=True):
            ended |= {name: True for name, is_set in flag.items() if is_set}
            flag |= ended
        self.agents = [name for name in TEAM if name in actions or name in flags[0] or name in flags[1]]
        everything = {name: self.observation(name) + 99 for name in self.agents}, dict.fromkeys(self.agents, 99.0)
        return everything[0] | observations, everything[1] | rewards, *flags, infos

    def state(self):
        ended = len({name for flags in self.ended for name in flags}) if self.step_count else 0
        return super().state() - np.array([0, 0, 0, ended], np.float32)


class Buffered(CountingTeamEnv):
    """Writes all observations into one buffer and returns views of it."""

    def observation(self, name):
        buffer = self.__dict__.setdefault("buffer", np.zeros(15, np.float32))
        start = {"scout": 0, "tank": 4, "medic": 9}[name]
        view = buffer[start : start + 4 + TEAM.index(name)]
        view[:] = super().observation(name)
        return view


@pytest.mark.parametrize("kind", [Listing, Buffered])
def test_other_habits_give_the_same(kind):
    given, expected = (
        trace(wrapped(*(cls(row, SCRIPTS[row]) for row in range(3))), 20) for cls in (kind, CountingTeamEnv)
    )
    assert_same(given, expected)
