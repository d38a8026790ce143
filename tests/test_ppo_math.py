"""The arithmetic of PPO for torch, against NumPy, torch.distributions and plain autograd."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from workers.agents.ppo import adapt_learning_rate
from workers.agents.torch import PPO
from workers.agents.torch.losses import clipped_policy_loss, clipped_value_loss, compute_gae
from workers.agents.torch.networks import CategoricalPolicy, GaussianPolicy, Normalizer, Tanh, perceptron


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_gae_by_hand():
    # One environment, four timesteps; the episode ends after the second (its truncation is already in the reward).
    gamma, lam = 0.5, 0.8
    rewards, values = [1.0, 2.0, 3.0, 4.0], [0.5, 1.0, 1.5, 2.0]
    a3 = 4.0 + 0.5 * 10.0 - 2.0  # 7
    a2 = 3.0 + 0.5 * 2.0 - 1.5 + 0.4 * a3  # 5.3
    a1 = 2.0 - 1.0  # cut: neither the next value nor the next advantage
    a0 = 1.0 + 0.5 * 1.0 - 0.5 + 0.4 * a1  # 1.4
    advantages = compute_gae(
        rewards=torch.tensor(rewards).view(4, 1),
        values=torch.tensor(values).view(4, 1),
        last_values=torch.tensor([10.0]),
        continues=torch.tensor([1.0, 0.0, 1.0, 1.0]).view(4, 1),
        discount_factor=gamma,
        gae_lambda=lam,
    )
    np.testing.assert_allclose(advantages.view(-1).tolist(), [a0, a1, a2, a3], rtol=1e-6)
    np.testing.assert_allclose([a0, a1, a2, a3], [1.4, 1.0, 5.3, 7.0])


def test_gae_against_numpy():
    rng = np.random.default_rng(0)
    steps, envs, gamma, lam = 9, 5, 0.97, 0.9
    rewards, values = rng.normal(size=(2, steps, envs))
    last, ended = rng.normal(size=envs), rng.random((steps, envs)) < 0.3
    expected = np.zeros((steps, envs))
    for n in range(envs):
        for t in range(steps):  # the definition: a sum over the future, up to the end of the episode
            weight = 1.0
            for k in range(t, steps):
                following = last[n] if k == steps - 1 else values[k + 1, n]
                expected[t, n] += weight * (rewards[k, n] + gamma * following * (not ended[k, n]) - values[k, n])
                if ended[k, n]:
                    break
                weight *= gamma * lam
    result = compute_gae(
        rewards=torch.tensor(rewards, dtype=torch.float32),
        values=torch.tensor(values, dtype=torch.float32),
        last_values=torch.tensor(last, dtype=torch.float32),
        continues=torch.tensor(~ended, dtype=torch.float32),
        discount_factor=gamma,
        gae_lambda=lam,
    )
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("discrete", [False, True])
def test_policies_against_distributions(discrete):
    outputs = (2.0 * torch.randn(50, 3)).requires_grad_()
    distribution: Any
    if discrete:
        policy: Any = CategoricalPolicy(torch.nn.Identity(), [range(-1, 2)])
        distribution = torch.distributions.Categorical(logits=outputs)
        actions = distribution.sample().unsqueeze(1) - 1
        log_prob, tensors = distribution.log_prob(actions[:, 0] + 1), [outputs]
    else:
        policy = GaussianPolicy(torch.nn.Identity(), width=3, initial_log_std=0.3)
        distribution = torch.distributions.Independent(torch.distributions.Normal(outputs, policy.log_std.exp()), 1)
        actions = distribution.sample()
        log_prob, tensors = distribution.log_prob(actions), [outputs, policy.log_std]
    head, weights = policy(outputs), torch.randn(50)
    results = policy.log_prob(head, actions)[:, 0], policy.entropy(head)
    for result, expected in zip(results, (log_prob, distribution.entropy().mean()), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    grads, expected_grads = (
        torch.autograd.grad((weights * first).sum() - 0.3 * second, tensors)
        for first, second in (results, (log_prob, distribution.entropy().mean()))
    )
    for grad, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)


def test_samples_follow_the_distribution():
    outputs = torch.tensor([0.0, 1.0, -1.0]).repeat(20_000, 1)
    categorical = CategoricalPolicy(torch.nn.Identity(), [range(2, 5)])
    actions, most_likely = categorical.sample(categorical(outputs))
    frequencies = torch.bincount(actions.view(-1) - 2, minlength=3) / len(outputs)
    torch.testing.assert_close(frequencies, torch.softmax(outputs[0], 0), rtol=0, atol=0.015)
    assert (most_likely == 3).all()
    gaussian = GaussianPolicy(torch.nn.Identity(), width=3, initial_log_std=-0.5)
    actions, mean = gaussian.sample(gaussian(outputs))
    torch.testing.assert_close(actions.mean(0), outputs[0], rtol=0, atol=0.03)
    torch.testing.assert_close(actions.std(0), torch.full((3,), math.exp(-0.5)), rtol=0.03, atol=0)
    assert torch.equal(mean, outputs)


def test_tanh_is_tanh_for_any_size_of_input():
    edges = torch.tensor([-1e30, 1e30, 0.0, -torch.inf, torch.inf])
    values = torch.cat([torch.linspace(-12, 12, 2001), edges]).requires_grad_()
    outputs, expected = Tanh()(values.clone()), values.tanh()
    torch.testing.assert_close(outputs, expected, rtol=0, atol=3e-7)
    torch.testing.assert_close(
        *(torch.autograd.grad(result.sum(), values)[0] for result in (outputs, expected)), rtol=0, atol=5e-7
    )


@pytest.mark.parametrize(("activation", "hidden"), [("relu", ()), ("relu", (7,)), ("elu", (8, 5))])
def test_perceptrons(activation, hidden):
    network, inputs = perceptron((3, *hidden, 2), activation, head_gain=1.0), torch.randn(11, 3)
    outputs, parameters = inputs, list(network.parameters())
    for k in range(len(hidden) + 1):
        outputs = outputs @ parameters[2 * k].T + parameters[2 * k + 1]
        outputs = getattr(torch.nn.functional, activation)(outputs) if k < len(hidden) else outputs
    torch.testing.assert_close(network(inputs), outputs)


def test_initialization_is_orthogonal():
    agent = _agent(gymnasium.spaces.Box(-1, 1, (3,)))
    values, root = agent.state_dict()["models"], math.sqrt(2)
    gains = {"policy.network.2": root, "policy.network.4": 0.01, "value.2": root, "value.4": 1.0}
    for name, gain in gains.items():
        weight = values[f"{name}.weight"] / gain
        torch.testing.assert_close(weight @ weight.t(), torch.eye(len(weight)), rtol=0, atol=1e-5)
        assert (values[f"{name}.bias"] == 0).all()
    assert (values["policy.log_std"] == -0.5).all()


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


@pytest.mark.parametrize(
    ("kl", "expected"), [(0.021, 1e-3 / 1.5), (0.02, 1e-3), (0.01, 1e-3), (0.005, 1e-3), (0.0049, 1e-3 * 1.5)]
)
def test_kl_rule(kl, expected):
    assert adapt_learning_rate(1e-3, kl, 0.01) == pytest.approx(expected)


def test_kl_rule_is_bounded():
    assert adapt_learning_rate(1.1e-6, 1.0, 0.01) == 1e-6
    assert adapt_learning_rate(9e-3, 0.0, 0.01) == 1e-2


STEPS, ENVS, WIDTH, STATE_WIDTH = 5, 3, 4, 6


def _agent(action_space: gymnasium.Space[Any], state_space: gymnasium.Space[Any] | None = None, **cfg: Any) -> PPO:
    defaults = {
        "rollouts": STEPS,
        "learning_epochs": 3,
        "mini_batches": 4,
        "learning_rate": 0.01,
        "entropy_loss_scale": 0.05,
        "value_loss_scale": 0.7,
        "value_clip": 0.2,
        "hidden_sizes": (8, 6),
        "initial_log_std": -0.5,
    }
    space = gymnasium.spaces.Box(-np.inf, np.inf, (WIDTH,))
    return PPO(
        observation_space=space,
        action_space=action_space,
        state_space=state_space,
        num_envs=ENVS,
        cfg=defaults | cfg,
    )


class _Reference:
    """PPO written straightforwardly with autograd, torch.distributions and torch.optim."""

    def __init__(self, agent: PPO, components: list[range]) -> None:
        self.cfg, self.components = agent.cfg, components
        values = agent.state_dict()["models"]
        self.leaves = {name: v.requires_grad_() for name, v in values.items() if "normalizers" not in name}
        self.optimizer = torch.optim.Adam(list(self.leaves.values()), lr=agent.cfg.learning_rate)
        self.history: dict[str, list[torch.Tensor]] = {"inputs": [], "critic": [], "returns": []}

    def net(self, name: str, x: torch.Tensor) -> torch.Tensor:
        for k in (0, 2, 4):
            x = x @ self.leaves[f"{name}.{k}.weight"].T + self.leaves[f"{name}.{k}.bias"]
            x = torch.tanh(x) if k < 4 else x
        return x

    def policy(self, x: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the actions, and entropies."""
        head = self.net("policy.network", x)
        if not self.components:
            gaussian = torch.distributions.Normal(head, self.leaves["policy.log_std"].exp())
            return gaussian.log_prob(actions).sum(1), gaussian.entropy().sum(1)
        log_prob, entropy = torch.zeros(len(x)), torch.zeros(len(x))
        logits = head.split([len(values) for values in self.components], 1)
        for part, values, column in zip(logits, self.components, actions.unbind(1), strict=True):
            categorical = torch.distributions.Categorical(logits=part)
            log_prob = log_prob + categorical.log_prob(column - values.start)
            entropy = entropy + categorical.entropy()
        return log_prob, entropy

    def normal(self, name: str, x: torch.Tensor, enabled: bool) -> torch.Tensor:
        if not enabled or not self.history[name]:
            return x
        seen = torch.cat(self.history[name])
        return ((x - seen.mean(0)) / seen.std(0, correction=0)).clamp(-10, 10)

    def values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs of the critic, and what they mean in units of the rewards."""
        out = self.net("value", self.normal("critic", x, self.cfg.normalize_observations)).squeeze(-1).detach()
        if not self.cfg.normalize_values or not self.history["returns"]:
            return out, out
        seen = torch.cat(self.history["returns"])
        return out, out * seen.std(correction=0) + seen.mean()

    def learn(self, obs: Any, critic: Any, next_critic: Any, actions: Any, rewards: Any, ended: Any, cut: Any) -> None:
        cfg = self.cfg
        old_outputs, values = self.values(critic)
        _, next_values = self.values(next_critic)  # of the true next observations, at every step
        rewards = rewards + cfg.discount_factor * next_values * cut
        advantages, following = torch.zeros_like(rewards), torch.zeros(ENVS)
        for t in reversed(range(STEPS)):
            after = next_values[t] if t == STEPS - 1 else values[t + 1]
            delta = rewards[t] + cfg.discount_factor * after * ~ended[t] - values[t]
            following = delta + cfg.discount_factor * cfg.gae_lambda * following * ~ended[t]
            advantages[t] = following
        returns = (advantages + values).flatten()
        self.history["returns"].append(returns)
        seen = torch.cat(self.history["returns"])
        targets = (returns - seen.mean()) / seen.std(correction=0) if cfg.normalize_values else returns
        advantages = ((advantages - advantages.mean()) / advantages.std(correction=0)).flatten()
        x = self.normal("inputs", obs, cfg.normalize_observations).flatten(0, 1)
        c = self.normal("critic", critic, cfg.normalize_observations).flatten(0, 1)
        a, old_outputs = actions.flatten(0, 1), old_outputs.flatten()
        old_log_prob = self.policy(x, a)[0].detach()
        for _ in range(cfg.learning_epochs):
            for rows in torch.randperm(STEPS * ENVS).tensor_split(cfg.mini_batches):
                log_prob, entropy = self.policy(x[rows], a[rows])
                ratio = (log_prob - old_log_prob[rows]).exp()
                clipped = ratio.clamp(1 - cfg.ratio_clip, 1 + cfg.ratio_clip)
                loss = -torch.min(ratio * advantages[rows], clipped * advantages[rows]).mean()
                loss = loss - cfg.entropy_loss_scale * entropy.mean()
                out, old = self.net("value", c[rows]).squeeze(-1), old_outputs[rows]
                near = old + (out - old).clamp(-cfg.value_clip, cfg.value_clip)
                errors = torch.max((out - targets[rows]) ** 2, (near - targets[rows]) ** 2)
                loss = loss + cfg.value_loss_scale * errors.mean()
                self.optimizer.zero_grad()
                loss.backward()
                if cfg.grad_norm_clip:
                    torch.nn.utils.clip_grad_norm_(list(self.leaves.values()), cfg.grad_norm_clip)
                self.optimizer.step()
        self.history["inputs"].append(obs.flatten(0, 1))
        self.history["critic"].append(critic.flatten(0, 1))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize(
    ("action_space", "components"),
    [
        (gymnasium.spaces.Box(-1, 1, (2,)), []),
        (gymnasium.spaces.Discrete(3, start=-1), [range(-1, 2)]),
        (gymnasium.spaces.MultiDiscrete([3, 2, 4], start=[-1, 5, 0]), [range(-1, 2), range(5, 7), range(4)]),
    ],
    ids=["gaussian", "discrete", "multi-discrete"],
)
def test_whole_updates_against_reference(action_space, components, asymmetric, normalize):
    state_space = gymnasium.spaces.Box(-1, 1, (STATE_WIDTH,)) if asymmetric else None
    cfg = {"normalize_observations": normalize, "normalize_values": normalize, "grad_norm_clip": 0.5 * normalize}
    agent = _agent(action_space, state_space, **cfg)
    agent.enable_training_mode(True)
    reference = _Reference(agent, components)
    for rollout in range(3):
        obs = 2.0 * torch.randn(STEPS + 1, ENVS, WIDTH) + 1.0
        state = torch.randn(STEPS + 1, ENVS, STATE_WIDTH) - 0.5  # Adam blows up rounding where tanh saturates
        terminated, truncated = torch.rand(2, STEPS, ENVS, 1) < 0.25
        rewards, ended = torch.randn(STEPS, ENVS, 1), terminated | truncated
        # Where an episode ended, what follows is another observation than the one that the action led to.
        next_obs, next_state = obs[1:].clone(), state[1:].clone()
        next_obs[ended.squeeze(-1)] += 1.0
        next_state[ended.squeeze(-1)] += 1.0
        taken = []
        for t in range(STEPS):
            states, next_states = (state[t], next_state[t]) if asymmetric else (None, None)
            actions, _ = agent.act(obs[t], states, timestep=t, timesteps=STEPS)
            taken.append(actions)
            agent.record_transition(
                observations=obs[t],
                states=states,
                actions=actions,
                rewards=rewards[t],
                next_observations=next_obs[t],
                next_states=next_states,
                terminated=terminated[t],
                truncated=truncated[t],
                infos={},
                timestep=t,
                timesteps=STEPS,
            )
        torch.manual_seed(rollout)
        agent.post_interaction(timestep=STEPS, timesteps=STEPS)
        torch.manual_seed(rollout)
        critic, next_critic = (state[:-1], next_state) if asymmetric else (obs[:-1], next_obs)
        cut = truncated & ~terminated
        reference.learn(obs[:-1], critic, next_critic, torch.stack(taken), rewards[..., 0], ended[..., 0], cut[..., 0])
        values = agent.state_dict()["models"]
        for name, leaf in reference.leaves.items():
            torch.testing.assert_close(values[name], leaf.detach(), rtol=1e-4, atol=1e-5, msg=name)
