"""PPO for PyTorch: storage and update. The rollout logic is in `workers.agents.ppo`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workers.agents import ppo
from workers.agents.torch.losses import clipped_policy_loss, clipped_value_loss, compute_gae
from workers.agents.torch.networks import (
    MLP,
    Adam,
    CategoricalPolicy,
    GaussianPolicy,
    Normalizer,
    Parameters,
    Policy,
    copy_tensors,
)
from workers.errors import AgentError

__all__ = ["PPO"]

INPUT_LIMIT = 10.0  # of normalised observations and states


class PPO(ppo.PPO):
    """Proximal Policy Optimization for PyTorch.

    Randomness comes from torch's global generator only. ``pickle`` and ``copy.deepcopy`` carry the whole agent, with
    the rollout in progress: the copy goes on bit for bit as the original. `state_dict` and `save` carry what was
    learnt, without the rollout.

    Its arguments and errors are those of `workers.agents.ppo.PPO`; ``device`` is a torch device.
    """

    _normalizers: dict[str, Normalizer]

    @torch.no_grad()
    def _build(self) -> None:
        self.device = torch.device("cpu" if self.device is None else self.device)
        before = set(vars(self))
        self._build_networks()
        self._build_rollout()
        self._built = set(vars(self)) - before | {"_built"}

    def _build_networks(self) -> None:
        hidden = tuple(self.cfg.hidden_sizes)
        policy_sizes = (self._observation_width, *hidden, self._head_width)
        value_sizes = (self._state_width or self._observation_width, *hidden, 1)
        shapes = MLP.shapes("policy", policy_sizes) | MLP.shapes("value", value_sizes)
        if not self._discrete:
            shapes["policy.log_std"] = (self._action_width,)
        parameters = self._parameters = Parameters(shapes, self.device)
        self._policy_network = MLP("policy", policy_sizes, self.cfg.activation, parameters)
        self._value_network = MLP("value", value_sizes, self.cfg.activation, parameters)
        self._policy: Policy = (
            CategoricalPolicy()
            if self._discrete
            else GaussianPolicy(parameters.values["policy.log_std"], parameters.grads["policy.log_std"])
        )
        self._optimizer = Adam(parameters)
        self._normalizers = {}
        if self.cfg.normalize_observations:
            self._normalizers["observations"] = Normalizer(self._observation_width, self.device, INPUT_LIMIT)
            if self._state_width is not None:
                self._normalizers["states"] = Normalizer(self._state_width, self.device, INPUT_LIMIT)
        if self.cfg.normalize_values:
            self._normalizers["values"] = Normalizer(1, self.device)

    def _build_rollout(self) -> None:
        """Buffers of a rollout as ``(timesteps, num_envs, width)``, and of its samples in the order of an epoch."""
        steps, num_envs, real = self.cfg.rollouts, self.num_envs, torch.float32
        columns = {
            "observations": (self._observation_width, real),
            "actions": (self._action_width, torch.int64 if self._discrete else real),
        }
        self._critic_input = "observations"
        if self._state_width is not None:
            columns["states"] = (self._state_width, real)
            self._critic_input = "states"
        self._rollout = {
            name: torch.zeros(steps, num_envs, width, dtype=dtype, device=self.device)
            for name, (width, dtype) in (columns | {"rewards": (1, real), "continues": (1, real)}).items()
        }
        self._inputs = {  # what the networks see of a single timestep
            name: torch.zeros(num_envs, self._rollout[name].shape[2], device=self.device)
            for name in dict.fromkeys(("observations", self._critic_input))
        }
        self._next = torch.zeros_like(self._inputs[self._critic_input])  # the critic's raw input after the last row
        self._truncated = torch.zeros(num_envs, 1, dtype=torch.bool, device=self.device)  # and not terminated
        scalars = dict.fromkeys(("log_prob", "values", "advantages", "targets"), (1, real))
        self._samples = {  # in the order of the rollout
            name: torch.zeros(steps * num_envs, width, dtype=dtype, device=self.device)
            for name, (width, dtype) in (columns | scalars).items()
        }
        self._shuffled = {name: torch.zeros_like(samples) for name, samples in self._samples.items()}
        rows = torch.arange(steps * num_envs).tensor_split(self.cfg.mini_batches)
        self._mini_batches = [slice(int(part[0]), int(part[-1]) + 1) for part in rows]
        self._metrics: dict[str, Tensor] = {}

    @torch.no_grad()
    def _initialize_parameters(self) -> None:
        self._policy_network.initialize(head_gain=0.01)
        self._value_network.initialize(head_gain=1.0)
        if isinstance(self._policy, GaussianPolicy):
            self._policy.log_std.fill_(self.cfg.initial_log_std)

    # Interaction.

    def _network_input(self, name: str, raw: Tensor) -> Tensor:
        """Normalised copy of observations or states in a buffer of ours, so that no input's memory layout matters."""
        inputs = self._inputs[name].copy_(raw)
        normalizer = self._normalizers.get(name)
        return inputs if normalizer is None else normalizer.normalize_(inputs)

    def _next_values(self) -> Tensor:
        """Values of what the last recorded actions led to, ``(num_envs, 1)``."""
        return self._denormalize(self._value_network.forward(self._network_input(self._critic_input, self._next)))

    def _denormalize(self, values: Tensor) -> Tensor:
        normalizer = self._normalizers.get("values")
        return values if normalizer is None else normalizer.denormalize_(values)

    @torch.no_grad()
    def _sample_actions(self, observations: Tensor) -> tuple[Tensor, dict[str, Any]]:
        head = self._policy_network.forward(self._network_input("observations", observations))
        actions, mean_actions = self._policy.sample(head)
        if self._discrete and self._action_start:
            actions, mean_actions = actions + self._action_start, mean_actions + self._action_start
        return actions, {"mean_actions": mean_actions}

    @torch.no_grad()
    def _store_transition(
        self,
        row: int,
        *,
        observations: Tensor,
        next_observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        states: Tensor | None = None,
        next_states: Tensor | None = None,
    ) -> bool:
        rollout = self._rollout
        rollout["observations"][row].copy_(observations)
        stored_actions = rollout["actions"][row].copy_(actions)
        if self._discrete and self._action_start:
            stored_actions.sub_(self._action_start)
        rollout["rewards"][row].copy_(rewards)
        rollout["continues"][row].copy_(torch.logical_or(terminated, truncated).logical_not_())
        if states is not None:
            rollout["states"][row].copy_(states)
        self._next.copy_(next_observations if next_states is None else next_states)
        torch.gt(truncated, terminated, out=self._truncated)
        return bool(self._truncated.any())

    @torch.no_grad()
    def _bootstrap_truncated(self, row: int) -> None:
        self._add_next_values(row, self._truncated)

    @torch.no_grad()
    def _bootstrap_rollout_end(self, row: int) -> None:
        continues = self._rollout["continues"][row]
        self._add_next_values(row, continues > 0)
        continues.zero_()

    def _add_next_values(self, row: int, mask: Tensor) -> None:
        values = self._next_values().mul_(self.cfg.discount_factor)
        self._rollout["rewards"][row].add_(values.masked_fill_(~mask, 0.0))

    # Update.

    @torch.no_grad()
    def _prepare_update(self) -> None:
        """Weights and statistics are those of the whole rollout, so what the networks said then is computed here."""
        samples, shape = self._samples, (self.cfg.rollouts, self.num_envs)
        for name in ("observations", "actions", "states"):
            if name in samples:
                samples[name].copy_(self._rollout[name].view(samples[name].shape))
                if name in self._normalizers:
                    self._normalizers[name].normalize_(samples[name])
        for rows in self._mini_batches:
            head = self._policy_network.forward(samples["observations"][rows])
            samples["log_prob"][rows] = self._policy.evaluate(head, samples["actions"][rows])
            samples["values"][rows] = self._value_network.forward(samples[self._critic_input][rows])
        values = self._denormalize(samples["values"].clone())
        advantages = compute_gae(
            rewards=self._rollout["rewards"].view(shape),
            values=values.view(shape),
            last_values=self._next_values().view(-1),
            continues=self._rollout["continues"].view(shape),
            discount_factor=self.cfg.discount_factor,
            gae_lambda=self.cfg.gae_lambda,
        ).view(-1, 1)
        targets = torch.add(advantages, values, out=samples["targets"])
        if "values" in self._normalizers:
            self._normalizers["values"].update(targets)
            self._normalizers["values"].normalize_(targets)
        std, mean = torch.std_mean(advantages, correction=0)
        torch.sub(advantages, mean, out=samples["advantages"]).div_(std + 1e-8)
        self._metrics = {}

    @torch.no_grad()
    def _run_epoch(self, learning_rate: float) -> Tensor:
        order = torch.randperm(len(self._samples["actions"]), device=self.device)
        for name, samples in self._samples.items():
            torch.index_select(samples, 0, order, out=self._shuffled[name])
        kl = torch.zeros((), device=self.device)
        for rows in self._mini_batches:
            batch = {name: samples[rows] for name, samples in self._shuffled.items()}
            kl += self._compute_gradients(batch)
            if self.cfg.grad_norm_clip > 0:
                self._parameters.clip_grad_norm_(self.cfg.grad_norm_clip)
            self._optimizer.step(learning_rate)
        self._add_metric("kl", kl)
        return kl / len(order)

    def _compute_gradients(self, batch: dict[str, Tensor]) -> Tensor:
        """Gradient of the mean loss of a mini-batch, in `self._parameters`; its summed KL divergence is returned."""
        cfg, size = self.cfg, len(batch["actions"])
        head = self._policy_network.forward(batch["observations"])
        log_ratio = self._policy.evaluate(head, batch["actions"]).sub_(batch["log_prob"])
        ratio = log_ratio.exp()
        policy_loss, grad = clipped_policy_loss(ratio, batch["advantages"], cfg.ratio_clip)
        if cfg.entropy_loss_scale:
            self._add_metric("entropy", self._policy.entropy() * size)
        self._policy_network.backward(batch["observations"], self._policy.backward(grad, -cfg.entropy_loss_scale))

        critic_input = batch[self._critic_input]
        values = self._value_network.forward(critic_input)
        value_loss, grad = clipped_value_loss(values, batch["targets"], batch["values"], cfg.value_clip)
        self._value_network.backward(critic_input, grad.mul_(cfg.value_loss_scale))
        self._add_metric("policy", policy_loss)
        self._add_metric("value", value_loss)
        return ratio.sub_(1.0).sub_(log_ratio).sum()

    def _add_metric(self, name: str, value: Tensor) -> None:
        """Sum up on the device: nothing is read before the update is done."""
        if name in self._metrics:
            self._metrics[name].add_(value)
        else:
            self._metrics[name] = value.clone()

    @torch.no_grad()
    def _finish_update(self) -> dict[str, float]:
        for name in ("observations", "states"):
            if name in self._normalizers:
                buffer = self._rollout[name]
                self._normalizers[name].update(buffer.view(-1, buffer.shape[2]))
        count = self.cfg.learning_epochs * self.cfg.rollouts * self.num_envs
        means = {name: float(total) / count for name, total in self._metrics.items()}
        scalars = {
            "Loss / Policy loss": means["policy"],
            "Loss / Value loss": means["value"] * self.cfg.value_loss_scale,
            "Policy / KL divergence": means["kl"],
        }
        if "entropy" in means:
            scalars["Loss / Entropy loss"] = -self.cfg.entropy_loss_scale * means["entropy"]
        if isinstance(self._policy, GaussianPolicy):
            scalars["Policy / Standard deviation"] = float(self._policy.log_std.exp().mean())
        return scalars

    # Saving.

    def state_dict(self) -> dict[str, Any]:
        """Copies of weights, optimiser, normalisers and learning rate, as plain containers of tensors and numbers."""
        moments = self._optimizer.moments()
        return {
            "parameters": _clones(self._parameters.values),
            "optimizer": {"steps": self._optimizer.steps} | {name: _clones(moments[name]) for name in moments},
            "normalizers": {
                name: {"mean": item.mean.clone(), "variance": item.variance.clone(), "count": item.count}
                for name, item in self._normalizers.items()
            },
            "learning_rate": self.learning_rate,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. A rollout in progress is dropped: other weights gathered it.

        Args:
            state: What `state_dict` of an agent of the same shape returned.

        Raises:
            AgentError: `state` does not fit this agent.
        """
        try:
            if set(state["normalizers"]) != set(self._normalizers):
                given, expected = sorted(state["normalizers"]), sorted(self._normalizers)
                raise AgentError(f"the state has normalizers of {given}, this agent of {expected}")
            copy_tensors("the parameters", state["parameters"], self._parameters.values)
            for name, moments in self._optimizer.moments().items():
                copy_tensors(f"the optimizer's {name}", state["optimizer"][name], moments)
            self._optimizer.steps = int(state["optimizer"]["steps"])
            for name, item in self._normalizers.items():
                statistics = dict(state["normalizers"][name])
                item.count = int(statistics.pop("count"))
                copy_tensors(f"the normalizer of {name}", statistics, {"mean": item.mean, "variance": item.variance})
                item.refresh()
            self.learning_rate = float(state["learning_rate"])
        except KeyError as error:
            raise AgentError(f"the state lacks {error}; expected the keys of PPO.state_dict()") from error
        self._recorded = 0

    def save(self, path: Any) -> None:
        """Write `state_dict` to a file, readable by ``torch.load(path, weights_only=True)``.

        Args:
            path: Path, or a file open for writing in binary mode.
        """
        torch.save(self.state_dict(), path)

    def load(self, path: Any) -> None:
        """Restore from a file that `save` wrote.

        Args:
            path: Path, or a file open for reading in binary mode.

        Raises:
            AgentError: The file is of an agent of another shape.
        """
        self.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))

    def __getstate__(self) -> dict[str, Any]:
        """What was built is left out and rebuilt, so that its memory layout is the same; its content travels."""
        recorded = self._recorded
        return {name: value for name, value in vars(self).items() if name not in self._built} | {
            "_learnt": self.state_dict(),
            "_gathered": {name: buffer[:recorded].clone() for name, buffer in self._rollout.items()},
            "_after": self._next.clone(),
        }

    @torch.no_grad()
    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        learnt, gathered, after = (state.pop(name) for name in ("_learnt", "_gathered", "_after"))
        vars(self).update(state)
        recorded = self._recorded
        self._build()
        self.load_state_dict(learnt)
        for name, buffer in self._rollout.items():
            buffer[:recorded].copy_(gathered[name])
        self._next.copy_(after)
        self._recorded = recorded


def _clones(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
