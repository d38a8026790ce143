"""PyTorch PPO: storage and update. The rollout logic is in `workers.agents.ppo`."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from workers.agents import ppo
from workers.agents.learning_rate import adapt_learning_rate
from workers.agents.torch.adam import Adam
from workers.agents.torch.losses import clipped_policy_loss, clipped_value_loss, compute_gae
from workers.agents.torch.masks import legal_on_device
from workers.agents.torch.networks import CategoricalPolicy, GaussianPolicy, Normalizer, perceptron
from workers.agents.torch.workspace import Workspace
from workers.frameworks import load_framework

__all__ = ["PPO"]

R = TypeVar("R")


class PPO(ppo.PPO):
    """Proximal Policy Optimization in PyTorch.

    All randomness comes from torch's global generator: the initial weights, one draw in every `act`, and the orders of
    an update.

    Arguments and errors are those of `workers.agents.ppo.PPO`; ``device`` is a torch device.
    """

    framework = "torch"

    def _build(self) -> None:
        self._workspace = Workspace(self.device)
        with torch.device("cpu"):  # so that a seed gives the same weights on every device
            self._build_models()
        self._adam = Adam(dict(self._models.named_parameters()), self.device)
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

    def _build_rollout(self) -> None:
        def zeros(width: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(self.cfg.rollouts, self.num_envs, width, dtype=dtype, device=self.device)

        self._rollout = {name: zeros(width) for name, width in self._input_widths.items()}
        self._rollout["actions"] = zeros(self._action_width, torch.int64 if self._components else torch.float32)
        self._rollout |= {"rewards": zeros(1), "ended": zeros(1, torch.bool), "acted": ~zeros(1, torch.bool)}
        self._next = torch.zeros_like(self._rollout[self._critic_input][0])  # the critic's raw input after the last row

    # Interaction.

    def _normalize(self, name: str, raw: Tensor) -> Tensor:
        return self._normalizers[name](raw) if name in self._normalizers else raw

    def _denormalize(self, values: Tensor) -> Tensor:
        return self._normalizers["returns"].inverse(values) if "returns" in self._normalizers else values

    def _next_values(self) -> Tensor:
        """Return the values of the observations or states after the last recorded actions, ``(num_envs, 1)``."""
        return self._denormalize(self._value(self._normalize(self._critic_input, self._next)))

    def _head(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        head: Tensor = self._policy(observations) if action_mask is None else self._policy(observations, action_mask)
        return head

    @torch.no_grad()
    def _sample_actions(self, observations: Tensor, action_mask: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor]:
        rows = len(observations)
        self._raw_observations(rows).copy_(observations)
        if action_mask is not None:
            self._legal_actions(rows).copy_(action_mask)
        own, *results = self._workspace.run(self._act, rows, action_mask is not None)
        actions, mean_actions = [tensor.clone() for tensor in results] if self._workspace.captures else results
        return own, actions, mean_actions

    def _legal_on_device(self, mask: Tensor) -> Tensor:
        return legal_on_device(mask, list(map(len, self._components or ())))

    def _act(self, rows: int, is_masked: bool) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the results of `_sample_actions`."""
        observations = self._normalize("observations", self._raw_observations(rows))
        actions, mean_actions = self._policy.sample(
            self._head(observations, self._legal_actions(rows) if is_masked else None)
        )
        if self._action_map is None:
            return None, actions, mean_actions
        return actions, self._mapped(actions), self._mapped(mean_actions)

    def _raw_observations(self, rows: int) -> Tensor:
        return self._workspace.buffer("observations", rows, self._input_widths["observations"])

    def _legal_actions(self, rows: int) -> Tensor:
        return self._workspace.buffer("legal actions", rows, self._head_width, dtype=torch.bool)

    def _mapped(self, actions: Tensor) -> Tensor:
        scale, shift, low, high = self._action_map
        return torch.addcmul(shift, actions, scale).clamp_(low, high)

    def _use_action_map(self, mapping: npt.NDArray[np.float32] | None) -> None:
        self._action_map = None if mapping is None else torch.tensor(mapping, device=self.device).unbind()
        self._workspace.forget_graphs()

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
        if action_mask is not None:
            self._allow_masks()
        for name, mask in (("acted", acted), ("action_mask", action_mask)):
            if not row and name in self._rollout:  # for all rows without a mask
                self._rollout[name].fill_(True)
            if mask is not None:
                arrays[name] = mask
        for name, array in arrays.items():
            self._rollout[name][row].copy_(array)
        self._next.copy_(next_critic_input)
        cut = truncated & ~terminated
        if _may_have_any(cut):
            self._add_next_values(row, cut)

    def _allow_masks(self) -> None:
        """Make room for masks in the rollout."""
        if "action_mask" not in self._rollout:
            shape = (self.cfg.rollouts, self.num_envs, self._head_width)
            self._rollout["action_mask"] = torch.ones(shape, dtype=torch.bool, device=self.device)
            self._workspace.forget_graphs()  # captured without masks

    @torch.no_grad()
    def _cut_rollout(self, row: int) -> None:
        self._add_next_values(row, ~self._rollout["ended"][row])
        self._rollout["ended"][row].fill_(True)

    def _add_next_values(self, row: int, mask: Tensor) -> None:
        self._bootstrapped().copy_(mask)
        values = self._workspace.run(self._masked_next_values)
        self._rollout["rewards"][row].add_(values, alpha=self.cfg.discount_factor)

    def _masked_next_values(self) -> Tensor:
        return self._next_values().where(self._bootstrapped(), 0.0)

    def _bootstrapped(self) -> Tensor:
        return self._workspace.buffer("bootstrapped", self.num_envs, 1, dtype=torch.bool)

    # Update.

    def _acted(self) -> Tensor:
        return self._rollout["acted"].flatten().nonzero()[:, 0]

    def _draw_orders(self) -> Tensor:
        samples = self.cfg.rollouts * self.num_envs
        acted = None if self._all_acted else self._acted()
        count = samples if acted is None else len(acted)
        orders = [torch.randperm(count, device=self.device) for _ in range(self.cfg.learning_epochs)]
        if acted is None or count == samples:
            return torch.stack(orders)
        again = -(-samples // count)
        return torch.stack([acted[order].repeat(again)[:samples] for order in orders])

    @torch.no_grad()
    def _update(self, orders: Tensor) -> dict[str, float]:
        acted = None if self._all_acted else self._acted()
        if acted is not None and len(acted) == orders.shape[1]:
            acted = None
        self._prepare_update(acted)
        self._adam.rate.fill_(self.learning_rate)
        losses = orders.new_empty(3, len(orders) * self.cfg.mini_batches, dtype=torch.float32)
        per_epoch = losses.split(self.cfg.mini_batches, 1)
        divergences = [self._run_epoch(order, part) for order, part in zip(orders, per_epoch, strict=True)]
        for name in self._input_widths:
            if name in self._normalizers:
                self._normalizers[name].update(_rows_of(self._flat(name), acted))
        return self._read_scalars(losses, torch.stack(divergences))

    def _flat(self, name: str) -> Tensor:
        """Return a tensor of the rollout as ``(samples, width)``."""
        return self._rollout[name].flatten(0, 1)

    def _samples(self) -> dict[str, Tensor]:
        """Return the static tensors with all samples of an update, which `_prepare_update` fills."""
        samples, buffer = self.cfg.rollouts * self.num_envs, self._workspace.buffer
        inputs = {
            name: buffer(f"normal {name}", samples, width) if name in self._normalizers else self._flat(name)
            for name, width in self._input_widths.items()
        }
        taken = {name: self._flat(name) for name in ("actions", "action_mask") if name in self._rollout}
        computed = ("log_prob", "values", "targets", "advantages")
        return inputs | taken | {name: buffer(name, samples, 1) for name in computed}

    def _prepare_update(self, acted: Tensor | None) -> None:
        """Compute the samples of an update; weights and statistics have not changed since the start of the rollout.

        Args:
            acted: Indices of the samples whose row acted; None if all did.
        """
        rollout, samples = self._rollout, self._samples()
        for name in self._input_widths:
            if name in self._normalizers:
                samples[name].copy_(self._normalizers[name](self._flat(name)))
        start = 0
        for rows in torch.arange(len(samples["actions"]), device=self.device).tensor_split(self.cfg.mini_batches):
            log_prob, values = self._run_on(rows, self._evaluate)
            stop = start + len(rows)
            samples["log_prob"][start:stop].copy_(log_prob)
            samples["values"][start:stop].copy_(values)
            start = stop
        values = self._denormalize(samples["values"])
        advantages = compute_gae(
            rewards=rollout["rewards"],
            values=values.view_as(rollout["rewards"]),
            last_values=self._next_values(),
            continues=~rollout["ended"],
            acted=None if acted is None else rollout["acted"],
            discount_factor=self.cfg.discount_factor,
            gae_lambda=self.cfg.gae_lambda,
        ).flatten(0, 1)
        targets = advantages + values
        if "returns" in self._normalizers:
            self._normalizers["returns"].update(_rows_of(targets, acted))
            targets = self._normalizers["returns"](targets)
        samples["targets"].copy_(targets)
        std, mean = torch.std_mean(_rows_of(advantages, acted), correction=0)
        samples["advantages"].copy_((advantages - mean) / (std + 1e-8))

    def _run_on(self, rows: Tensor, function: Callable[[int], R]) -> R:
        """Run a function of the mini-batch of some samples."""
        self._mini_batch_rows(len(rows)).copy_(rows)
        return self._workspace.run(function, len(rows))

    def _mini_batch_rows(self, size: int) -> Tensor:
        return self._workspace.buffer("rows", size, dtype=torch.int64)

    def _mini_batch(self, size: int) -> dict[str, Tensor]:
        rows = self._mini_batch_rows(size)
        return {name: tensor.index_select(0, rows) for name, tensor in self._samples().items()}

    def _evaluate(self, size: int) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and values of a mini-batch before the update, both ``(size, 1)``."""
        batch = self._mini_batch(size)
        head = self._head(batch["observations"], batch.get("action_mask"))
        return self._policy.log_prob(head, batch["actions"]), self._value(batch[self._critic_input])

    def _run_epoch(self, order: Tensor, losses: Tensor) -> Tensor:
        """Run one pass over all mini-batches, and adapt the learning rate.

        Args:
            order: Order of the samples.
            losses: Gets the losses of each mini-batch: policy, value and entropy, ``(3, mini_batches)``.

        Returns:
            The KL divergence ``mean((exp(r) - 1) - r)``, with r the logarithm of the probability ratio.
        """
        log_ratios = self._workspace.buffer("log ratios", len(order), 1)
        parts = order.tensor_split(self.cfg.mini_batches)
        for rows, part, loss in zip(parts, log_ratios.tensor_split(len(parts)), losses.unbind(1), strict=True):
            log_ratio, mini_batch_losses = self._run_on(rows, self._learn)
            part.copy_(log_ratio)
            loss.copy_(mini_batch_losses)
        divergence = (log_ratios.expm1() - log_ratios).mean()
        if self.cfg.kl_threshold:
            rate = self._adam.rate
            rate.copy_(adapt_learning_rate(rate, divergence.double(), self.cfg.kl_threshold, torch.where))
        return divergence

    def _learn(self, size: int) -> tuple[Tensor, Tensor]:
        """Take an Adam step on a mini-batch.

        Returns:
            The logarithms of the probability ratios, ``(size, 1)``, and the losses, ``(3,)``: policy, value, entropy.
        """
        cfg, batch = self.cfg, self._mini_batch(size)
        with torch.enable_grad():
            head = self._head(batch["observations"], batch.get("action_mask"))
            log_ratio = self._policy.log_prob(head, batch["actions"]) - batch["log_prob"]
            policy_loss = clipped_policy_loss(log_ratio.exp(), batch["advantages"], cfg.ratio_clip)
            values = self._value(batch[self._critic_input])
            value_loss = clipped_value_loss(values, batch["targets"], batch["values"], cfg.value_clip)
            losses = [policy_loss, cfg.value_loss_scale * value_loss]
            if cfg.entropy_loss_scale:
                losses.append(-cfg.entropy_loss_scale * self._policy.entropy(head))
            grads = torch.autograd.grad(functools.reduce(torch.add, losses), self._adam.parameters)
        self._adam.step(grads, cfg.grad_norm_clip or math.inf)
        nothing = [torch.zeros_like(policy_loss)] * (3 - len(losses))
        return log_ratio.detach(), torch.stack([loss.detach() for loss in losses + nothing])

    def _read_scalars(self, losses: Tensor, divergences: Tensor) -> dict[str, float]:
        """Return the scalars to track, and set `learning_rate`: here alone an update waits for the device."""
        tags = ["Loss / Policy loss", "Loss / Value loss"] + ["Loss / Entropy loss"] * bool(self.cfg.entropy_loss_scale)
        scalars = {tag: row.mean() for tag, row in zip(tags, losses, strict=False)}
        scalars["Policy / KL divergence"] = divergences.mean()
        if isinstance(self._policy, GaussianPolicy):
            scalars["Policy / Standard deviation"] = self._policy.log_std.exp().mean()
        *values, rate = torch.stack([value.double() for value in (*scalars.values(), self._adam.rate)]).tolist()
        if self.cfg.kl_threshold:
            self.learning_rate = rate
        return dict(zip(scalars, values, strict=True))

    # Saving.

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes; those of an agent on a GPU such that a process without one can read them."""
        if self.device.type == "cpu":
            return vars(self)
        import cloudpickle  # classes of a user's script are pickled by value

        with io.BytesIO() as file:
            torch.save(vars(self), file, pickle_module=cloudpickle)
            return {"device": str(self.device), "saved": file.getvalue()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the result of `__getstate__`, on the same device if there is one."""
        if "saved" not in state:
            vars(self).update(state)
            return
        device = load_framework("torch").find_device_or_default(state["device"])
        vars(self).update(torch.load(io.BytesIO(state["saved"]), map_location=device, weights_only=False))
        self.device, self._workspace = device, Workspace(device)
        self._adam.use_device(device)

    def _state(self) -> dict[str, Any]:
        models = {name: tensor.clone() for name, tensor in self._models.state_dict().items()}
        return {"models": models, "optimizer": self._adam.state()}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._models.load_state_dict({name: torch.tensor(array) for name, array in state["models"].items()})
        self._adam.load(state["optimizer"])

    def _progress(self) -> dict[str, Any]:
        return {"rollout": self._rollout, "next": self._next}

    def _resume(self, state: Mapping[str, Any]) -> None:
        if "action_mask" in state["rollout"]:
            self._allow_masks()
        elif self._rollout.pop("action_mask", None) is not None:
            self._workspace.forget_graphs()
        for name, tensor in self._rollout.items():  # in place: graphs may have been captured with them
            tensor.copy_(torch.tensor(state["rollout"][name]))
        self._next.copy_(torch.tensor(state["next"]))


def _may_have_any(mask: Tensor) -> bool:
    """Return whether a mask may have a True: it is looked at on a CPU only, where that may save work."""
    return not mask.is_cpu or bool(mask.any())


def _rows_of(samples: Tensor, rows: Tensor | None) -> Tensor:
    """Return some rows; all of them if `rows` is None."""
    return samples if rows is None else samples[rows]
