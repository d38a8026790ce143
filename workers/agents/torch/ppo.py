"""PyTorch PPO: storage and update. The rollout logic is in `workers.agents.ppo`."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from workers.agents import ppo
from workers.agents.learning_rate import run_epochs
from workers.agents.torch.losses import clipped_policy_loss, clipped_value_loss, compute_gae
from workers.agents.torch.networks import CategoricalPolicy, GaussianPolicy, Normalizer, perceptron

__all__ = ["PPO"]

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Torch's names of Adam's moments."""


class PPO(ppo.PPO):
    """Proximal Policy Optimization in PyTorch.

    All randomness comes from torch's global generator: the initial weights, one draw in every `act`, and the orders of
    an update.

    Arguments and errors are those of `workers.agents.ppo.PPO`; ``device`` is a torch device.
    """

    framework = "torch"

    def _build(self) -> None:
        self._build_models()
        self._build_rollout()

    def _build_models(self) -> None:
        cfg, hidden, widths = self.cfg, self.cfg.hidden_sizes, self._input_widths
        network = perceptron((widths["observations"], *hidden, self._head_width), cfg.activation, head_gain=0.01)
        self._policy: CategoricalPolicy | GaussianPolicy
        if self._components:
            self._policy = CategoricalPolicy(network, self._components)
        else:
            self._policy = GaussianPolicy(network, self._action_width, cfg.initial_log_std)
        self._value = perceptron((widths[self._critic_input], *hidden, 1), cfg.activation, head_gain=1.0)
        self._normalizers: dict[str, Normalizer] = {}
        if cfg.normalize_observations:
            self._normalizers = {name: Normalizer(width, ppo.INPUT_LIMIT) for name, width in widths.items()}
        if cfg.normalize_values:
            self._normalizers["returns"] = Normalizer(1)
        modules = {"policy": self._policy, "value": self._value, "normalizers": nn.ModuleDict(self._normalizers)}
        self._models = nn.ModuleDict(modules).to(self.device)
        self._named_parameters = dict(self._models.named_parameters())
        self._parameters: list[Tensor] = list(self._named_parameters.values())
        # torch.optim.Adam would import torch's compiler, which takes as long as importing torch itself
        self._moments = {kind: [torch.zeros_like(one) for one in self._parameters] for kind in MOMENTS}
        self._steps = [torch.zeros((), device=self.device) for _ in self._parameters]

    def _build_rollout(self) -> None:
        def zeros(width: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(self.cfg.rollouts, self.num_envs, width, dtype=dtype, device=self.device)

        self._rollout = {name: zeros(width) for name, width in self._input_widths.items()}
        self._rollout["actions"] = zeros(self._action_width, torch.int64 if self._components else torch.float32)
        self._rollout |= {"rewards": zeros(1), "ended": zeros(1, torch.bool), "acted": ~zeros(1, torch.bool)}
        self._next = torch.zeros_like(self._rollout[self._critic_input][0])  # the critic's raw input after the last row
        self._scalars: dict[str, list[Tensor]] = {}  # scalars of the update in progress, by tag

    # Interaction.

    def _network_input(self, name: str, raw: Tensor) -> Tensor:
        """Return normalised observations or states, as a copy whose memory layout does not depend on `raw`."""
        inputs = raw.to(self.device, torch.float32, copy=True, memory_format=torch.contiguous_format)
        return self._normalizers[name](inputs) if name in self._normalizers else inputs

    def _denormalize(self, values: Tensor) -> Tensor:
        return self._normalizers["returns"].inverse(values) if "returns" in self._normalizers else values

    def _next_values(self) -> Tensor:
        """Return the values of the observations or states after the last recorded actions, ``(num_envs, 1)``."""
        return self._denormalize(self._value(self._network_input(self._critic_input, self._next)))

    def _head(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        head: Tensor = self._policy(observations) if action_mask is None else self._policy(observations, action_mask)
        return head

    @torch.no_grad()
    def _sample_actions(self, observations: Tensor, action_mask: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor]:
        legal = None if action_mask is None else action_mask.to(self.device)
        head = self._head(self._network_input("observations", observations), legal)
        actions, mean_actions = self._policy.sample(head)
        if self._action_map is None:
            return None, actions, mean_actions
        return actions, self._mapped(actions), self._mapped(mean_actions)

    def _mapped(self, actions: Tensor) -> Tensor:
        scale, shift, low, high = self._action_map
        return torch.addcmul(shift, actions, scale).clamp_(low, high)

    def _use_action_map(self, mapping: npt.NDArray[np.float32] | None) -> None:
        self._action_map = None if mapping is None else torch.tensor(mapping, device=self.device).unbind()

    @torch.no_grad()
    def _store_transition(
        self,
        row: int,
        *,
        inputs: dict[str, Tensor],
        next_critic_input: Tensor,
        actions: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        acted: Tensor | None,
        action_mask: Tensor | None,
    ) -> None:
        terminated, truncated = terminated.bool(), truncated.bool()  # other libraries may give 0 and 1
        arrays = inputs | {"actions": actions, "rewards": rewards, "ended": terminated | truncated}
        if action_mask is not None and "action_mask" not in self._rollout:
            shape = (self.cfg.rollouts, *action_mask.shape)
            self._rollout["action_mask"] = torch.ones(shape, dtype=torch.bool, device=self.device)
        for name, mask in (("acted", acted), ("action_mask", action_mask)):
            if mask is not None:
                arrays[name] = mask
            elif name in self._rollout:
                self._rollout[name][row].fill_(True)
        for name, array in arrays.items():
            self._rollout[name][row].copy_(array)
        self._next.copy_(next_critic_input)
        if truncated.any():
            self._add_next_values(row, truncated & ~terminated)

    @torch.no_grad()
    def _cut_rollout(self, row: int) -> None:
        self._add_next_values(row, ~self._rollout["ended"][row])
        self._rollout["ended"][row].fill_(True)

    def _add_next_values(self, row: int, mask: Tensor) -> None:
        values = self._next_values().where(mask.to(self.device), 0.0)
        self._rollout["rewards"][row].add_(values, alpha=self.cfg.discount_factor)

    # Update.

    def _acted(self) -> Tensor:
        return self._rollout["acted"].flatten().nonzero()[:, 0]

    def _draw_orders(self) -> Tensor:
        acted, samples = self._acted(), self.cfg.rollouts * self.num_envs
        orders = [torch.randperm(len(acted), device=self.device) for _ in range(self.cfg.learning_epochs)]
        if len(acted) == samples:
            return torch.stack(orders)
        again = -(-samples // len(acted))
        return torch.stack([acted[order].repeat(again)[:samples] for order in orders])

    def _acted_rows(self, samples: Tensor) -> Tensor:
        """Select the samples whose row acted."""
        acted = self._acted()
        return samples if len(acted) == len(samples) else samples[acted]

    def _update(self, orders: Tensor) -> dict[str, float]:
        samples = self._prepare_update()

        def run_epoch(epoch: int, learning_rate: float) -> Tensor:
            return self._run_epoch(samples, orders[epoch], learning_rate)

        self.learning_rate = run_epochs(self.cfg, self.learning_rate, run_epoch)
        return self._finish_update()

    @torch.no_grad()
    def _prepare_update(self) -> dict[str, Tensor]:
        """Compute the samples of an update; weights and statistics have not changed since the start of the rollout."""
        rollout = self._rollout
        samples = {name: self._network_input(name, rollout[name].flatten(0, 1)) for name in self._input_widths}
        samples |= {name: rollout[name].flatten(0, 1) for name in ("actions", "action_mask") if name in rollout}
        log_probs, outputs = [], []
        for batch in self._mini_batches(samples, torch.arange(len(samples["actions"]), device=self.device)):
            head = self._head(batch["observations"], batch.get("action_mask"))
            log_probs.append(self._policy.log_prob(head, batch["actions"]))
            outputs.append(self._value(batch[self._critic_input]))
        samples["log_prob"], samples["values"] = torch.cat(log_probs), torch.cat(outputs)
        values = self._denormalize(samples["values"])
        advantages = compute_gae(
            rewards=rollout["rewards"],
            values=values.view_as(rollout["rewards"]),
            last_values=self._next_values(),
            continues=~rollout["ended"],
            acted=rollout["acted"],
            discount_factor=self.cfg.discount_factor,
            gae_lambda=self.cfg.gae_lambda,
        ).flatten(0, 1)
        samples["targets"] = advantages + values
        if "returns" in self._normalizers:
            self._normalizers["returns"].update(self._acted_rows(samples["targets"]))
            samples["targets"] = self._normalizers["returns"](samples["targets"])
        std, mean = torch.std_mean(self._acted_rows(advantages), correction=0)
        samples["advantages"] = (advantages - mean) / (std + 1e-8)
        return samples

    def _mini_batches(self, samples: dict[str, Tensor], order: Tensor) -> Iterator[dict[str, Tensor]]:
        for rows in order.tensor_split(self.cfg.mini_batches):
            yield {name: tensor.index_select(0, rows) for name, tensor in samples.items()}

    @torch.enable_grad()
    def _run_epoch(self, samples: dict[str, Tensor], order: Tensor, learning_rate: float) -> Tensor:
        """Run one pass over all mini-batches; return the KL divergence ``mean((exp(r) - 1) - r)``, r the log ratio."""
        log_ratios = []
        for batch in self._mini_batches(samples, order):
            loss, log_ratio = self._loss(batch)
            self._step(torch.autograd.grad(loss, self._parameters), learning_rate)
            log_ratios.append(log_ratio)
        log_ratio = torch.cat(log_ratios)
        kl = (log_ratio.expm1() - log_ratio).mean()
        self._track("Policy / KL divergence", kl)
        return kl

    def _loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss of a mini-batch and the logarithms of the probability ratios."""
        cfg = self.cfg
        head = self._head(batch["observations"], batch.get("action_mask"))
        log_ratio = self._policy.log_prob(head, batch["actions"]) - batch["log_prob"]
        policy_loss = clipped_policy_loss(log_ratio.exp(), batch["advantages"], cfg.ratio_clip)
        values = self._value(batch[self._critic_input])
        value_loss = clipped_value_loss(values, batch["targets"], batch["values"], cfg.value_clip)
        losses = {"Loss / Policy loss": policy_loss, "Loss / Value loss": cfg.value_loss_scale * value_loss}
        if cfg.entropy_loss_scale:
            losses["Loss / Entropy loss"] = -cfg.entropy_loss_scale * self._policy.entropy(head)
        for tag, loss in losses.items():
            self._track(tag, loss.detach())
        return functools.reduce(torch.add, losses.values()), log_ratio.detach()

    @torch.no_grad()
    def _step(self, grads: tuple[Tensor, ...], learning_rate: float) -> None:
        """Take an Adam step with gradients clipped as by `clip_grad_norm_`, which would need more calls."""
        limit = self.cfg.grad_norm_clip or math.inf
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        adam(
            self._parameters,
            [grad * scale for grad in grads],
            self._moments["exp_avg"],
            self._moments["exp_avg_sq"],
            max_exp_avg_sqs=[],
            state_steps=self._steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def _track(self, tag: str, value: Tensor) -> None:
        """Keep a scalar on the device; scalars are read only at the end of the update."""
        self._scalars.setdefault(tag, []).append(value)

    @torch.no_grad()
    def _finish_update(self) -> dict[str, float]:
        """Update the statistics of the inputs and return the scalars to track."""
        for name in self._input_widths:
            if name in self._normalizers:
                self._normalizers[name].update(self._acted_rows(self._rollout[name].flatten(0, 1)))
        scalars = {tag: float(torch.stack(values).mean()) for tag, values in self._scalars.items()}
        self._scalars = {}
        if isinstance(self._policy, GaussianPolicy):
            scalars["Policy / Standard deviation"] = float(self._policy.log_std.exp().mean())
        return scalars

    # Saving.

    def _state(self) -> dict[str, Any]:
        models = {name: tensor.clone() for name, tensor in self._models.state_dict().items()}
        moments = {
            kind: {name: tensor.clone() for name, tensor in zip(self._named_parameters, tensors, strict=True)}
            for kind, tensors in self._moments.items()
        }
        return {"models": models, "optimizer": {"step": int(self._steps[0]), **moments}}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._models.load_state_dict({name: torch.tensor(array) for name, array in state["models"].items()})
        for kind, tensors in self._moments.items():
            for name, tensor in zip(self._named_parameters, tensors, strict=True):
                tensor.copy_(torch.tensor(state["optimizer"][kind][name]))
        for step in self._steps:
            step.fill_(float(state["optimizer"]["step"]))

    def _progress(self) -> dict[str, Any]:
        return {"rollout": self._rollout, "next": self._next}

    def _resume(self, state: Mapping[str, Any]) -> None:
        self._rollout = {name: torch.tensor(array, device=self.device) for name, array in state["rollout"].items()}
        self._next.copy_(torch.tensor(state["next"]))
