"""What runs as CUDA graphs on a GPU: no host values, no copies to the host, and the same memory each time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from tests.support.capture import CaptureError, CapturingWorkspace
from tests.support.parity import assert_same
from tests.support.processes import python
from workers.agents.torch import PPO
from workers.agents.torch import ppo as module
from workers.errors import AgentError

ENVS, ROLLOUTS = 6, 4
BOX = Box(-np.inf, np.inf, (5,), np.float32)
CASES: dict[str, dict[str, Any]] = {
    "gaussian": {"action_space": Box(-1, 1, (2,), np.float32), "cfg": {"kl_threshold": 0.01, "value_clip": 0.2}},
    "unbounded": {"action_space": Box(-1, 1, (2,), np.float32), "cfg": {"action_bounds": "none", "grad_norm_clip": 0}},
    "categorical": {"action_space": Discrete(3), "state_space": BOX, "cfg": {"entropy_loss_scale": 0.01}},
    "masked": {"action_space": MultiDiscrete([3, 2]), "cfg": {"mini_batches": 5, "kl_threshold": 0.01}},
}


def build(case: str, *, captured: bool = False) -> PPO:
    torch.manual_seed(1)
    given = CASES[case]
    cfg = {"rollouts": ROLLOUTS, "mini_batches": 2, "learning_epochs": 2, "hidden_sizes": (8,)} | given["cfg"]
    agent = PPO(observation_space=BOX, num_envs=ENVS, **(given | {"cfg": cfg}))
    if captured:
        agent._workspace = CapturingWorkspace(agent.device)
    agent.enable_training_mode(True)
    return agent


def iterate(agent: PPO, case: str, count: int, start: int = 0) -> list[Any]:
    """Run some iterations; return the actions."""
    acted = []
    for timestep in range(start, start + count):
        rng = np.random.default_rng(timestep)

        def rows(width: int, rng: np.random.Generator = rng) -> torch.Tensor:
            return torch.tensor(rng.normal(size=(ENVS, width)), dtype=torch.float32)

        states = rows(5) if agent.state_space is not None else None
        infos = {"action_mask": rng.random((ENVS, 5)) < 0.7} if case == "masked" and timestep else {}
        clock: Any = {"timestep": timestep, "timesteps": 99}
        observations = rows(5)
        actions, _ = agent.act(observations, states, infos=infos, **clock)
        agent.record_transition(
            observations=observations,
            states=states,
            actions=actions,
            rewards=rows(1),
            next_observations=rows(5),
            next_states=rows(5),
            terminated=rows(1) > 1.5,
            truncated=rows(1) > 1.0,
            infos={},
            **clock,
        )
        agent.post_interaction(**clock)
        acted.append(actions.numpy())
    return acted


@pytest.mark.parametrize("case", CASES)
def test_functions_of_static_tensors(case):
    plain, captured = build(case), build(case, captured=True)
    torch.manual_seed(2)
    expected = iterate(plain, case, 3 * ROLLOUTS + 1)
    torch.manual_seed(2)
    assert_same(iterate(captured, case, 3 * ROLLOUTS + 1), expected)
    assert_same(captured.snapshot(), plain.snapshot())
    runs = captured._workspace.runs  # type: ignore[attr-defined]
    assert runs == {
        "_act_again": 3 * ROLLOUTS + 1,
        "_end_transition": 3 * ROLLOUTS + 1,
        "_prepare_update": 3,
        "_run_epochs": 3,
    }


@pytest.mark.parametrize("case", ["gaussian", "masked"])
def test_memory_stays_in_place_after_a_restore(case):
    agent = build(case, captured=True)
    iterate(agent, case, ROLLOUTS + 1)
    state, learned = agent.snapshot(), agent.state_dict()
    iterate(agent, case, ROLLOUTS, ROLLOUTS + 1)
    agent.restore(state)
    iterate(agent, case, ROLLOUTS, ROLLOUTS + 1)
    agent.load_state_dict(learned)
    iterate(agent, case, ROLLOUTS + 1)


def test_other_hyperparameters_are_captured_again():
    values = {"discount_factor": 0.5, "ratio_clip": 0.1, "entropy_loss_scale": 0.1, "kl_threshold": 0.0}
    states = []
    for captured in (True, False):
        agent = build("gaussian", captured=captured)
        iterate(agent, "gaussian", 3 * ROLLOUTS + 1)
        agent.set_hyperparameters(values)
        iterate(agent, "gaussian", 3 * ROLLOUTS, 3 * ROLLOUTS + 1)
        states.append(agent.snapshot())
    assert_same(states[0], states[1])
    agent = build("gaussian", captured=True)
    iterate(agent, "gaussian", 2 * ROLLOUTS)
    agent.cfg.entropy_loss_scale = 0.1  # of other kernels than those in the graph
    with pytest.raises(CaptureError):
        iterate(agent, "gaussian", ROLLOUTS, 2 * ROLLOUTS)


def test_next_values_are_the_same_with_and_without_a_look_at_the_mask(monkeypatch):
    """On a CPU, steps without truncations skip the critic; on a GPU, its values are masked."""
    agents = [build("gaussian"), build("gaussian")]
    acted = []
    for agent in agents:
        torch.manual_seed(3)
        acted.append(iterate(agent, "gaussian", 2 * ROLLOUTS + 1))
        monkeypatch.setattr(module, "_may_have_any", lambda mask: True)
    assert_same(acted[0], acted[1])
    assert_same(agents[0].snapshot(), agents[1].snapshot())


def test_evaluation_with_other_numbers_of_rows_keeps_no_memory():
    agent = build("gaussian", captured=True)
    agent.enable_training_mode(False)
    clock: Any = {"timestep": 0, "timesteps": 9}
    for rows in (1, 2, ENVS, 50):
        actions, outputs = agent.act(torch.zeros(rows, 5), None, **clock)
        assert len(actions) == len(outputs["mean_actions"]) == rows
    assert agent._workspace.runs == {"_act_again": 1}  # type: ignore[attr-defined]
    assert len(agent._workspace._buffers) == 3


def test_an_agent_that_acted_in_inference_mode_learns_afterwards():
    agent = build("gaussian", captured=True)
    with torch.inference_mode():
        iterate(agent, "gaussian", 1)
    agent._recorded = 0
    iterate(agent, "gaussian", ROLLOUTS + 1)


def test_the_default_device_is_torchs():
    # the only other device that is always there, which agents cannot use
    with torch.device("meta"), pytest.raises(AgentError, match="tensors on it have no values"):
        PPO(observation_space=BOX, action_space=Discrete(3), num_envs=2)


VALUES = torch.arange(4.0)
PLANTED = {
    "a number of the host": lambda: float(VALUES.sum()),
    "a branch": lambda: bool(VALUES.sum() > 0),
    "a data-dependent shape": lambda: VALUES.nonzero(),
    "a boolean index": lambda: VALUES[VALUES > 1],
    "a write by a boolean index": lambda: VALUES.clone().index_put_((VALUES > 1,), VALUES[0]),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_a_graph_cannot_repeat_is_refused(planted):
    workspace = CapturingWorkspace(torch.device("cpu"))
    with pytest.raises(CaptureError, match="values of the device"):
        workspace.run(PLANTED[planted])


def test_memory_that_changes_is_refused():
    workspace = CapturingWorkspace(torch.device("cpu"))
    kept = [torch.ones(3), torch.ones(3)]

    def function() -> torch.Tensor:
        return kept[0] + 1

    for _ in range(3):
        workspace.run(function)
    kept.pop(0)
    with pytest.raises(CaptureError, match="other memory"):
        workspace.run(function)


def test_on_a_device_without_values():
    """Torch's fake tensors have no values: whoever reads one fails. A whole trainer reads once in each update."""
    done = python("-m", "tests.support.fake_gpu")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["planted"] == ["scalar", "nonzero", "boolean index", "host copy", "mixed devices"]
    assert [told[case] for case in ("gaussian", "categorical", "two agents")] == [2, 2, 4]  # one for each update
