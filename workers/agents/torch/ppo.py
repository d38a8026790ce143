"""PyTorch PPO: storage and update. The rollout logic is in `workers.agents.ppo`."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

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
from workers.frameworks import Reading, load_framework

__all__ = ["PPO"]


class PPO(ppo.PPO):
    """Proximal Policy Optimization in PyTorch.

    All randomness comes from torch's global generators: the initial weights from that of the CPU; one draw in every
    `act`, and the orders of an update, from that of the device. On a GPU, acting with `num_envs` rows, the end of a
    transition and an update are captured as CUDA graphs, with the values of ``cfg`` in them.

    Arguments and errors are those of `workers.agents.ppo.PPO`; ``device`` is a torch device.
    """

    framework = "torch"

    def _build(self) -> None:
        self._workspace = Workspace(self.device)
        self._no_grad = self._framework.no_grad()
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
        # of the last row: terminated, truncated
        self._flags = [torch.zeros_like(self._rollout["ended"][0]) for _ in range(2)]
        self._row = torch.zeros(1, dtype=torch.int64, device=self.device)  # the last row

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

    def _sample_actions(self, observations: Tensor, action_mask: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor]:
        rows, workspace, policy = len(observations), self._workspace, self._policy
        with self._no_grad:
            if not workspace.captures or rows != self.num_envs:  # else each number of rows would have its own memory
                copy = self._own_copy(observations)
                noise = policy.draw(copy.new_empty(rows, policy.noise_width))
                return self._act(copy, noise, None if action_mask is None else action_mask.to(self.device))
            given, noise, legal = self._acting_buffers()
            given.copy_(observations)
            policy.draw(noise)
            if action_mask is not None:
                legal.copy_(action_mask)
            own, *results = workspace.run(self._act_again, action_mask is not None)
            actions, mean_actions = workspace.kept(results)
        return own, actions, mean_actions

    def _mean_actions(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        with self._no_grad:
            copy = self._own_copy(observations)
            stillness = copy.new_ones(len(copy), self._policy.noise_width)  # in place of noise: nothing is drawn
            return self._act(copy, stillness, None if action_mask is None else action_mask.to(self.device))[2]

    def _own_copy(self, observations: Tensor) -> Tensor:
        """Return a float32 copy on the device, whose memory layout does not depend on what was given."""
        return observations.to(self.device, torch.float32, copy=True, memory_format=torch.contiguous_format)

    def _acting_buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the static tensors for observations, noise and legal actions."""
        buffer, rows = self._workspace.buffer, self.num_envs
        noise = buffer("noise", rows, self._policy.noise_width)
        legal = buffer("legal", rows, self._head_width, dtype=torch.bool)
        return buffer("observations", rows, self._input_widths["observations"]), noise, legal

    def _act_again(self, is_masked: bool) -> tuple[Tensor | None, Tensor, Tensor]:
        observations, noise, legal = self._acting_buffers()
        return self._act(observations, noise, legal if is_masked else None)

    def _legal_on_device(self, mask: Tensor) -> Tensor:
        return legal_on_device(mask, list(map(len, self._components or ())))

    def _act(self, observations: Tensor, noise: Tensor, legal: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the results of `_sample_actions` for float32 observations."""
        head = self._head(self._normalize("observations", observations), legal)
        actions, mean_actions = self._policy.sample(head, noise)
        if self._action_map is None:
            return None, actions, mean_actions
        return actions, self._mapped(actions), self._mapped(mean_actions)

    def _mapped(self, actions: Tensor) -> Tensor:
        scale, shift, low, high = self._action_map
        return torch.addcmul(shift, actions, scale).clamp_(low, high)

    def _use_action_map(self, mapping: npt.NDArray[np.float32] | None) -> None:
        if mapping is not None and self._action_map is not None:
            torch._foreach_copy_(self._action_map, list(torch.tensor(mapping)))
            return
        self._action_map = None if mapping is None else list(torch.tensor(mapping, device=self.device))
        self._workspace.forget_graphs()

    def _forget_compiled(self) -> None:
        self._workspace.forget_graphs()

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
        rollout = self._rollout
        if action_mask is not None:
            self._allow_masks()
        arrays = inputs | {"actions": actions, "rewards": rewards}
        for name, mask in (("acted", acted), ("action_mask", action_mask)):
            if not row and name in rollout:  # for all rows without a mask
                rollout[name].fill_(True)
            if mask is not None:
                arrays[name] = mask
        given = [*arrays.values(), next_critic_input, terminated, truncated]
        with self._no_grad:
            self._workspace.copy([*(rollout[name][row] for name in arrays), self._next, *self._flags], given)
            self._row.fill_(row)
            self._workspace.run(self._end_transition, _may_have_any(truncated))

    def _end_transition(self, may_be_cut: bool) -> None:
        """Record which episodes ended, and add the discounted next values to the rewards of those that were cut off."""
        row, (terminated, truncated) = self._row, self._flags
        self._rollout["ended"].index_copy_(0, row, (terminated | truncated)[None])
        if may_be_cut:
            values = self._next_values().where(truncated & ~terminated, 0.0)
            self._rollout["rewards"].index_add_(0, row, values[None], alpha=self.cfg.discount_factor)

    def _allow_masks(self) -> None:
        """Make room for masks in the rollout."""
        if "action_mask" not in self._rollout:
            shape = (self.cfg.rollouts, self.num_envs, self._head_width)
            self._rollout["action_mask"] = torch.ones(shape, dtype=torch.bool, device=self.device)
            self._workspace.forget_graphs()  # captured without masks

    def _cut_rollout(self, row: int) -> None:
        ended = self._rollout["ended"][row]
        with self._no_grad:
            values = self._next_values().where(~ended, 0.0)
            self._rollout["rewards"][row].add_(values, alpha=self.cfg.discount_factor)
            ended.fill_(True)

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
    def _update(self, orders: Tensor) -> Callable[[], dict[str, float]]:
        acted = None if self._all_acted else self._acted()
        if acted is None or len(acted) == orders.shape[1]:
            self._workspace.run(self._prepare_update)
        else:  # their number differs from update to update
            self._prepare_update(acted)
        self._orders().copy_(orders)
        self._adam.rate.fill_(self.learning_rate)
        scalars = self._workspace.run(self._run_epochs)
        return functools.partial(self._read_scalars, self._framework.read_later([scalars]))

    def _read_scalars(self, reading: Reading) -> dict[str, float]:
        [values] = reading.result()
        if self.cfg.kl_threshold:
            self.learning_rate = float(values[-1])
        return dict(zip(self._tags(), values.tolist(), strict=False))

    def _tags(self) -> list[str]:
        """Return the tags of the scalars of `_run_epochs`."""
        losses = ["Policy loss", "Value loss"] + ["Entropy loss"] * bool(self.cfg.entropy_loss_scale)
        policy = ["KL divergence"] + ["Standard deviation"] * isinstance(self._policy, GaussianPolicy)
        return [f"Loss / {name}" for name in losses] + [f"Policy / {name}" for name in policy]

    def _flat(self, name: str) -> Tensor:
        """Return a tensor of the rollout as ``(samples, width)``."""
        return self._rollout[name].flatten(0, 1)

    def _orders(self) -> Tensor:
        shape = (self.cfg.learning_epochs, self.cfg.rollouts * self.num_envs)
        return self._workspace.buffer("orders", *shape, dtype=torch.int64)

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

    def _prepare_update(self, acted: Tensor | None = None) -> None:
        """Compute the samples of an update, and then update the statistics of the inputs.

        Args:
            acted: Indices of the samples whose row acted; None if all did.
        """
        rollout, samples = self._rollout, self._samples()
        for name in self._input_widths:
            if name in self._normalizers:
                samples[name].copy_(self._normalizers[name](self._flat(name)))
        log_probs, outputs = [], []
        everything = torch.arange(len(samples["actions"]), device=self.device)
        for rows in everything.tensor_split(self.cfg.mini_batches):
            batch = self._mini_batch(samples, rows)
            head = self._head(batch["observations"], batch.get("action_mask"))
            log_probs.append(self._policy.log_prob(head, batch["actions"]))
            outputs.append(self._value(batch[self._critic_input]))
        torch.cat(log_probs, out=samples["log_prob"])
        torch.cat(outputs, out=samples["values"])
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
        for name in self._input_widths:
            if name in self._normalizers:
                self._normalizers[name].update(_rows_of(self._flat(name), acted))

    def _mini_batch(self, samples: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        return {name: tensor.index_select(0, rows) for name, tensor in samples.items()}

    def _run_epochs(self) -> Tensor:
        """Run all passes over the samples, and adapt the learning rate after each.

        Returns:
            The scalars of `_tags`, averaged, and the learning rate, float64. The KL divergence of a pass is
            ``mean((exp(r) - 1) - r)``, with r the logarithm of the probability ratio.
        """
        samples, rate, threshold = self._samples(), self._adam.rate, self.cfg.kl_threshold
        losses: list[list[Tensor]] = []
        divergences = []
        for order in self._orders():
            log_ratios = []
            for rows in order.tensor_split(self.cfg.mini_batches):
                log_ratio, parts = self._learn(self._mini_batch(samples, rows))
                log_ratios.append(log_ratio)
                losses.append(parts)
            log_ratio = torch.cat(log_ratios)
            divergences.append((log_ratio.expm1() - log_ratio).mean())
            if threshold:
                rate.copy_(adapt_learning_rate(rate, divergences[-1].double(), threshold, torch.where))
        scalars = [torch.stack(list(values)).mean() for values in (*zip(*losses, strict=True), divergences)]
        if isinstance(self._policy, GaussianPolicy):
            scalars.append(self._policy.log_std.exp().mean())
        return torch.stack([scalar.double() for scalar in (*scalars, rate)])

    def _learn(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Take an Adam step on a mini-batch; return the logarithms of the probability ratios, and the losses."""
        cfg = self.cfg
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
        return log_ratio.detach(), [loss.detach() for loss in losses]

    # Saving.

    def __getstate__(self) -> Any:
        """Return all attributes; on a GPU as bytes, which a process without one can read, with the device's name."""
        self._read_update()
        if self.device.type == "cpu":
            return vars(self)
        import cloudpickle  # classes of a user's script are pickled by value

        with io.BytesIO() as file:
            torch.save(vars(self), file, pickle_module=cloudpickle)
            return str(self.device), file.getvalue()

    def __setstate__(self, state: Any) -> None:
        """Restore the result of `__getstate__`, on the same device if there is one."""
        if isinstance(state, dict):
            vars(self).update(state)
            return
        name, data = state
        device = load_framework("torch").find_device_or_default(name)
        vars(self).update(torch.load(io.BytesIO(data), map_location={name: str(device)}, weights_only=False))
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
