"""The PPO agent for torch as a trainer sees it."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from workers.agents.torch import PPO
from workers.errors import AgentError

STEPS, ENVS, WIDTH = 4, 3, 5
BOX = gymnasium.spaces.Box(-np.inf, np.inf, (WIDTH,))
STATES = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
ACTIONS = {"discrete": gymnasium.spaces.Discrete(3, start=2), "gaussian": gymnasium.spaces.Box(-1, 1, (2,))}
CLOCK = {"timestep": 0, "timesteps": 100}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(actions: Any = "gaussian", *, asymmetric: bool = False, num_envs: int = ENVS, **cfg: Any) -> PPO:
    defaults = {"rollouts": STEPS, "mini_batches": 2, "learning_epochs": 2, "hidden_sizes": (8,), "kl_threshold": 0.01}
    agent = PPO(
        observation_space=BOX,
        action_space=ACTIONS[actions] if isinstance(actions, str) else actions,
        state_space=STATES if asymmetric else None,
        num_envs=num_envs,
        cfg=defaults | cfg,
    )
    agent.init()
    agent.enable_training_mode(True)
    return agent


def transition(agent: PPO, step: int, **changes: Any) -> dict[str, Any]:
    """Arrays that depend on the step only, so that two agents can be given the same."""
    generator = torch.Generator().manual_seed(step)

    def draw(width: int) -> torch.Tensor:
        return 1.0 + 2.0 * torch.randn(agent.num_envs, width, generator=generator)

    states, next_states = (None, None) if agent.state_space is None else (draw(2), draw(2))
    return {
        "observations": draw(WIDTH),
        "states": states,
        "rewards": draw(1),
        "next_observations": draw(WIDTH),
        "next_states": next_states,
        "terminated": draw(1) > 3,
        "truncated": draw(1) > 3,
        "infos": {},
    } | changes


def run(agent: PPO, steps: range, **changes: Any) -> list[torch.Tensor]:
    """Some timesteps; the actions are returned."""
    taken = []
    for step in steps:
        given = transition(agent, step, **changes)
        agent.pre_interaction(**CLOCK)
        actions, outputs = agent.act(given["observations"], given["states"], **CLOCK)
        taken += [actions, outputs["mean_actions"]]
        agent.record_transition(actions=actions, **given, **CLOCK)
        agent.post_interaction(**CLOCK)
    return taken


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    return [leaf for item in tree for leaf in leaves(item)] if isinstance(tree, list) else [tree]


def same(first: Any, second: Any) -> bool:
    """Whether two state dicts are equal bit for bit."""
    pairs = zip(leaves(first), leaves(second), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def pop_means(agent: PPO) -> dict[str, float]:
    return agent.tracked.drain()


def test_the_neutral_part_imports_no_framework():
    code = "import sys, workers.agents, workers.agents.ppo; print({'torch', 'jax', 'warp', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("actions", "width", "dtype"), [("discrete", 1, torch.int64), ("gaussian", 2, torch.float32)])
def test_actions(actions, width, dtype):
    agent = make(actions)
    observations = torch.randn(ENVS, WIDTH)
    first, outputs = agent.act(observations, None, **CLOCK)
    kept = first.clone(), outputs["mean_actions"].clone()
    second, others = agent.act(observations, None, **CLOCK)
    for array in (first, second, outputs["mean_actions"], others["mean_actions"]):
        assert array.shape == (ENVS, width)
        assert array.dtype == dtype
    assert torch.equal(first, kept[0])  # fresh: what was returned is not overwritten
    assert torch.equal(outputs["mean_actions"], kept[1])
    assert torch.equal(others["mean_actions"], kept[1])


def test_discrete_actions_include_the_start():
    agent = make("discrete", num_envs=200)
    actions, outputs = agent.act(torch.randn(200, WIDTH), None, **CLOCK)
    assert set(actions.view(-1).tolist()) == {2, 3, 4}
    assert set(outputs["mean_actions"].view(-1).tolist()) <= {2, 3, 4}


def test_mean_actions_are_mean_and_argmax():
    observations = torch.randn(ENVS, WIDTH)
    for actions in ACTIONS:
        agent = make(actions, hidden_sizes=(), normalize_observations=False)
        values = agent.state_dict()["models"]
        head = observations @ values["policy.network.0.weight"].T + values["policy.network.0.bias"]
        expected = head if actions == "gaussian" else head.argmax(1, keepdim=True) + 2
        torch.testing.assert_close(agent.act(observations, None, **CLOCK)[1]["mean_actions"], expected)


def test_one_draw_per_act():
    agent = make()
    torch.manual_seed(3)
    actions, outputs = agent.act(torch.randn(ENVS, WIDTH), None, **CLOCK)
    torch.manual_seed(3)
    torch.randn(ENVS, WIDTH)
    torch.testing.assert_close(actions, outputs["mean_actions"] + torch.randn(ENVS, 2))  # initial std is 1
    after = torch.rand(1)
    torch.manual_seed(3)
    agent.act(torch.randn(ENVS, WIDTH), None, **CLOCK)
    assert torch.equal(torch.rand(1), after)


def test_memory_layout_and_dtype_of_inputs_do_not_matter():
    agent = PPO(
        observation_space=gymnasium.spaces.Box(-1, 1, (17,)), action_space=ACTIONS["gaussian"], num_envs=ENVS, cfg={}
    )
    base = torch.randn(ENVS + 40, 17)
    for start in range(40):
        view = base[start : start + ENVS]
        variants = (view, view.clone(), view.double(), view.t().contiguous().t(), view.clone().requires_grad_())
        means = [agent.act(variant, None, **CLOCK)[1]["mean_actions"] for variant in variants]
        assert all(torch.equal(mean, means[0]) and not mean.requires_grad for mean in means)


@pytest.mark.parametrize("actions", list(ACTIONS))
@pytest.mark.parametrize("asymmetric", [False, True])
def test_no_given_array_is_changed_or_kept(actions, asymmetric):
    agent = make(actions, asymmetric=asymmetric)
    for step in range(2 * STEPS):
        given = transition(agent, step)
        given["actions"], _ = agent.act(given["observations"], given["states"], **CLOCK)
        before = copy.deepcopy(given)
        agent.record_transition(**given, **CLOCK)
        rollout = copy.deepcopy(agent._rollout)
        for name, value in given.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, before[name]), name
                value.zero_()
        assert same(rollout, agent._rollout)
        agent.post_interaction(**CLOCK)


def test_truncation_bootstraps_from_the_final_observation():
    agent = make(discount_factor=0.9, normalize_values=True)
    run(agent, range(STEPS))  # so that the statistics are not trivial
    flags = {
        "terminated": torch.tensor([[False], [False], [True]]),
        "truncated": torch.tensor([[True], [False], [True]]),
    }
    given = transition(agent, 99, **flags)
    actions, _ = agent.act(given["observations"], None, **CLOCK)
    agent.record_transition(actions=actions, **given, **CLOCK)
    values = agent.state_dict()["models"]
    (mean, variance), (return_mean, return_variance) = (
        (values[f"normalizers.{name}.mean"], values[f"normalizers.{name}.variance"])
        for name in ("observations", "returns")
    )
    x = ((given["next_observations"].double() - mean) / (variance + 1e-8).sqrt()).clamp(-10, 10).float()
    x = torch.tanh(x @ values["value.0.weight"].T + values["value.0.bias"])
    x = x @ values["value.2.weight"].T + values["value.2.bias"]
    x = x * return_variance.sqrt() + return_mean
    expected = given["rewards"] + 0.9 * x.float() * torch.tensor([[1.0], [0.0], [0.0]])  # terminated: no bootstrap
    torch.testing.assert_close(agent._rollout["rewards"][0], expected)
    assert not torch.allclose(expected, given["rewards"])
    assert agent._rollout["ended"][0].tolist() == [[True], [False], [True]]


def test_evaluation_within_a_rollout_cuts_it_like_a_truncation():
    agent = make()
    none = {name: torch.zeros(ENVS, 1, dtype=torch.bool) for name in ("terminated", "truncated")}
    run(agent, range(1), **none)
    rewards = agent._rollout["rewards"][0].clone()
    agent.enable_training_mode(False)
    run(agent, range(50, 52), **none)
    assert agent._rollout["ended"][0].all()
    cut = agent._rollout["rewards"][0].clone()
    assert not torch.equal(cut, rewards)
    agent.enable_training_mode(True)
    run(agent, range(1, 2), **none)
    assert torch.equal(agent._rollout["rewards"][0], cut)
    assert not agent._rollout["ended"][1].any()


def test_a_copy_knows_what_followed_its_last_transition():
    agent = make()
    run(agent, range(1))
    other = pickle.loads(pickle.dumps(agent))
    before = agent._rollout["rewards"][0].clone()
    for each in (agent, other):
        each.init()
    assert not torch.equal(agent._rollout["rewards"][0], before)
    assert torch.equal(agent._rollout["rewards"][0], other._rollout["rewards"][0])


def test_evaluation_learns_nothing():
    agent = make()
    run(agent, range(STEPS))
    state = agent.state_dict()
    agent.enable_training_mode(False)
    agent.tracked.drain()
    run(agent, range(100, 100 + 3 * STEPS))
    assert same(state, agent.state_dict())
    assert agent._recorded == 0
    assert agent.tracked.drain() == {}
    agent.enable_training_mode(True)
    run(agent, range(STEPS))
    assert not same(state, agent.state_dict())


def test_learns_after_every_rollout_and_not_before():
    agent = make()
    for rollout in range(3):
        state = agent.state_dict()
        run(agent, range(STEPS * rollout, STEPS * rollout + STEPS - 1))
        assert same(state, agent.state_dict())
        agent.init()  # by another trainer: nothing is lost
        run(agent, range(STEPS * rollout + STEPS - 1, STEPS * rollout + STEPS))
        assert not same(state, agent.state_dict())
        tracked = pop_means(agent)
        assert tracked["Learning / Learning rate"] == agent.learning_rate
        assert {"Loss / Policy loss", "Loss / Value loss", "Policy / KL divergence"} <= set(tracked)
        assert all(np.isfinite(value) for value in tracked.values())


def test_learns_the_same_without_autograd_around_it():
    states = []
    for context in (torch.no_grad(), torch.enable_grad()):
        torch.manual_seed(0)
        agent = make()
        with context:
            run(agent, range(STEPS))
        states.append(agent.state_dict())
    assert same(*states)


def test_statistics_are_frozen_in_a_rollout_and_then_those_of_its_raw_data():
    agent = make()
    seen = []
    for rollout in range(2):
        for step in range(STEPS * rollout, STEPS * rollout + STEPS):
            assert agent.state_dict()["models"]["normalizers.observations.count"] == rollout * STEPS * ENVS
            run(agent, range(step, step + 1))
            seen.append(transition(agent, step)["observations"])
    values, everything = agent.state_dict()["models"], torch.cat(seen).double()
    assert values["normalizers.observations.count"] == len(everything)
    torch.testing.assert_close(values["normalizers.observations.mean"], everything.mean(0))
    torch.testing.assert_close(values["normalizers.observations.variance"], everything.var(0, correction=0))


@pytest.mark.parametrize("actions", list(ACTIONS))
def test_first_ratio_is_one(actions):
    for epochs, moved in ((1, False), (2, True)):
        agent = make(actions, learning_epochs=epochs, mini_batches=1, learning_rate=0.01)
        for rollout in range(3):  # from the second one on with statistics that are not trivial
            run(agent, range(STEPS * rollout, STEPS * rollout + STEPS))
            kl = pop_means(agent)["Policy / KL divergence"]
            assert (kl > 1e-6) == moved
            assert moved or abs(kl) < 1e-10


def test_learning_rate_follows_the_kl_divergence():
    rates = {}
    for name, target in (("high", 10.0), ("low", 1e-9), ("off", 0.0), ("none", None)):
        agent = make(learning_rate=1e-3, kl_threshold=target, learning_epochs=3)
        run(agent, range(STEPS))
        rates[name] = agent.learning_rate
    assert rates["high"] == pytest.approx(1e-3 * 1.5**3)
    assert rates["low"] == pytest.approx(1e-3 / 1.5**3)
    assert rates["off"] == rates["none"] == 1e-3


@pytest.mark.parametrize("mini_batches", [1, 5, 7, 12])
def test_mini_batches_cover_all_samples(mini_batches, monkeypatch):
    agent = make(mini_batches=mini_batches, learning_epochs=1, normalize_observations=False)
    drawn, loss = [], agent._loss

    def spy(batch: dict[str, torch.Tensor]) -> Any:
        drawn.append(torch.cat([batch["observations"], batch["actions"]], 1))
        return loss(batch)

    monkeypatch.setattr(agent, "_loss", spy)
    run(agent, range(STEPS))
    recorded = torch.cat([agent._rollout["observations"], agent._rollout["actions"]], 2).view(STEPS * ENVS, -1)
    assert [len(batch) for batch in drawn] == [len(part) for part in np.array_split(range(12), mini_batches)]
    assert not torch.equal(torch.cat(drawn), recorded)
    assert sorted(torch.cat(drawn).tolist()) == sorted(recorded.tolist())


@pytest.mark.parametrize("duplicate", [lambda agent: pickle.loads(pickle.dumps(agent)), copy.deepcopy])
@pytest.mark.parametrize("at", [0, 1, STEPS, 2 * STEPS - 1])
@pytest.mark.parametrize(("actions", "asymmetric"), [("discrete", True), ("gaussian", False)])
def test_copies_go_on_bit_for_bit(duplicate, at, actions, asymmetric):
    agent = make(actions, asymmetric=asymmetric)
    agent.note = "kept"  # type: ignore[attr-defined]
    run(agent, range(at))
    rng = torch.get_rng_state()
    other = duplicate(agent)
    assert torch.equal(torch.get_rng_state(), rng)  # copying draws nothing
    assert (other.note, other.training, other.tracked.drain()) == ("kept", True, agent.tracked.drain())
    expected = run(agent, range(at, at + 2 * STEPS + 1))
    torch.set_rng_state(rng)
    actual = run(other, range(at, at + 2 * STEPS + 1))
    assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))
    assert same(agent.state_dict(), other.state_dict())
    assert agent.learning_rate == other.learning_rate != agent.cfg.learning_rate
    pairs = zip(agent._parameters, other._parameters, strict=True)
    assert all(first.data_ptr() != second.data_ptr() for first, second in pairs)


@pytest.mark.parametrize("actions", list(ACTIONS))
def test_save_and_load(actions, tmp_path):
    agent = make(actions, asymmetric=True)
    run(agent, range(2 * STEPS))
    agent.save(tmp_path / "agent.pt")
    assert same(torch.load(tmp_path / "agent.pt", weights_only=True), agent.state_dict())
    other = make(actions, asymmetric=True)
    run(other, range(STEPS + 1))
    other.load(str(tmp_path / "agent.pt"))
    assert other._recorded == 0  # that rollout was gathered with other weights
    assert same(agent.state_dict(), other.state_dict())
    rng = torch.get_rng_state()
    expected = run(agent, range(2 * STEPS, 4 * STEPS))
    torch.set_rng_state(rng)
    assert all(torch.equal(a, b) for a, b in zip(expected, run(other, range(2 * STEPS, 4 * STEPS)), strict=True))
    buffer = io.BytesIO()
    agent.save(buffer)
    buffer.seek(0)
    other.load(buffer)
    assert same(agent.state_dict(), other.state_dict())


def test_state_dict_is_a_copy():
    agent = make()
    state = agent.state_dict()
    before = copy.deepcopy(state)
    run(agent, range(STEPS))
    assert same(state, before)
    agent.load_state_dict(state)
    run(agent, range(STEPS))
    assert same(state, before)


def test_state_of_another_shape_is_refused():
    agent = make()
    run(agent, range(STEPS + 1))
    before = agent.state_dict()
    others = [make(**cfg).state_dict() for cfg in ({"hidden_sizes": (9,)}, {"normalize_values": False})]
    for state in (*others, make("discrete").state_dict(), {"models": others[0]["models"]}, before | {"optimizer": {}}):
        with pytest.raises(AgentError, match="the state does not fit this agent"):
            agent.load_state_dict(state)
        assert same(before, agent.state_dict())
        assert agent._recorded == 1


def test_tracked_data_is_bounded():
    agent = make()
    for value in range(1000):
        agent.track_data("a", value)
    assert agent.tracked.drain() == {"a": 499.5}


@pytest.mark.parametrize("num_envs", [1, 2])
def test_smallest_rollout_stays_finite(num_envs):
    agent = make(num_envs=num_envs, rollouts=1, mini_batches=1)
    run(agent, range(5))
    assert all(leaf.isfinite().all() for leaf in leaves(agent.state_dict()) if isinstance(leaf, torch.Tensor))


@pytest.mark.parametrize("actions", list(ACTIONS))
def test_learns_a_bandit_that_depends_on_the_observation(actions):
    agent = make(
        actions, num_envs=32, rollouts=8, learning_epochs=4, mini_batches=4, learning_rate=3e-3, hidden_sizes=(16,)
    )

    def play(steps: int) -> float:
        total = 0.0
        for _ in range(steps):
            wanted = torch.randint(0, 3, (32, 1))
            observations = torch.cat([torch.nn.functional.one_hot(wanted[:, 0], 3), torch.zeros(32, 2)], 1)
            taken, outputs = agent.act(observations, None, **CLOCK)
            taken = taken if agent.training else outputs["mean_actions"]
            distance = (taken - 2 - wanted).abs().clamp(max=1) if actions == "discrete" else (taken - wanted + 1).abs()
            rewards = -distance.float().mean(1, keepdim=True)
            ended = torch.ones(32, 1, dtype=torch.bool)
            agent.record_transition(
                observations=observations,
                states=None,
                actions=taken,
                rewards=rewards,
                next_observations=observations,
                next_states=None,
                terminated=ended,
                truncated=~ended,
                infos={},
                **CLOCK,
            )
            agent.post_interaction(**CLOCK)
            total += float(rewards.mean()) / steps
        return total

    before = play(8)
    play(400)
    agent.enable_training_mode(False)
    assert before < -0.4
    assert play(20) > -0.15
