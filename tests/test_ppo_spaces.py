"""PPO for torch in spaces of several components: MultiDiscrete and MultiBinary actions, nested observations."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.spaces.utils import flatten

from tests.test_ppo import BOX, CLOCK, ENVS, STEPS, WIDTH, make, run, same
from workers.agents.base import discrete_components
from workers.agents.torch import PPO
from workers.agents.torch.networks import CategoricalPolicy
from workers.errors import AgentError

COMPONENTS = {
    "one": [range(-1, 2)],
    "ragged": [range(3), range(-2, 0), range(5, 6), range(10, 15)],
    "equal": [range(2), range(7, 9), range(2)],
}
SPACES: dict[str, tuple[gymnasium.Space[Any], list[range]]] = {
    "vector": (MultiDiscrete([3, 2, 4], start=[-1, 0, 5]), [range(-1, 2), range(2), range(5, 9)]),
    "matrix": (
        MultiDiscrete(np.array([[2, 3], [4, 1]]), start=np.array([[0, 1], [2, 3]])),
        [range(2), range(1, 4), range(2, 6), range(3, 4)],
    ),
    "far": (MultiDiscrete([2, 3], start=[2**40, -(2**40)]), [range(2**40, 2**40 + 2), range(-(2**40), 3 - 2**40)]),
    "bytes": (MultiDiscrete([2, 200], dtype=np.uint8), [range(2), range(200)]),
    "binary": (MultiBinary(4), [range(2)] * 4),
    "binary matrix": (MultiBinary((2, 3)), [range(2)] * 6),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def split(logits: torch.Tensor, components: list[range]) -> list[torch.distributions.Categorical]:
    """The oracle: one distribution for each component."""
    parts = logits.split([len(values) for values in components], 1)
    return [torch.distributions.Categorical(logits=part) for part in parts]


def draw(rows: int, components: list[range]) -> torch.Tensor:
    columns = [torch.randint(values.start, values.stop, (rows,)) for values in components]
    return torch.stack(columns, 1)


def total(components: list[range]) -> int:
    return sum(len(values) for values in components)


@pytest.mark.parametrize("name", list(SPACES))
def test_components_are_the_values_in_c_order(name):
    space, components = SPACES[name]
    assert discrete_components(space) == tuple(components)
    space.seed(0)
    samples = np.array([space.sample().reshape(-1) for _ in range(3000)], dtype=np.int64)
    assert [sorted(set(column)) for column in samples.T.tolist()] == [list(values) for values in components]


def test_other_spaces_have_no_components():
    assert discrete_components(Discrete(3, start=-1)) == (range(-1, 2),)
    for space in (BOX, Box(0, 9, (2,), np.int32), Tuple([Discrete(2)]), Dict({"a": Discrete(2)})):
        assert discrete_components(space) is None


@pytest.mark.parametrize("name", list(COMPONENTS))
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_policy_against_distributions(name, scale):
    components = COMPONENTS[name]
    policy = CategoricalPolicy(torch.nn.Identity(), components)
    outputs = (scale * torch.randn(50, total(components))).requires_grad_()
    actions, weights = draw(50, components), torch.randn(50)
    distributions = split(outputs, components)
    starts = torch.tensor([values.start for values in components])
    picked = zip(distributions, (actions - starts).unbind(1), strict=True)
    expected = (
        torch.stack([distribution.log_prob(column) for distribution, column in picked]).sum(0),
        torch.stack([distribution.entropy() for distribution in distributions]).sum(0).mean(),
    )
    head = policy(outputs)
    log_prob = policy.log_prob(head, actions)
    assert log_prob.shape == (50, 1)
    results = log_prob[:, 0], policy.entropy(head)
    for result, value in zip(results, expected, strict=True):
        assert result.isfinite().all()
        torch.testing.assert_close(result, value, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad((weights * a).sum() - 0.3 * b, outputs)[0] for a, b in (results, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_equal_components_against_independent():
    policy, logits = CategoricalPolicy(torch.nn.Identity(), [range(3)] * 4), torch.randn(50, 12)
    oracle = torch.distributions.Independent(torch.distributions.Categorical(logits=logits.view(50, 4, 3)), 1)
    actions, head = oracle.sample(), policy(logits)
    torch.testing.assert_close(policy.log_prob(head, actions)[:, 0], oracle.log_prob(actions))
    torch.testing.assert_close(policy.entropy(head), oracle.entropy().mean())


@pytest.mark.parametrize("name", list(COMPONENTS))
def test_samples_follow_the_joint_distribution(name):
    components, rows = COMPONENTS[name], 40_000
    policy, logits = CategoricalPolicy(torch.nn.Identity(), components), torch.randn(1, total(components))
    actions, most_likely = policy.sample(policy(logits.expand(rows, -1)))
    distributions = split(logits, components)
    best = [values[int(d.probs.argmax())] for d, values in zip(distributions, components, strict=True)]
    assert most_likely.tolist() == [best] * rows
    observed, counts = actions.unique(dim=0, return_counts=True)
    frequencies = dict(zip(map(tuple, observed.tolist()), (counts / rows).tolist(), strict=True))
    marginals = [dict(zip(v, d.probs[0].tolist(), strict=True)) for d, v in zip(distributions, components, strict=True)]
    joint = {
        values: float(np.prod([marginal[value] for marginal, value in zip(marginals, values, strict=True)]))
        for values in itertools.product(*components)
    }
    assert set(frequencies) <= set(joint)  # never a category that is padding
    for values, probability in joint.items():
        assert frequencies.get(values, 0.0) == pytest.approx(probability, abs=0.012)


def test_padding_is_never_drawn_nor_most_likely():
    policy = CategoricalPolicy(torch.nn.Identity(), [range(1), range(2), range(1000)])
    for level in (-1e4, 0.0, 1e4):
        for actions in policy.sample(policy(torch.full((2000, 1003), level))):
            assert (actions[:, 0] == 0).all()
            assert set(actions[:, 1].tolist()) <= {0, 1}


@pytest.mark.parametrize("name", list(SPACES))
def test_actions_of_the_agent(name):
    space, components = SPACES[name]
    agent = make(space, num_envs=200)
    actions, outputs = agent.act(torch.randn(200, WIDTH), None, **CLOCK)
    for array in (actions, outputs["mean_actions"]):
        assert array.shape == (200, len(components))
        assert array.dtype == torch.int64
        assert array.is_contiguous()
        assert all(space.contains(row.reshape(space.shape).astype(space.dtype)) for row in array.numpy())
    for column, values in zip(actions.T.tolist(), components, strict=True):
        assert len(values) > 100 or set(column) == set(values)  # nearly uniform at first: all values are met
    kept = outputs["mean_actions"].clone()
    actions.fill_(99)
    assert torch.equal(outputs["mean_actions"], kept)


def test_mean_actions_are_the_most_likely_of_each_component():
    space, components = SPACES["vector"]
    agent, observations = make(space, hidden_sizes=(), normalize_observations=False), torch.randn(ENVS, WIDTH)
    values = agent.state_dict()["models"]
    head = observations @ values["policy.network.0.weight"].T + values["policy.network.0.bias"]
    assert head.shape == (ENVS, total(components))
    parts = head.split([len(component) for component in components], 1)
    expected = [part.argmax(1) + component.start for part, component in zip(parts, components, strict=True)]
    assert torch.equal(agent.act(observations, None, **CLOCK)[1]["mean_actions"], torch.stack(expected, 1))


@pytest.mark.parametrize("entropy", [0.0, 0.05])
def test_one_component_equals_discrete_bit_for_bit(entropy):
    spaces = (Discrete(5), MultiDiscrete([5])), (Discrete(2), MultiBinary(1)), (Discrete(3, start=4), [3, 4])
    for discrete, other in spaces:
        multi = MultiDiscrete(other[:1], start=other[1:]) if isinstance(other, list) else other
        results = []
        for space in (discrete, multi):
            torch.manual_seed(1)
            agent = make(space, entropy_loss_scale=entropy)
            results.append((run(agent, range(3 * STEPS)), agent.state_dict(), torch.get_rng_state()))
        (taken, state, rng), (other_taken, other_state, other_rng) = results
        assert all(torch.equal(a, b) for a, b in zip(taken, other_taken, strict=True))
        assert same(state, other_state)
        assert state["models"].keys() == other_state["models"].keys()
        assert torch.equal(rng, other_rng)


@pytest.mark.parametrize("name", list(SPACES))
def test_state_and_copies_go_on_bit_for_bit(name, tmp_path):
    space, _ = SPACES[name]
    agent, other = make(space, asymmetric=True), make(space, asymmetric=True)
    run(agent, range(2 * STEPS))
    agent.save(tmp_path / "agent.pt")
    assert not same(agent.state_dict(), other.state_dict())
    other.load(tmp_path / "agent.pt")
    assert same(agent.state_dict(), other.state_dict())
    learnt = {name.rpartition(".")[2] for name in agent.state_dict()["models"]}
    assert learnt == {"weight", "bias", "mean", "variance", "count"}  # nothing that the space says
    rng = torch.get_rng_state()
    expected = run(agent, range(2 * STEPS, 4 * STEPS))
    torch.set_rng_state(rng)
    assert all(torch.equal(a, b) for a, b in zip(expected, run(other, range(2 * STEPS, 4 * STEPS)), strict=True))
    assert same(agent.state_dict(), other.state_dict())


def test_state_of_other_sizes_is_refused():
    agent = make(MultiDiscrete([3, 2]))
    for space in (MultiDiscrete([3, 3]), MultiDiscrete([3, 2, 2]), MultiBinary(2), Box(-1, 1, (2,))):
        with pytest.raises(AgentError, match="the state does not fit this agent"):
            agent.load_state_dict(make(space).state_dict())


def test_actions_of_wrong_width_are_refused():
    agent = make(MultiDiscrete([3, 2]))
    given: dict[str, Any] = {name: torch.zeros(ENVS, WIDTH) for name in ("observations", "next_observations")}
    flags = {name: torch.zeros(ENVS, 1, dtype=torch.bool) for name in ("terminated", "truncated")}
    given |= flags | {"rewards": torch.zeros(ENVS, 1), "actions": torch.zeros(ENVS, 1, dtype=torch.int64)}
    with pytest.raises(AgentError, match=r"^actions must be an array of shape \(3, 2\), got shape \(3, 1\)"):
        agent.record_transition(**given, states=None, next_states=None, infos={}, **CLOCK)


@pytest.mark.parametrize(
    "space", [MultiDiscrete([4, 2, 3], start=[1, 0, -3]), MultiBinary((2, 2))], ids=["multi-discrete", "multi-binary"]
)
def test_learns_a_bandit_of_several_arms(space):
    components = discrete_components(space)
    assert components is not None
    agent = make(space, num_envs=32, rollouts=8, learning_epochs=4, mini_batches=4, learning_rate=3e-3)
    ended = torch.ones(32, 1, dtype=torch.bool)

    def play(steps: int) -> float:
        share = 0.0
        for _ in range(steps):
            bits = torch.randint(0, 2, (32, 1))
            observations = torch.cat([bits.float(), torch.zeros(32, WIDTH - 1)], 1)
            # the first or the last value of each component, as the observation says, in turns
            turns = [bits.bool(), ~bits.bool()]
            wanted = [torch.where(turns[k % 2], values[-1], values[0]) for k, values in enumerate(components)]
            taken, outputs = agent.act(observations, None, **CLOCK)
            taken = taken if agent.training else outputs["mean_actions"]
            rewards = (taken == torch.cat(wanted, 1)).sum(1, keepdim=True).float()
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
            share += float(rewards.mean()) / steps / len(components)
        return share

    before = play(8)
    play(400)
    agent.enable_training_mode(False)
    assert before < 0.6
    assert play(20) > 0.98


@pytest.mark.parametrize(
    "space",
    [
        Dict({"b": Box(-1, 1, (2, 2)), "a": Discrete(3, start=1), "c": Tuple([MultiBinary(2), Discrete(2)])}),
        Tuple([Box(-5, 5, (3,)), Dict({"x": MultiDiscrete([2, 3])})]),
        MultiDiscrete(np.array([[2, 3], [4, 1]])),
        MultiBinary((2, 3)),
        Discrete(7, start=-3),
        Box(0, 255, (4, 3), np.uint8),
    ],
    ids=["dict", "tuple", "multi-discrete", "multi-binary", "discrete", "image"],
)
def test_observations_and_states_of_any_space_that_can_be_flattened(space):
    cfg = {"rollouts": STEPS, "mini_batches": 2, "hidden_sizes": (8,)}
    kinds = {"observation_space": space, "state_space": space, "action_space": MultiDiscrete([2, 3])}
    agent = PPO(**kinds, num_envs=ENVS, cfg=cfg)
    agent.enable_training_mode(True)
    space.seed(0)

    def sample() -> torch.Tensor:
        return torch.tensor(np.array([flatten(space, space.sample()) for _ in range(ENVS)]))

    before, flag = agent.state_dict(), torch.zeros(ENVS, 1, dtype=torch.bool)
    for _ in range(STEPS):
        names = ("observations", "states", "next_observations", "next_states")
        arrays: dict[str, Any] = {name: sample() for name in names}
        actions, _ = agent.act(arrays["observations"], arrays["states"], **CLOCK)
        rewards = torch.randn(ENVS, 1)
        agent.record_transition(
            **arrays, actions=actions, rewards=rewards, terminated=flag, truncated=flag, infos={}, **CLOCK
        )
        agent.post_interaction(**CLOCK)
    after = agent.state_dict()["models"]
    assert all(value.isfinite().all() for value in after.values())
    for name in ("policy.network.0.weight", "value.0.weight"):
        assert after[name].shape == (8, len(flatten(space, space.sample())))
        assert not torch.equal(after[name], before["models"][name])
