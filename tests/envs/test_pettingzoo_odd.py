"""Odd PettingZoo environments: copies that share what they return, and outputs that are missing or of another kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium.spaces import Dict as DictSpace
from gymnasium.spaces import Discrete

from tests.support.agents import RecordingTeam, copied
from tests.support.multi_agent_envs import SCRIPTS, TEAM, CountingGame, CountingTeamEnv
from tests.support.odd_infos import OddTeamEnv
from tests.support.parity import CFG, assert_same, copied_outputs, step_trainer
from workers.envs import EnvFactory
from workers.envs.pettingzoo import PettingZooWrapper
from workers.errors import EnvError, WorkerError
from workers.frameworks import load_framework


def actions(env: PettingZooWrapper) -> dict[str, Any]:
    """Return the same legal action for every row."""
    convert = load_framework(env.framework).from_numpy
    spaces = env.action_spaces
    return {name: convert(np.full((env.num_envs, len(np.ravel(spaces[name].sample()))), 1.0)) for name in spaces}


def trace(env: PettingZooWrapper, steps: int) -> list[Any]:
    """Return copies of the outputs of the reset and the steps, with the states."""
    outputs = [copied_outputs((*env.reset(), env.state()))]
    return outputs + [copied_outputs((*env.step(actions(env)), env.state())) for _ in range(steps)]


def spoil(value: Any) -> None:
    """Overwrite arrays and empty containers, also nested ones."""
    if isinstance(value, (dict, list, tuple)):
        for member in value.values() if isinstance(value, dict) else value:
            spoil(member)
    if isinstance(value, (dict, list)):
        value.clear()
    if isinstance(value, np.ndarray):
        value[...] = 77


class Spoiling(OddTeamEnv):
    """Whenever a copy is called, it overwrites everything that any copy has returned before."""

    returned: ClassVar[list[Any]] = []

    def give(self, call: Callable[[], Any]) -> Any:
        spoil(self.returned)
        self.returned.append(call())
        return self.returned[-1]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.give(super().reset)

    def step(self, actions: Any) -> Any:
        return self.give(partial(super().step, actions))

    def state(self) -> Any:
        return self.give(super().state)


def test_copies_may_return_the_same_arrays_and_dictionaries(framework: str):
    """Observations, states, infos, and the final ones."""
    given, expected = (
        trace(PettingZooWrapper([kind(row, SCRIPTS[row]) for row in range(3)], framework=framework), 7)
        for kind in (Spoiling, OddTeamEnv)
    )
    assert sum("final_state" in output[-2] for output in expected) == 3
    assert_same(given, expected)


class Categories(CountingTeamEnv):
    """All agents observe ``{"x": 5 + row + step}``; the medic comes in step 1 if the row is odd."""

    def __init__(self, row: int) -> None:
        super().__init__(row, {}, arrival=row % 2)
        self._observation_spaces = {name: DictSpace(x=Discrete(3, start=5)) for name in TEAM}  # type: ignore[misc]

    def observation(self, name: str) -> Any:
        return {"x": 5 + self.row + self.step_count}


def test_rows_without_an_observation_are_zero_whatever_the_space(framework: str):
    env = PettingZooWrapper([Categories(0), Categories(1)], framework=framework)
    observations = env.reset()[0]
    assert copied(observations["medic"]).tolist() == [[1, 0, 0], [0, 0, 0]]
    assert copied(observations["tank"]).tolist() == [[1, 0, 0], [0, 1, 0]]
    env.step(actions(env))
    with pytest.raises(EnvError, match=r"of 'scout', in \['x'\], is 8; expected one in Discrete") as caught:
        env.step(actions(env))
    assert caught.value.__notes__ == ["in copy 1 of counting_team_v0"]


class Edited(CountingTeamEnv):
    """Applies a function to the outputs of its second step, and to those of every reset if asked to."""

    def __init__(self, row: int, edit: Callable[[list[Any]], object], *, at_reset: bool = False) -> None:
        super().__init__(row, {})
        self.edit, self.at_reset = edit, at_reset

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        outputs = list(super().reset())
        if self.at_reset:
            self.edit(outputs)
        return tuple(outputs)

    def step(self, actions: Any) -> Any:
        outputs = list(super().step(actions))
        actions.clear()  # the wrapper must not read it afterwards
        if self.step_count == 2:
            self.edit(outputs)
        return tuple(outputs)


OUTPUTS = ("observations", "rewards", "terminated", "truncated", "infos")


def put(what: str, value: Any) -> Callable[[list[Any]], object]:
    """Return an edit that replaces an output."""
    return lambda outputs: outputs.__setitem__(OUTPUTS.index(what), value)


def put_tank(what: str, value: Any) -> Callable[[list[Any]], object]:
    """Return an edit that replaces the tank's entry of an output."""
    return lambda outputs: outputs[OUTPUTS.index(what)].update(tank=value)


def drop_tank(*outputs_without: str) -> Callable[[list[Any]], object]:
    """Return an edit that removes the tank from some outputs."""
    return lambda outputs: [outputs[OUTPUTS.index(what)].pop("tank") for what in outputs_without]


NEEDS = "because each agent that acts needs a reward and both flags"
ODD: dict[str, tuple[Callable[[list[Any]], object], str]] = {
    "no observations": (put("observations", None), "returned None as observations; expected a dictionary by agent"),
    "a list of observations": (put("observations", []), "returned a list as observations; expected a dictionary"),
    "a number as rewards": (put("rewards", 1.0), "returned a float as rewards; expected a dictionary by agent"),
    "an array of rewards": (put("rewards", np.ones(3)), "returned a numpy.ndarray as rewards; expected a dictionary"),
    "one flag for all": (put("terminated", False), "returned a bool as terminated; expected a dictionary by agent"),
    "no flags": (put("truncated", None), "returned None as truncated; expected a dictionary by agent"),
    "empty rewards": (put("rewards", {}), rf"returned rewards for \[\]; expected also that of 'scout', {NEEDS}"),
    "empty flags": (put("truncated", {}), rf"returned truncated for \[\]; expected also that of 'scout', {NEEDS}"),
    **{
        f"no {what}": (
            drop_tank(what),
            rf"returned {what} for \['scout', 'medic'\]; expected also that of 'tank', {NEEDS}",
        )
        for what in OUTPUTS[1:4]
    },
    "only an observation": (drop_tank(*OUTPUTS[1:4]), "returned rewards for .*; expected also that of 'tank'"),
    "listed without outputs": (drop_tank(*OUTPUTS[:4]), "returned rewards for .*; expected also that of 'tank'"),
    "None as a reward": (put_tank("rewards", None), "the reward of 'tank' is None; expected a number"),
    **{
        f"{what} is {kind}": (put_tank(what, value), f"{what} of 'tank' is {told}; expected True or False")
        for what in OUTPUTS[2:4]
        for kind, value, told in (
            ("None", None, "None"),
            ("a text", "", "'' of type str"),
            ("a list", [], r"'\[\]' of type list"),
            ("zero as a float", 0.0, "'0.0' of type float"),
            ("two zeros", np.zeros(2, bool), r"an array of shape \(2,\) and dtype bool"),
            ("two flags", np.array([True, False]), r"an array of shape \(2,\) and dtype bool"),
        )
    },
    **{
        f"{what} of nobody": (
            lambda outputs, index=index: outputs[index].update(__all__=False),  # type: ignore[misc]
            rf"returned {what} for \['__all__'\]; expected only agents in its possible_agents",
        )
        for index, what in enumerate(OUTPUTS[:4])
    },
    **{
        f"infos with {key}": (
            lambda outputs, key=key: outputs[4].update({key: True}),  # type: ignore[misc]
            f"the infos have '{key}', which the wrapper adds itself; rename it",
        )
        for key in ("alive", "_alive", "final_obs", "_final_obs", "_final_state", "_final_info", "_tank")
    },
}


@pytest.mark.parametrize("name", ODD)
def test_odd_outputs_of_a_step_are_refused(name: str):
    edit, message = ODD[name]
    env = PettingZooWrapper([CountingTeamEnv(0, {}), Edited(1, edit)], framework="numpy")
    env.reset()
    env.step(actions(env))
    with pytest.raises(EnvError, match=message) as caught:
        env.step(actions(env))
    assert caught.value.__notes__ == ["in copy 1 of counting_team_v0"]


@pytest.mark.parametrize("name", ["no observations", "a list of observations"])
def test_odd_outputs_of_a_reset_are_refused(name: str):
    edit, message = ODD[name]
    env = PettingZooWrapper([CountingTeamEnv(0), Edited(1, edit, at_reset=True)], framework="numpy")
    with pytest.raises(EnvError, match=message) as caught:
        env.reset()
    assert caught.value.__notes__ == ["in copy 1 of counting_team_v0"]


@pytest.mark.parametrize("missing", [OUTPUTS[2:4], OUTPUTS[1:4]])
def test_an_agent_that_leaves_is_in_all_outputs_or_in_none(missing: tuple[str, ...]):
    def leave(outputs: list[Any]) -> None:
        env.agents.remove("tank")
        drop_tank(*missing)(outputs)

    env = Edited(0, leave)
    team = PettingZooWrapper([env], framework="numpy")
    team.reset()
    team.step(actions(team))
    with pytest.raises(EnvError, match=f"returned {missing[0]} for .*; expected also that of 'tank', {NEEDS}"):
        team.step(actions(team))


def test_a_trainer_names_the_place(framework: str):
    def build(num_envs: int, first_env: int) -> list[Any]:
        edit, _ = ODD["no rewards"]
        return [
            (Edited(row, edit) if row == 2 else CountingTeamEnv(row)) for row in range(first_env, first_env + num_envs)
        ]

    agents = [partial(RecordingTeam, CountingTeamEnv(0)._action_spaces)] * 2
    env = EnvFactory(build, num_envs=4)
    with step_trainer(framework)(env=env, agents=agents, cfg=CFG) as trainer:
        trainer.train()
        with pytest.raises(WorkerError) as caught:
            trainer.train()
    (failure,) = caught.value.failures
    assert (failure.rows, failure.timestep, failure.phase) == ((2, 3), 2, "step")
    assert "expected also that of 'tank'" in failure.message


class Waiting(CountingGame):
    """Has no rewards and flags of players who wait."""

    def step(self, action: Any) -> None:
        mover = self.agent_selection
        super().step(action)
        if self.agents and not any(self.terminations.values()):
            self.rewards = {mover: self.rewards[mover]}


def test_agents_that_do_not_act_need_no_reward():
    env = PettingZooWrapper([Waiting(0)], framework="numpy")
    _, infos = env.reset()
    legal = {name: infos[name]["action_mask"].argmax(axis=1)[:, None] for name in env.possible_agents}
    rewards = env.step(legal)[1]
    assert [rewards[name].item() for name in env.possible_agents] == [pytest.approx(0.1), 0, 0]


def test_a_reward_that_float32_cannot_hold_is_infinite(framework: str):
    env = PettingZooWrapper([Edited(0, put_tank("rewards", 1e300))], framework=framework)
    env.reset()
    env.step(actions(env))
    assert copied(env.step(actions(env))[1]["tank"]).tolist() == [[np.inf]]


class Failing(CountingTeamEnv):
    render_mode = "rgb_array"  # type: ignore[assignment]

    def state(self) -> Any:
        return self.fail()

    def render(self) -> Any:
        return self.fail()

    def fail(self) -> Any:
        if self.row:
            raise OSError("no graphics")
        return np.zeros(4, np.float32)


@pytest.mark.parametrize("method", ["state", "render"])
def test_other_calls_that_fail_name_the_copy(method: str):
    env = PettingZooWrapper([Failing(0), Failing(1)], framework="numpy")
    env.reset()
    with pytest.raises(OSError, match="no graphics") as caught:
        getattr(env, method)()
    assert caught.value.__notes__ == ["in copy 1 of counting_team_v0"]
