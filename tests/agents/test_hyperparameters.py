"""Hyper-parameters that change during a run."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.support.parity import assert_same, ppo
from tests.support.ppo import ACTIONS, BOX, STEPS, make, record, same, seed_everything, state_of, transition
from tests.support.schedule import FRAMEWORKS, full_or_short
from workers.agents.independent import IndependentAgents
from workers.agents.ppo_hyperparameters import HYPERPARAMETERS
from workers.errors import AgentError, ConfigError, LockstepError

OTHER: dict[str, float] = {
    "learning_rate": 1e-4,
    "discount_factor": 0.5,
    "gae_lambda": 0.5,
    "grad_norm_clip": 0.01,
    "ratio_clip": 0.01,
    "value_clip": 0.01,
    "entropy_loss_scale": 0.5,
    "value_loss_scale": 3.0,
    "kl_threshold": 0.0,
}


def learn(agent: Any, steps: range) -> dict[str, Any]:
    """Return what the agent has learnt after transitions that depend only on the step."""
    seed_everything(agent.framework, steps.start)
    for step in steps:
        agent.pre_interaction(timestep=step, timesteps=100)
        record(agent, transition(agent, step))
    return state_of(agent)


SHORT = [("torch", name) for name in HYPERPARAMETERS]
SHORT += [("warp", "discount_factor"), ("warp", "grad_norm_clip"), ("warp", "kl_threshold")]


@pytest.mark.parametrize(("framework", "name"), full_or_short(list(product(FRAMEWORKS, HYPERPARAMETERS)), SHORT))
def test_an_agent_learns_as_one_that_was_built_with_the_new_value(framework: str, name: str):
    """Each value is changed after a rollout, when graphs are captured and functions compiled."""
    value: dict[str, Any] = {name: OTHER[name]}
    built, changed, unchanged = (make(framework, **cfg) for cfg in (value, {}, {}))
    learn(changed, range(2 * STEPS))
    for agent in (built, unchanged):
        agent.restore(changed.snapshot())
    built.learning_rate = value.get("learning_rate", changed.learning_rate)
    changed.set_hyperparameters(value)
    assert changed.hyperparameters()[name] == value[name]
    given, expected, other = (learn(agent, range(2 * STEPS, 4 * STEPS)) for agent in (changed, built, unchanged))
    assert_same(given, expected)
    assert not same(given, other)


def test_jax_compiles_for_the_new_values():
    """Its functions depend on nothing but their arguments and this specification."""
    changed = make("jax")
    before = changed._specification  # type: ignore[attr-defined]
    changed.set_hyperparameters({"learning_rate": 0.5})
    assert changed._specification is before  # type: ignore[attr-defined]
    changed.set_hyperparameters({"ratio_clip": 0.125})
    assert changed._specification is make("jax", ratio_clip=0.125)._specification is not before  # type: ignore[attr-defined]


def test_they_are_those_of_the_configuration_and_the_current_learning_rate():
    agent = make("torch", learning_rate=0.5, kl_threshold=None, value_clip=0)
    agent.learning_rate = 0.25
    values = agent.hyperparameters()
    assert list(values) == list(HYPERPARAMETERS)
    assert (values["learning_rate"], values["kl_threshold"], values["value_clip"]) == (0.25, 0.0, 0.0)
    assert all(type(value) is float for value in values.values())


def test_a_value_that_is_refused_changes_nothing():
    agent = make("torch")
    before = agent.hyperparameters(), agent.snapshot()
    refused: list[tuple[Any, str]] = [
        ({"learning_rate": 0.5, "rollouts": 9}, "'rollouts' cannot be changed during a run; expected one of"),
        ({"learning_rate": 0.5, "ratio_clip": "0.1"}, "'ratio_clip' is '0.1'; expected a number"),
        ({"learning_rate": 0.5, "ratio_clip": True}, "'ratio_clip' is True; expected a number"),
        ({"ratio_clip": 0.3, "learning_rate": 0.0}, r"PPOCfg.learning_rate is 0.0; expected a number > 0"),
        ({"ratio_clip": 0.3, "gae_lambda": float("nan")}, "PPOCfg.gae_lambda is nan"),
    ]
    for values, message in refused:
        with pytest.raises(LockstepError, match=message):
            agent.set_hyperparameters(values)
        assert_same((agent.hyperparameters(), agent.snapshot()), before)
    agent.set_hyperparameters({"ratio_clip": np.float64(0.25), "value_clip": 1})
    assert (agent.cfg.ratio_clip, agent.cfg.value_clip) == (0.25, 1.0)


def test_what_is_learnt_has_none_but_the_learning_rate():
    """The bytes of files of agents whose hyper-parameters never change do not depend on this."""
    agent = make("torch")
    before = agent.state_dict()
    agent.set_hyperparameters({**OTHER, "learning_rate": before["learning_rate"]})
    assert_same(state_of(agent), state_of(make("torch")))
    agent.set_hyperparameters({"learning_rate": 0.125})
    assert agent.state_dict()["learning_rate"] == 0.125


def test_a_snapshot_holds_what_was_changed(framework: str):
    agent, other = (make(framework, discount_factor=0.75) for _ in range(2))
    unchanged = agent.snapshot()
    assert "hyperparameters" not in unchanged  # as in files of earlier versions
    agent.set_hyperparameters({"discount_factor": 0.5, "value_clip": 0.25})
    agent.set_hyperparameters({"discount_factor": 0.75})
    snapshot = agent.snapshot()
    assert snapshot["hyperparameters"] == {"value_clip": 0.25}
    other.set_hyperparameters({"ratio_clip": 0.0625})
    other.restore(snapshot)
    assert other.hyperparameters() == agent.hyperparameters()
    assert_same(other.snapshot(), snapshot)
    other.restore(unchanged)
    assert_same(other.snapshot(), unchanged)
    assert other.hyperparameters() == make(framework, discount_factor=0.75).hyperparameters()


def test_a_copy_goes_on_with_them(framework: str):
    agent = make(framework)
    agent.set_hyperparameters({"discount_factor": 0.5, "kl_threshold": 0.25})
    for copied in (pickle.loads(pickle.dumps(agent)), copy.deepcopy(agent)):
        assert copied.hyperparameters() == agent.hyperparameters()
        assert_same(copied.snapshot(), agent.snapshot())


@pytest.mark.parametrize("given", [{"rollouts": 3.0}, {"ratio_clip": -1.0}, {"ratio_clip": "x"}, 5, ["ratio_clip"]])
def test_a_damaged_snapshot_is_refused(given: Any):
    agent = make("torch")
    agent.set_hyperparameters({"ratio_clip": 0.25})
    before = agent.snapshot()
    with pytest.raises(AgentError, match="the snapshot does not fit this agent"):
        agent.restore({**before, "hyperparameters": given})
    assert_same(agent.snapshot(), before)


def team(make_one: Any = None) -> IndependentAgents:
    names = ["a", "b", "c"]
    seed_everything("torch", 0)
    return IndependentAgents(
        make_one or partial(ppo("torch"), cfg={"rollouts": STEPS, "mini_batches": 1, "hidden_sizes": (8,)}),
        possible_agents=names,
        observation_spaces=dict.fromkeys(names, BOX),
        action_spaces=dict.fromkeys(names, ACTIONS["discrete"]),
        num_envs=2,
        groups={"both": ["a", "b"]},
    )


def test_a_team_has_those_of_every_group():
    agents = team()
    assert list(agents.hyperparameters()) == [f"{group}/{name}" for group in ("both", "c") for name in HYPERPARAMETERS]
    agents.set_hyperparameters({"both/learning_rate": 0.5, "c/ratio_clip": 0.125})
    values = agents.hyperparameters()
    assert (values["both/learning_rate"], values["c/ratio_clip"]) == (0.5, 0.125)
    assert (values["c/learning_rate"], values["both/ratio_clip"]) == (3e-4, 0.2)
    other = team()
    other.restore(agents.snapshot())
    assert other.hyperparameters() == values


def test_a_team_changes_all_or_none():
    agents = team()
    before = agents.hyperparameters(), agents.snapshot()
    for values, message in (
        ({"both/ratio_clip": 0.5, "c/ratio_clip": -1.0}, "'c': PPOCfg.ratio_clip is -1.0"),
        ({"both/ratio_clip": 0.5, "ratio_clip": 0.5}, "'ratio_clip' cannot be changed during a run; expected one of"),
        ({"both/ratio_clip": 0.5, "d/ratio_clip": 0.5}, "'d/ratio_clip' cannot be changed during a run"),
    ):
        with pytest.raises(AgentError, match=message):
            agents.set_hyperparameters(values)
        assert_same((agents.hyperparameters(), agents.snapshot()), before)


def test_a_team_of_agents_without_any():
    class Plain:
        framework = "torch"

        def __getattr__(self, name: str) -> Any:
            if "hyperparameters" in name or name.startswith("__"):
                raise AttributeError(name)
            return lambda *_, **__: None

    agents = team(lambda **_: Plain())
    with pytest.raises(AgentError, match=r"Plain of the group 'both' lacks hyperparameters, set_hyperparameters"):
        agents.hyperparameters()
    with pytest.raises(AgentError, match=r"Plain of the group 'both' lacks hyperparameters, set_hyperparameters"):
        agents.set_hyperparameters({})


def test_configuration_errors_keep_their_kind():
    with pytest.raises(ConfigError):
        make("torch").set_hyperparameters({"gae_lambda": 2.0})
