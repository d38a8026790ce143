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
from workers.agents.torch.networks import MLP, Adam, CategoricalPolicy, GaussianPolicy, Normalizer, Parameters

CPU = torch.device("cpu")


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


def test_policy_loss_against_autograd():
    log_ratio = (0.4 * torch.randn(400, 1)).requires_grad_()
    advantages = torch.randn(400, 1)
    ratio = log_ratio.exp()
    loss = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    loss.mean().backward()
    total, grad = clipped_policy_loss(ratio.detach(), advantages, 0.2)
    torch.testing.assert_close(total, loss.sum().detach())
    torch.testing.assert_close(grad, log_ratio.grad)
    assert (grad == 0).any()
    assert (grad != 0).any()


@pytest.mark.parametrize("clip", [0.2, 0.0])
def test_value_loss_against_autograd(clip):
    values, targets = torch.randn(400, 1, requires_grad=True), torch.randn(400, 1)
    old = values.detach() + 0.3 * torch.randn(400, 1)
    loss = (values - targets) ** 2
    if clip:
        loss = torch.max(loss, (old + (values - old).clamp(-clip, clip) - targets) ** 2)
    loss.mean().backward()
    total, grad = clipped_value_loss(values.detach(), targets, old, clip)
    torch.testing.assert_close(total, loss.sum().detach())
    torch.testing.assert_close(grad, values.grad, rtol=1e-5, atol=1e-6)
    assert bool((grad == 0).any()) == bool(clip)


def _check_policy(policy: Any, distribution: Any, head: torch.Tensor, actions: torch.Tensor, tensors: Any) -> Any:
    """Log-probability, entropy and gradients against a torch.distributions object built on `tensors`."""
    log_prob = distribution.log_prob(actions.squeeze(1) if actions.dtype == torch.int64 else actions).view(
        len(head), -1
    )
    log_prob = log_prob.sum(1, keepdim=True)
    entropy = distribution.entropy().view(len(head), -1).sum(1).mean()
    weights = torch.randn(len(head), 1)
    expected = torch.autograd.grad((weights * log_prob).sum() - 0.3 * entropy, tensors)
    torch.testing.assert_close(policy.evaluate(head.detach(), actions), log_prob.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(policy.entropy(), entropy.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(policy.backward(weights, -0.3), expected[0], rtol=1e-4, atol=1e-5)
    return expected


def test_categorical_against_distributions():
    head = (2 * torch.randn(50, 5)).requires_grad_()
    distribution = torch.distributions.Categorical(logits=head)
    _check_policy(CategoricalPolicy(), distribution, head, torch.randint(0, 5, (50, 1)), [head])


def test_gaussian_against_distributions():
    head, log_std = torch.randn(50, 3, requires_grad=True), (0.3 * torch.randn(3)).requires_grad_()
    grad = torch.full((3,), math.nan)
    distribution = torch.distributions.Normal(head, log_std.exp())
    expected = _check_policy(
        GaussianPolicy(log_std.detach(), grad), distribution, head, torch.randn(50, 3), [head, log_std]
    )
    torch.testing.assert_close(grad, expected[1], rtol=1e-4, atol=1e-5)


def test_samples_follow_the_distribution():
    head = torch.tensor([0.0, 1.0, -1.0]).repeat(20_000, 1)
    actions, most_likely = CategoricalPolicy().sample(head)
    frequencies = torch.bincount(actions.view(-1), minlength=3) / len(head)
    torch.testing.assert_close(frequencies, torch.softmax(head[0], 0), rtol=0, atol=0.015)
    assert (most_likely == 1).all()
    log_std = torch.tensor([0.0, -1.0, 1.0])
    actions, mean = GaussianPolicy(log_std, torch.empty(3)).sample(head)
    torch.testing.assert_close(actions.mean(0), head[0], rtol=0, atol=0.08)
    torch.testing.assert_close(actions.std(0), log_std.exp(), rtol=0.03, atol=0)
    assert torch.equal(mean, head)


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("hidden", [(), (7,), (8, 5)])
def test_perceptron_against_autograd(activation, hidden):
    sizes = (3, *hidden, 2)
    parameters = Parameters(MLP.shapes("net", sizes), CPU)
    network = MLP("net", sizes, activation, parameters)
    network.initialize(head_gain=1.0)
    parameters.flat_grad.fill_(math.nan)
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.values.items()}
    inputs, output_grad = torch.randn(11, 3), torch.randn(11, 2)
    outputs = inputs
    for k in range(len(sizes) - 1):
        outputs = torch.nn.functional.linear(outputs, leaves[f"net.{k}.weight"], leaves[f"net.{k}.bias"])
        if k < len(hidden):
            outputs = getattr(torch.nn.functional, activation)(outputs)
    (outputs * output_grad).sum().backward()
    torch.testing.assert_close(network.forward(inputs), outputs.detach(), rtol=1e-5, atol=1e-6)
    network.backward(inputs, output_grad)
    for name, leaf in leaves.items():
        torch.testing.assert_close(parameters.grads[name], leaf.grad, rtol=1e-5, atol=1e-5)


def test_tanh_is_tanh_for_any_size_of_input():
    values = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([-1e30, 1e30, 0.0, -torch.inf, torch.inf])])
    parameters = Parameters(MLP.shapes("net", (1, 1, 1)), CPU)
    parameters.values["net.0.weight"].fill_(1.0)
    parameters.values["net.1.weight"].fill_(1.0)
    outputs = MLP("net", (1, 1, 1), "tanh", parameters).forward(values.view(-1, 1))
    torch.testing.assert_close(outputs.view(-1), values.tanh(), rtol=0, atol=3e-7)


def test_initialization_is_orthogonal():
    agent = _agent(gymnasium.spaces.Box(-1, 1, (3,)))
    values = agent.state_dict()["parameters"]
    for name, gain in (("policy.1", math.sqrt(2)), ("policy.2", 0.01), ("value.1", math.sqrt(2)), ("value.2", 1.0)):
        weight = values[f"{name}.weight"] / gain
        torch.testing.assert_close(weight @ weight.t(), torch.eye(len(weight)), rtol=0, atol=1e-5)
        assert (values[f"{name}.bias"] == 0).all()
    assert (values["policy.log_std"] == -0.5).all()


def test_adam_and_clipping_against_torch():
    parameters = Parameters({"a": (3, 5), "b": (2,)}, CPU)
    for value in parameters.values.values():
        value.normal_()
    leaves = [value.clone().requires_grad_() for value in parameters.values.values()]
    ours, reference = Adam(parameters), torch.optim.Adam(leaves, lr=0.1)
    for step in range(5):
        for leaf, grad in zip(leaves, parameters.grads.values(), strict=True):
            grad.normal_().mul_(0.1 if step == 2 else 3.0)  # once below the limit
            leaf.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        parameters.clip_grad_norm_(1.0)
        reference.step()
        ours.step(0.1)
        for leaf, value in zip(leaves, parameters.values.values(), strict=True):
            torch.testing.assert_close(value, leaf.detach(), rtol=1e-5, atol=1e-6)


def test_normalizer_against_numpy():
    normalizer, rng = Normalizer(2, CPU, limit=2.0), np.random.default_rng(0)
    values = torch.tensor([[0.5, -9.0]])
    assert normalizer.normalize_(values.clone()).tolist() == [[0.5, -2.0]]
    batches = [rng.normal(1000.0 * k, k + 0.5, (10 * k + 1, 2)) for k in range(4)]
    for batch in batches:
        normalizer.update(torch.tensor(batch))
    everything = np.concatenate(batches)
    np.testing.assert_allclose(normalizer.mean, everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.variance, everything.var(0), rtol=1e-12)
    inside = torch.tensor(everything[-2:], dtype=torch.float32)
    normal = normalizer.normalize_(inside.clone())
    np.testing.assert_allclose(normal, (everything[-2:] - everything.mean(0)) / everything.std(0), rtol=1e-4)
    torch.testing.assert_close(normalizer.denormalize_(normal), inside)


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

    def __init__(self, agent: PPO) -> None:
        self.cfg, self.discrete = agent.cfg, agent._discrete
        self.leaves = {name: v.requires_grad_() for name, v in agent.state_dict()["parameters"].items()}
        self.optimizer = torch.optim.Adam(list(self.leaves.values()), lr=agent.cfg.learning_rate)
        self.history: dict[str, list[torch.Tensor]] = {"inputs": [], "critic": [], "returns": []}

    def net(self, name: str, x: torch.Tensor) -> torch.Tensor:
        for k in range(3):
            x = x @ self.leaves[f"{name}.{k}.weight"].T + self.leaves[f"{name}.{k}.bias"]
            x = torch.tanh(x) if k < 2 else x
        return x

    def distribution(self, x: torch.Tensor) -> torch.distributions.Distribution:
        head = self.net("policy", x)
        if self.discrete:
            return torch.distributions.Categorical(logits=head)
        normal = torch.distributions.Normal(head, self.leaves["policy.log_std"].exp())
        return torch.distributions.Independent(normal, 1)

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
        a = a.squeeze(-1) if self.discrete else a
        old_log_prob = self.distribution(x).log_prob(a).detach()
        for _ in range(cfg.learning_epochs):
            for rows in torch.randperm(STEPS * ENVS).tensor_split(cfg.mini_batches):
                distribution = self.distribution(x[rows])
                ratio = (distribution.log_prob(a[rows]) - old_log_prob[rows]).exp()
                clipped = ratio.clamp(1 - cfg.ratio_clip, 1 + cfg.ratio_clip)
                loss = -torch.min(ratio * advantages[rows], clipped * advantages[rows]).mean()
                loss = loss - cfg.entropy_loss_scale * distribution.entropy().mean()
                out, old = self.net("value", c[rows]).squeeze(-1), old_outputs[rows]
                near = old + (out - old).clamp(-cfg.value_clip, cfg.value_clip)
                errors = torch.max((out - targets[rows]) ** 2, (near - targets[rows]) ** 2)
                loss = loss + cfg.value_loss_scale * errors.mean()
                self.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(list(self.leaves.values()), cfg.grad_norm_clip)
                self.optimizer.step()
        self.history["inputs"].append(obs.flatten(0, 1))
        self.history["critic"].append(critic.flatten(0, 1))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_whole_updates_against_reference(discrete, asymmetric, normalize):
    action_space = gymnasium.spaces.Discrete(3) if discrete else gymnasium.spaces.Box(-1, 1, (2,))
    state_space = gymnasium.spaces.Box(-1, 1, (STATE_WIDTH,)) if asymmetric else None
    agent = _agent(action_space, state_space, normalize_observations=normalize, normalize_values=normalize)
    agent.enable_training_mode(True)
    reference = _Reference(agent)
    for rollout in range(3):
        obs = 2.0 * torch.randn(STEPS + 1, ENVS, WIDTH) + 1.0
        state = torch.randn(STEPS + 1, ENVS, STATE_WIDTH) - 3.0
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
        for name, value in agent.state_dict()["parameters"].items():
            torch.testing.assert_close(value, reference.leaves[name].detach(), rtol=1e-4, atol=1e-5, msg=name)
