"""Torch-specific behaviour of the PPO agent, and the reference of all frameworks against torch's autograd."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from tests.support.parity import CFG, assert_same, step_trainer
from tests.support.ppo import ACTIONS, CLOCK, ENVS, STEPS, WIDTH, make, rollout, run, state_of
from tests.support.ppo_reference import Reference
from workers.agents.torch import PPO
from workers.agents.torch.losses import clipped_policy_loss, clipped_value_loss
from workers.agents.torch.networks import CategoricalPolicy, GaussianPolicy, Normalizer, Tanh
from workers.envs import make_env

COMPONENTS = {
    "one": [range(-1, 2)],
    "ragged": [range(3), range(-2, 0), range(5, 6), range(10, 15)],
    "equal": [range(2), range(7, 9), range(2)],
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def split(logits: torch.Tensor, components: list[range]) -> list[torch.distributions.Categorical]:
    """Return the oracle: one distribution for each component."""
    parts = logits.split([len(values) for values in components], 1)
    return [torch.distributions.Categorical(logits=part) for part in parts]


def log_prob_and_entropy(
    logits: torch.Tensor, actions: torch.Tensor, components: list[range]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities ``(rows,)`` and the mean entropy, by torch.distributions."""
    distributions = split(logits, components)
    columns = actions - torch.tensor([values.start for values in components])
    picked = zip(distributions, columns.unbind(1), strict=True)
    log_probs = [distribution.log_prob(column) for distribution, column in picked]
    entropies = [distribution.entropy() for distribution in distributions]
    return torch.stack(log_probs).sum(0), torch.stack(entropies).sum(0).mean()


# The reference.


@pytest.mark.parametrize("components", [None, *COMPONENTS.values()], ids=["gaussian", *COMPONENTS])
@pytest.mark.parametrize(
    ("activation", "function"),
    [("tanh", torch.tanh), ("relu", torch.relu), ("elu", torch.nn.functional.elu)],
    ids=["tanh", "relu", "elu"],
)
def test_gradients_of_the_reference_against_autograd(components, activation, function):
    space: gymnasium.Space[Any] = ACTIONS["gaussian"]
    if components:
        starts = [values.start for values in components]
        space = gymnasium.spaces.MultiDiscrete([len(values) for values in components], start=starts)
    cfg = {"activation": activation, "hidden_sizes": (8, 6), "entropy_loss_scale": 0.3, "value_clip": 0.1}
    agent = make("torch", space, asymmetric=True, value_loss_scale=0.7, **cfg)
    reference = Reference(agent, state_of(agent))
    rng, samples = np.random.default_rng(0), reference.samples(rollout(agent, range(STEPS)))
    reference.weights = {name: value + 0.1 * rng.normal(size=value.shape) for name, value in reference.weights.items()}
    weights = {name: torch.tensor(value, requires_grad=True) for name, value in reference.weights.items()}
    batch = {name: torch.tensor(value) for name, value in samples.items()}

    def network(name: str, x: torch.Tensor) -> torch.Tensor:
        for layer in (0, 2, 4):
            x = (function(x) if layer else x) @ weights[f"{name}.{layer}.weight"].T + weights[f"{name}.{layer}.bias"]
        return x

    head = network("policy.network", batch["observations"])
    if components:
        log_prob, entropy = log_prob_and_entropy(head, batch["actions"], components)
    else:
        gaussian = torch.distributions.Normal(head, weights["policy.log_std"].exp())
        log_prob, entropy = gaussian.log_prob(batch["actions"]).sum(1), gaussian.entropy().sum(1).mean()
    log_ratio, advantages = log_prob - batch["log_prob"], batch["advantages"]
    ratio = log_ratio.exp()
    values, old, targets = network("value", batch["states"]).squeeze(1), batch["values"], batch["targets"]
    near = old + (values - old).clamp(-0.1, 0.1)
    expected = {
        "Loss / Policy loss": -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean(),
        "Loss / Entropy loss": -0.3 * entropy,
        "Loss / Value loss": 0.7 * torch.max((values - targets) ** 2, (near - targets) ** 2).mean(),
    }
    losses, grads, given_log_ratio = reference.gradients(samples)
    assert losses == pytest.approx({tag: loss.item() for tag, loss in expected.items()}, rel=1e-9)
    np.testing.assert_allclose(given_log_ratio, log_ratio.detach(), rtol=1e-9, atol=1e-12)
    expected_grads = torch.autograd.grad(sum(expected.values(), torch.zeros(())), list(weights.values()))
    assert set(grads) == set(weights)
    for name, grad in zip(weights, expected_grads, strict=True):
        np.testing.assert_allclose(grads[name], grad, rtol=1e-9, atol=1e-12, err_msg=name)
    assert (ratio.clamp(0.8, 1.2) != ratio).any()  # both limits occur
    assert (near != values).any()


# Randomness, layouts and contexts.


def test_one_draw_per_act():
    agent = make("torch")
    torch.manual_seed(3)
    actions, outputs = agent.act(torch.randn(ENVS, WIDTH), None, **CLOCK)
    torch.manual_seed(3)
    torch.randn(ENVS, WIDTH)
    torch.testing.assert_close(actions, outputs["mean_actions"] + torch.randn(ENVS, 2))  # initial std is 1
    after = torch.rand(1)
    torch.manual_seed(3)
    agent.act(torch.randn(ENVS, WIDTH), None, **CLOCK)
    assert torch.equal(torch.rand(1), after)


def test_memory_layout_of_inputs_does_not_matter():
    agent = PPO(
        observation_space=gymnasium.spaces.Box(-1, 1, (17,)), action_space=ACTIONS["gaussian"], num_envs=ENVS, cfg={}
    )
    base = torch.randn(ENVS + 40, 17)
    for start in range(40):
        view = base[start : start + ENVS]
        variants = (view, view.clone(), view.double(), view.t().contiguous().t(), view.clone().requires_grad_())
        means = [agent.act(variant, None, **CLOCK)[1]["mean_actions"] for variant in variants]
        assert all(torch.equal(mean, means[0]) and not mean.requires_grad for mean in means)


def test_learns_the_same_without_autograd_around_it():
    states = []
    for context in (torch.no_grad(), torch.enable_grad()):
        agent = make("torch")
        with context:
            run(agent, range(STEPS))
        states.append(state_of(agent))
    assert_same(states[1], states[0])


# Components of the agent.


def test_policy_loss_and_gradient_against_the_definition():
    log_ratio, advantages = (0.4 * torch.randn(400, 1)).requires_grad_(), torch.randn(400, 1)
    ratio = log_ratio.exp()
    expected = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    loss = clipped_policy_loss(log_ratio.exp(), advantages, 0.2)
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, log_ratio)
    torch.testing.assert_close(grad, *torch.autograd.grad(expected, log_ratio))
    assert (grad == 0).any()
    assert (grad != 0).any()


@pytest.mark.parametrize("clip", [0.2, 0.0])
def test_value_loss_and_gradient_against_the_definition(clip):
    values, targets = torch.randn(400, 1, requires_grad=True), torch.randn(400, 1)
    old = values.detach() + 0.3 * torch.randn(400, 1)
    expected = (values - targets) ** 2
    if clip:
        expected = torch.max(expected, (old + (values - old).clamp(-clip, clip) - targets) ** 2)
    loss = clipped_value_loss(values, targets, old, clip)
    torch.testing.assert_close(loss, expected.mean())
    (grad,) = torch.autograd.grad(loss, values)
    torch.testing.assert_close(grad, *torch.autograd.grad(expected.mean(), values), rtol=1e-5, atol=1e-6)
    assert bool((grad == 0).any()) == bool(clip)


def assert_policy(policy: Any, actions: torch.Tensor, tensors: list[torch.Tensor], *expected: torch.Tensor) -> None:
    """Assert log-probabilities, entropy, and the gradients of a mixture of both; `tensors` starts with the outputs."""
    head, weights = policy(tensors[0]), torch.randn(len(actions))
    log_prob = policy.log_prob(head, actions)
    assert log_prob.shape == (len(actions), 1)
    results = log_prob[:, 0], policy.entropy(head)
    for result, value in zip(results, expected, strict=True):
        assert result.isfinite().all()
        torch.testing.assert_close(result, value, rtol=1e-5, atol=1e-5)
    mixtures = [(weights * first).sum() - 0.3 * second for first, second in (results, expected)]
    for grads in zip(*(torch.autograd.grad(mixture, tensors) for mixture in mixtures), strict=True):
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(COMPONENTS))
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_categorical_policy_against_distributions(name, scale):
    components = COMPONENTS[name]
    outputs = (scale * torch.randn(50, sum(map(len, components)))).requires_grad_()
    actions = torch.stack([torch.randint(values.start, values.stop, (50,)) for values in components], 1)
    policy = CategoricalPolicy(torch.nn.Identity(), components)
    assert_policy(policy, actions, [outputs], *log_prob_and_entropy(outputs, actions, components))


def test_gaussian_policy_against_distributions():
    outputs = (2.0 * torch.randn(50, 3)).requires_grad_()
    policy = GaussianPolicy(torch.nn.Identity(), width=3, initial_log_std=0.3)
    distribution = torch.distributions.Independent(torch.distributions.Normal(outputs, policy.log_std.exp()), 1)
    actions = distribution.sample()
    expected = distribution.log_prob(actions), distribution.entropy().mean()
    assert_policy(policy, actions, [outputs, policy.log_std], *expected)


def test_tanh_is_tanh_for_any_size_of_input():
    edges = torch.tensor([-1e30, 1e30, 0.0, -torch.inf, torch.inf])
    values = torch.cat([torch.linspace(-12, 12, 2001), edges]).requires_grad_()
    outputs, expected = Tanh()(values.clone()), values.tanh()
    torch.testing.assert_close(outputs, expected, rtol=0, atol=3e-7)
    torch.testing.assert_close(
        *(torch.autograd.grad(result.sum(), values)[0] for result in (outputs, expected)), rtol=0, atol=5e-7
    )


def test_normalizer_against_numpy():
    normalizer, rng = Normalizer(2, limit=2.0), np.random.default_rng(0)
    assert normalizer(torch.tensor([[0.5, -9.0]])).tolist() == [[0.5, -2.0]]
    batches = [rng.normal(1000.0 * k, k + 0.5, (10 * k + 1, 2)) for k in range(4)]
    for batch in batches:
        normalizer.update(torch.tensor(batch))
    everything = np.concatenate(batches)
    np.testing.assert_allclose(normalizer.mean, everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.variance, everything.var(0), rtol=1e-12)
    inside = torch.tensor(everything[-2:], dtype=torch.float32)
    normal = normalizer(inside)
    np.testing.assert_allclose(normal, (everything[-2:] - everything.mean(0)) / everything.std(0), rtol=1e-4)
    torch.testing.assert_close(normalizer.inverse(normal), inside)


def test_a_reset_of_the_trainer_cuts_the_rollout():
    """Transitions after the reset do not follow those before it."""
    env = make_env("CartPole-v1", num_envs=2, framework="torch")
    agent = PPO(observation_space=env.observation_space, action_space=env.action_space, num_envs=2)
    with step_trainer("torch")(env=env, agents=agent, cfg=CFG, seed=0) as trainer:
        for _ in range(3):
            trainer.train()
        trainer.reset()
        trainer.train()
    assert agent._rollout["ended"][:5, 0, 0].tolist() == [False, False, True, False, False]
    assert agent._recorded == 4
