"""PPO's update in NumPy's float64, with hand-written gradients: the reference for the agents of every framework."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.agents.base import discrete_components
from workers.agents.learning_rate import adapt_learning_rate
from workers.agents.ppo import PPO, PPOCfg

Array = npt.NDArray[np.float64]
Arrays = dict[str, Array]

# each activation, and its derivative as a function of its value
ACTIVATIONS: dict[str, tuple[Any, Any]] = {
    "tanh": (np.tanh, lambda y: 1.0 - y**2),
    "relu": (lambda x: np.maximum(x, 0.0), lambda y: np.where(y > 0.0, 1.0, 0.0)),
    "elu": (lambda x: np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0))), lambda y: np.where(y > 0.0, 1.0, y + 1.0)),
}


def forward(weights: Arrays, name: str, activation: str, inputs: npt.NDArray[Any]) -> list[Array]:
    """Return the inputs of every layer of the network `name`, and its outputs last."""
    values, index = [inputs], 0
    while (layer := f"{name}.{index}") + ".weight" in weights:
        if index:
            values[-1] = ACTIVATIONS[activation][0](values[-1])
        values.append(values[-1] @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"])
        index += 2
    return values


def backward(weights: Arrays, name: str, activation: str, values: list[Array], grad: Array) -> Arrays:
    """Return the gradients of the network's weights from that of its outputs; `values` come from `forward`."""
    grads: Arrays = {}
    for index in reversed(range(len(values) - 1)):
        layer = f"{name}.{2 * index}"
        grads |= {f"{layer}.weight": grad.T @ values[index], f"{layer}.bias": grad.sum(0)}
        grad = grad @ weights[f"{layer}.weight"] * ACTIVATIONS[activation][1](values[index])
    return grads


def gaussian(head: Array, actions: Array, log_std: Array) -> dict[str, Any]:
    """Return log-probabilities ``(rows,)`` and mean entropy, with their derivatives by the means and by `log_std`."""
    scores = (actions - head) / np.exp(log_std)
    return {
        "log_prob": -(0.5 * scores**2 + log_std + 0.5 * math.log(2.0 * math.pi)).sum(1),
        "log_prob_by_head": scores / np.exp(log_std),
        "log_prob_by_log_std": scores**2 - 1.0,
        "entropy": (log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum(),
        "entropy_by_head": np.zeros_like(head),
        "entropy_by_log_std": np.ones_like(log_std),
    }


def categorical(head: Array, actions: npt.NDArray[Any], components: Sequence[range]) -> dict[str, Any]:
    """Return the same for independent components, with derivatives by the logits."""
    log_prob, entropy, by_head, entropy_by_head = np.zeros(len(head)), np.zeros(len(head)), [], []
    parts = np.split(head, np.cumsum([len(values) for values in components])[:-1], 1)
    for part, values, column in zip(parts, components, actions.T, strict=True):
        shifted = part - part.max(1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        probs, chosen = np.exp(log_probs), np.eye(len(values))[column - values.start]
        each_entropy = -(probs * log_probs).sum(1, keepdims=True)
        log_prob += (log_probs * chosen).sum(1)
        entropy += each_entropy[:, 0]
        by_head.append(chosen - probs)
        entropy_by_head.append(-probs * (log_probs + each_entropy) / len(head))
    return {
        "log_prob": log_prob,
        "log_prob_by_head": np.concatenate(by_head, 1),
        "entropy": entropy.mean(),
        "entropy_by_head": np.concatenate(entropy_by_head, 1),
    }


class Reference:
    """Reference for what an agent of any framework learns, starting from its initial state.

    Args:
        agent: The agent; only its configuration and spaces are read.
        state: Its initial `state_dict`, as NumPy arrays.
    """

    def __init__(self, agent: PPO, state: dict[str, Any]) -> None:
        self.cfg: PPOCfg = agent.cfg
        self.components = discrete_components(agent.action_space)
        self.critic_input = "observations" if agent.state_space is None else "states"
        models = {name: value.astype(np.float64) for name, value in state["models"].items()}
        self.weights: Arrays = {name: value for name, value in models.items() if not name.startswith("normalizers.")}
        self.exp_avg = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.exp_avg_sq = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.steps = 0
        self.learning_rate = agent.cfg.learning_rate
        self.seen: dict[str, list[Array]] = {"observations": [], "states": [], "returns": []}

    def state(self) -> dict[str, Any]:
        """Return the expected `state_dict` of the agent."""
        models: dict[str, Any] = dict(self.weights)
        for name, rows in self.seen.items():
            if self.normalizes(name) and rows:
                seen = np.concatenate(rows)
                models |= {f"normalizers.{name}.mean": seen.mean(0), f"normalizers.{name}.variance": seen.var(0)}
                models[f"normalizers.{name}.count"] = len(seen)
        optimizer = {"step": self.steps, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {"models": models, "optimizer": optimizer, "learning_rate": self.learning_rate}

    # Networks.

    def normalizes(self, name: str) -> bool:
        """Return whether `name` (observations, states or returns) is normalised."""
        return self.cfg.normalize_values if name == "returns" else self.cfg.normalize_observations

    def moments(self, name: str) -> tuple[Array | float, Array | float]:
        """Return the mean and standard deviation that normalise `name` at present."""
        if not self.normalizes(name) or not self.seen[name]:
            return 0.0, 1.0
        everything = np.concatenate(self.seen[name])
        return everything.mean(0), np.sqrt(everything.var(0) + 1e-8)

    def normal(self, name: str, raw: npt.NDArray[Any]) -> Array:
        """Return observations or states as the networks see them."""
        mean, std = self.moments(name)
        raw = raw.astype(np.float64)
        return np.clip((raw - mean) / std, -10.0, 10.0) if self.normalizes(name) else raw

    def policy(self, batch: dict[str, Any]) -> tuple[dict[str, Any], list[Array]]:
        """Return the distribution of the actions, and the values of the network's layers."""
        actions, values = (
            batch["actions"],
            forward(self.weights, "policy.network", self.cfg.activation, batch["observations"]),
        )
        if self.components:
            head = np.where(batch["action_mask"], values[-1], -1e300) if "action_mask" in batch else values[-1]
            return categorical(head, actions, self.components), values
        return gaussian(values[-1], actions, self.weights["policy.log_std"]), values

    def outputs(self, inputs: Array) -> Array:
        """Return the critic's outputs, ``(rows,)``."""
        return forward(self.weights, "value", self.cfg.activation, inputs)[-1][:, 0]

    def values(self, raw: npt.NDArray[Any]) -> Array:
        """Return the critic's values in units of the rewards, ``(timesteps, num_envs)``.

        Args:
            raw: Its inputs, ``(timesteps, num_envs, size)``.
        """
        mean, std = self.moments("returns")
        outputs = self.outputs(self.normal(self.critic_input, raw.reshape(-1, raw.shape[-1])))
        return (outputs * std + mean).reshape(raw.shape[:2])

    # Update.

    def advantages(self, rollout: dict[str, npt.NDArray[Any]]) -> Array:
        """Return generalized advantages ``(timesteps, num_envs)``, from the true next values where an episode was cut.

        A transition of an environment begins where the environment acts, and includes everything before the next one.
        """
        cfg, values = self.cfg, self.values(rollout[self.critic_input])
        next_values = self.values(rollout[f"next_{self.critic_input}"])
        acted, advantages = self.acted(rollout), np.zeros_like(values)
        for env in range(values.shape[1]):
            transitions: list[dict[str, Any]] = []
            for t in range(len(values)):
                if acted[t, env]:
                    transitions.append({"at": t, "reward": 0.0, "open": True, "cut": False, "next": None})
                last = transitions[-1] if transitions else {"open": False}
                if last["open"]:
                    last["reward"] += rollout["rewards"][t, env, 0]
                    if rollout["terminated"][t, env, 0]:
                        last |= {"open": False, "cut": True, "next": 0.0}
                    elif rollout["truncated"][t, env, 0]:
                        last |= {"open": False, "cut": True, "next": next_values[t, env]}
            following, advantage = next_values[-1, env], 0.0
            for each in reversed(transitions):
                after = each["next"] if each["cut"] else following
                value = values[each["at"], env]
                later = 0.0 if each["cut"] else cfg.gae_lambda * advantage
                advantage = each["reward"] + cfg.discount_factor * (after + later) - value
                advantages[each["at"], env], following = advantage, value
        return advantages

    @staticmethod
    def acted(rollout: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
        """Return which rows acted, ``(timesteps, num_envs)``."""
        return rollout.get("acted", np.ones_like(rollout["terminated"]))[..., 0]

    def samples(self, rollout: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Return the samples for the mini-batches, and update the statistics of the returns."""
        names = dict.fromkeys(("observations", self.critic_input))
        given = [name for name in ("actions", "action_mask") if name in rollout]
        flat = {name: rollout[name].reshape(-1, rollout[name].shape[-1]) for name in (*names, *given)}
        samples = {name: self.normal(name, flat[name]) for name in names} | {name: flat[name] for name in given}
        samples["log_prob"] = self.policy(samples)[0]["log_prob"]
        samples["values"] = self.outputs(samples[self.critic_input])
        advantages = self.advantages(rollout)
        returns = (advantages + self.values(rollout[self.critic_input])).reshape(-1)
        acted = self.acted(rollout)
        self.seen["returns"].append(returns[acted.reshape(-1), None])
        mean, std = self.moments("returns")
        samples["targets"] = (returns - mean) / std
        own = advantages[acted]
        samples["advantages"] = ((advantages - own.mean()) / (own.std() + 1e-8)).reshape(-1)
        return samples

    def gradients(self, batch: dict[str, Any]) -> tuple[dict[str, float], Arrays, Array]:
        """Return losses by tag, gradients of their sum, and the logarithms of the probability ratios."""
        cfg, rows = self.cfg, len(batch["advantages"])
        policy, layers = self.policy(batch)
        log_ratio = policy["log_prob"] - batch["log_prob"]
        ratio, advantages = np.exp(log_ratio), batch["advantages"]
        clipped = np.clip(ratio, 1.0 - cfg.ratio_clip, 1.0 + cfg.ratio_clip) * advantages
        losses = {"Loss / Policy loss": -np.minimum(ratio * advantages, clipped).mean()}
        by_log_prob = (np.where(ratio * advantages <= clipped, -ratio * advantages, 0.0) / rows)[:, None]
        by_head = by_log_prob * policy["log_prob_by_head"] - cfg.entropy_loss_scale * policy["entropy_by_head"]
        grads = backward(self.weights, "policy.network", cfg.activation, layers, by_head)
        if not self.components:
            grads["policy.log_std"] = (by_log_prob * policy["log_prob_by_log_std"]).sum(0)
            grads["policy.log_std"] -= cfg.entropy_loss_scale * policy["entropy_by_log_std"]
        if cfg.entropy_loss_scale:
            losses["Loss / Entropy loss"] = -cfg.entropy_loss_scale * policy["entropy"]
        layers = forward(self.weights, "value", cfg.activation, batch[self.critic_input])
        values, old, targets = layers[-1][:, 0], batch["values"], batch["targets"]
        near = np.clip(values, old - cfg.value_clip, old + cfg.value_clip) if cfg.value_clip else values
        errors, near_errors = (values - targets) ** 2, (near - targets) ** 2
        losses["Loss / Value loss"] = cfg.value_loss_scale * np.maximum(errors, near_errors).mean()
        by_value = cfg.value_loss_scale * np.where(errors >= near_errors, 2.0 * (values - targets), 0.0) / rows
        grads |= backward(self.weights, "value", cfg.activation, layers, by_value[:, None])
        return losses, grads, log_ratio

    def step(self, grads: Arrays) -> None:
        """Do one step of Adam with clipped gradients (https://arxiv.org/abs/1412.6980, algorithm 1)."""
        norm = math.sqrt(sum((grad**2).sum() for grad in grads.values()))
        scale = min(1.0, self.cfg.grad_norm_clip / (norm + 1e-6)) if self.cfg.grad_norm_clip else 1.0
        self.steps += 1
        for name, grad in grads.items():
            self.exp_avg[name] = 0.9 * self.exp_avg[name] + 0.1 * scale * grad
            self.exp_avg_sq[name] = 0.999 * self.exp_avg_sq[name] + 0.001 * (scale * grad) ** 2
            mean = self.exp_avg[name] / (1.0 - 0.9**self.steps)
            square = self.exp_avg_sq[name] / (1.0 - 0.999**self.steps)
            self.weights[name] = self.weights[name] - self.learning_rate * mean / (np.sqrt(square) + 1e-8)

    def learn(self, rollout: dict[str, npt.NDArray[Any]], orders: npt.NDArray[Any]) -> dict[str, float]:
        """Do one update.

        Args:
            rollout: Arguments of `record_transition` by name, ``(timesteps, num_envs, size)`` each.
            orders: Order of the samples in each epoch, ``(learning_epochs, samples)``.

        Returns:
            The scalars to track.
        """
        samples = self.samples(rollout)
        tracked: dict[str, list[float]] = {}
        for order in orders:
            log_ratios = []
            for rows in np.array_split(order, self.cfg.mini_batches):
                losses, grads, log_ratio = self.gradients({name: value[rows] for name, value in samples.items()})
                self.step(grads)
                log_ratios.append(log_ratio)
                for tag, loss in losses.items():
                    tracked.setdefault(tag, []).append(loss)
            log_ratio = np.concatenate(log_ratios)
            kl = float((np.expm1(log_ratio) - log_ratio).mean())
            tracked.setdefault("Policy / KL divergence", []).append(kl)
            if self.cfg.kl_threshold:
                self.learning_rate = adapt_learning_rate(self.learning_rate, kl, self.cfg.kl_threshold, np.where)
        for name in ("observations", "states"):
            if name in rollout:
                self.seen[name].append(rollout[name][self.acted(rollout)].astype(np.float64))
        scalars = {tag: float(np.mean(values)) for tag, values in tracked.items()}
        scalars["Learning / Learning rate"] = self.learning_rate
        if not self.components:
            scalars["Policy / Standard deviation"] = float(np.exp(self.weights["policy.log_std"]).mean())
        return scalars
