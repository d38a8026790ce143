"""Warp PPO: storage and update. The rollout logic is in `workers.agents.ppo`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import warp as wp

from workers.agents import ppo
from workers.agents.warp import kernels, losses
from workers.agents.warp.adam import Adam
from workers.agents.warp.array_trees import fill, unchanged, within
from workers.agents.warp.kernels import Scratch, cast, count_parts, launch, part_of, read
from workers.agents.warp.normalizers import Moments, Normalizer, statistics_of
from workers.agents.warp.orders import draw_orders, select
from workers.agents.warp.perceptron import Perceptron, layer_shapes
from workers.agents.warp.policies import CategoricalPolicy, GaussianPolicy, map_actions
from workers.by_agent import map_tree

__all__ = ["PPO"]

KEPT = ("_acting", "_legal", "_own", "_action_map")
"""Attributes that are an array on the device or None, and that `_allocate` does not create."""


class PPO(ppo.PPO):
    """Proximal Policy Optimization in Warp.

    The constructor draws a seed from NumPy's global generator: the source of all randomness. Acting and the steps of
    an update are captured as graphs, with the values of ``cfg``. No kernel adds atomically, so sums have a fixed order;
    a GPU has other tiles, though, and draws the orders of samples itself, so its results differ from a CPU's.

    On a GPU, everything runs on the device's current stream, so agents can use streams of their own within
    `wp.ScopedStream`. Neither `act` nor `record_transition` wait for the device if they are given arrays on it and no
    masks; an update waits once, at its end, and once more each time it needs to know which rows acted.

    Arguments and errors are those of `workers.agents.ppo.PPO`; ``device`` is a Warp device or its name.
    """

    framework = "warp"

    def _build(self) -> None:
        self._generator = np.random.default_rng(np.random.randint(2**31))
        self._allocate()
        policy, value = self._initial_networks(self._generator)
        self._policy.network.initialize(policy)
        self._value.initialize(value)
        self._restart_noise()

    def _allocate(self) -> None:
        """Create everything on the device; these attributes are not pickled."""
        before = set(vars(self))
        with wp.ScopedDevice(self.device):
            self._build_rollout()
            self._build_models()
        self._allocated = set(vars(self)) - before

    def _build_models(self) -> None:
        cfg, hidden, widths = self.cfg, self.cfg.hidden_sizes, self._input_widths
        networks = {
            "policy.network": (widths["observations"], *hidden, self._head_width),
            "value": (widths[self._critic_input], *hidden, 1),
        }
        shapes: dict[str, tuple[int, ...]] = {} if self._components else {"policy.log_std": (self._action_width,)}
        for prefix, sizes in networks.items():
            shapes |= {f"{prefix}.{name}": shape for name, shape in layer_shapes(sizes).items()}
        self._rate = wp.zeros(1, dtype=wp.float64)
        parts = count_parts(self.device, max(self._mini_batch_sizes()))
        self._optimizer = Adam(shapes, parts=parts, rate=self._rate)
        parameters, gradients = self._optimizer.values, self._optimizer.gradients
        network, self._value = (
            Perceptron(within(prefix, parameters), within(prefix, gradients), cfg.activation) for prefix in networks
        )
        self._policy: CategoricalPolicy | GaussianPolicy
        self._log_std = None  # of a Gaussian policy
        if self._components:
            self._policy = CategoricalPolicy(network, self._components)
        else:
            self._log_std = parameters["policy.log_std"]
            self._log_std.fill_(cfg.initial_log_std)
            self._policy = GaussianPolicy(network, self._log_std, gradients["policy.log_std"])
        self._normalizers: dict[str, Normalizer] = {}
        if cfg.normalize_observations:
            self._normalizers = {name: Normalizer(width, ppo.INPUT_LIMIT) for name, width in widths.items()}
        if cfg.normalize_values:
            self._normalizers["returns"] = Normalizer(1)
        # named as in `state_dict`; the arrays share the memory of networks, normalisers and optimiser
        moments = {"exp_avg": self._optimizer.exp_avg, "exp_avg_sq": self._optimizer.exp_avg_sq}
        self._learnt: dict[str, Any] = {
            "models": parameters | statistics_of(self._normalizers),
            "optimizer": {"step": self._optimizer.steps, **moments},
        }

    def _build_rollout(self) -> None:
        timesteps, envs = self.cfg.rollouts, self.num_envs
        samples = timesteps * envs
        widths = self._input_widths | {"actions": self._action_width, "rewards": 1}
        self._rollout = {name: wp.zeros((timesteps, envs, width), dtype=wp.float32) for name, width in widths.items()}
        flags = {"continues": 1, "acted": 1}
        if self._components:
            self._rollout["actions"] = wp.zeros((timesteps, envs, self._action_width), dtype=wp.int64)
            flags["action_mask"] = self._head_width
        self._rollout |= {name: wp.ones((timesteps, envs, width), dtype=wp.bool) for name, width in flags.items()}
        self._next = wp.zeros((envs, widths[self._critic_input]), dtype=wp.float32)  # raw, after the last row
        self._terminated, self._truncated, self._cut = (wp.zeros((envs, 1), dtype=wp.bool) for _ in range(3))
        self._noise = wp.zeros(2, dtype=wp.int32)  # a seed, and the number of draws so far
        # used in updates
        self._rows = wp.array(np.arange(samples), dtype=wp.int32)
        self._orders = wp.zeros((self.cfg.learning_epochs, samples), dtype=wp.int32)
        self._position = wp.zeros(1, dtype=wp.int32)  # start of the next mini-batch
        self._samples: dict[str, wp.array] = {}
        self._acted_rows = self._rows  # the rows in the statistics
        self._totals = wp.zeros(4, dtype=wp.float64)  # of the epoch in progress; see `losses.end_epoch`
        columns = 5 + (0 if self._components else self._action_width)
        self._report = wp.zeros((self.cfg.learning_epochs, columns), dtype=wp.float64)
        self._moments = Moments()
        self._scratch = Scratch()
        self._graphs: dict[Any, Any] = {}

    def _run(self, launches: Callable[[int], Any], rows: int) -> Any:
        """Run `launches(rows)` and return its result.

        The first call launches directly, which compiles kernels and creates arrays. The second call captures a graph,
        which it and later calls launch.
        """
        key = (launches.__name__, rows)
        if key not in self._graphs:
            result = launches(rows)
            self._graphs[key] = result, None
            return result
        result, graph = self._graphs[key]
        if graph is None:
            with wp.ScopedCapture(self.device) as capture:
                result = launches(rows)
            graph = capture.graph
            self._graphs[key] = result, graph
        wp.capture_launch(graph)
        return result

    # Interaction.

    def _network_input(self, name: str, raw: wp.array) -> wp.array:
        """Return normalised observations or states."""
        return self._normalizers[name](raw) if name in self._normalizers else raw

    def _denormalize(self, values: wp.array) -> wp.array:
        return self._normalizers["returns"].inverse(values) if "returns" in self._normalizers else values

    def _next_values(self) -> wp.array:
        """Return the values of the observations or states after the last recorded actions, ``(num_envs, 1)``."""
        return self._run(self._evaluate_next, self.num_envs)

    def _evaluate_next(self, rows: int) -> wp.array:
        return self._denormalize(self._value(self._network_input(self._critic_input, self._next)))

    def _raw_observations(self, rows: int) -> wp.array:
        return self._scratch("raw observations", rows, self._input_widths["observations"])

    def _legal_actions(self, rows: int) -> wp.array:
        return self._scratch("legal actions", rows, self._head_width, dtype=wp.bool)

    def _use_action_map(self, mapping: npt.NDArray[np.float32] | None) -> None:
        self._action_map = None if mapping is None else wp.array(mapping, device=self.device)
        self._graphs.clear()  # captured with the map before

    def _forget_compiled(self) -> None:
        self._graphs.clear()

    def _sample_actions(self, observations: wp.array, action_mask: wp.array | None) -> tuple[Any, wp.array, wp.array]:
        rows = observations.shape[0]
        cast(observations, self._raw_observations(rows))
        if action_mask is not None:
            cast(action_mask, self._legal_actions(rows))
        own, *results = self._run(self._act if action_mask is None else self._act_legally, rows)
        actions, mean_actions = (wp.clone(array, requires_grad=False) for array in results)
        return own, actions, mean_actions

    def _mean_actions(self, observations: wp.array, action_mask: wp.array | None) -> wp.array:
        with unchanged(self._noise, self._own):
            return self._sample_actions(observations, action_mask)[2]

    def _act(self, rows: int, *legal: wp.array) -> tuple[Any, wp.array, wp.array]:
        """Return the results of `_sample_actions`, which the next call on as many rows overwrites."""
        head = self._policy.network(self._network_input("observations", self._raw_observations(rows)))
        actions, mean_actions = self._policy.sample(head, self._noise, *legal)
        if self._action_map is None:
            return None, actions, mean_actions
        mapped = [self._scratch(name, *actions.shape) for name in ("mapped actions", "mapped mean actions")]
        launch(map_actions, actions.shape, [actions, mean_actions, self._action_map], mapped)
        return actions, *mapped

    def _act_legally(self, rows: int) -> tuple[Any, wp.array, wp.array]:
        return self._act(rows, self._legal_actions(rows))

    def _store_transition(
        self,
        row: int,
        *,
        inputs: dict[str, wp.array],
        next_critic_input: wp.array,
        actions: wp.array,
        rewards: wp.array,
        terminated: wp.array,
        truncated: wp.array,
        acted: wp.array | None,
        action_mask: wp.array | None,
    ) -> None:
        arrays, masks = inputs | {"actions": actions, "rewards": rewards}, {"acted": acted, "action_mask": action_mask}
        for name in masks.keys() & self._rollout.keys():
            if not row:  # once per rollout, for all rows without a mask: faster than row by row
                self._rollout[name].fill_(True)
            if masks[name] is not None:
                arrays[name] = masks[name]
        for name, array in arrays.items():
            cast(array, self._rollout[name][row])
        cast(next_critic_input, self._next)
        cast(terminated, self._terminated)
        cast(truncated, self._truncated)
        ended = [self._terminated, self._truncated]
        launch(kernels.end_episodes, self.num_envs, ended, [self._rollout["continues"][row], self._cut])
        # a device would have to be waited for
        if not kernels.on_host(self.device) or self._truncated.numpy().any():
            self._add_next_values(row, self._cut)

    def _cut_rollout(self, row: int) -> None:
        continues = self._rollout["continues"][row]
        self._add_next_values(row, continues)
        continues.zero_()

    def _add_next_values(self, row: int, mask: wp.array) -> None:
        inputs = [self._next_values(), mask, self.cfg.discount_factor]
        launch(kernels.add_next_values, self.num_envs, inputs, [self._rollout["rewards"][row]])

    # Update.

    def _acted(self) -> npt.NDArray[np.intp]:
        return np.flatnonzero(read(self._rollout["acted"]))

    def _rows_that_acted(self) -> wp.array:
        """Return the indices of the samples whose row acted; this waits for the device if they are not all."""
        return self._rows if self._all_acted else wp.array(self._acted(), dtype=wp.int32, device=self.device)

    def _draw_orders(self) -> wp.array:
        rows, epochs = self._rows_that_acted(), self.cfg.learning_epochs
        if not kernels.on_host(self.device):
            return draw_orders(rows, self._noise, epochs, self._rows.size, self._scratch)
        drawn = [self._generator.permutation(rows.numpy()) for _ in range(epochs)]
        return wp.array([np.resize(order, self._rows.size) for order in drawn], dtype=wp.int32, device=self.device)

    def _update(self, orders: wp.array) -> Callable[[], dict[str, float]]:
        cast(orders, self._orders)
        self._position.zero_()
        self._acted_rows = self._rows_that_acted()
        self._prepare_update()
        self._totals.zero_()
        self._rate.fill_(self.learning_rate)
        for epoch in range(self.cfg.learning_epochs):
            for size in self._mini_batch_sizes():
                self._run(self._step, size)
            inputs = [epoch, self._rows.size, self.cfg.kl_threshold or 0.0, self._log_std]
            launch(losses.end_epoch, 1, inputs, [self._totals, self._rate, self._report])
        for name in self._input_widths:
            if name in self._normalizers:
                self._normalizers[name].update(self._flat(name), self._acted_rows)
        self._restart_noise()
        return self._read_report

    def _read_report(self) -> dict[str, float]:
        """Return the scalars to track and set `learning_rate`; this waits for the device."""
        report = read(self._report)
        self.learning_rate = float(report[-1, 4])
        sums = report[:, 1:4] / self.cfg.mini_batches
        columns = {"Loss / Policy loss": sums[:, 0], "Loss / Value loss": sums[:, 1]}
        if self.cfg.entropy_loss_scale:
            columns["Loss / Entropy loss"] = sums[:, 2]
        columns["Policy / KL divergence"] = report[:, 0]
        scalars = {tag: sum(column.tolist()) / len(column) for tag, column in columns.items()}
        if self._log_std is not None:
            scalars["Policy / Standard deviation"] = float(np.exp(report[-1, 5:].astype(np.float32)).mean())
        return scalars

    def _restart_noise(self) -> None:
        """Draw a new seed, long before the numbers of the last one repeat after 2**32 draws."""
        self._noise.assign([self._generator.integers(2**31), 0])

    def _flat(self, name: str) -> wp.array:
        """Return an array of the rollout as ``(samples, size)``."""
        array = self._rollout[name]
        return array.reshape((-1, array.shape[2]))

    def _taken(self) -> list[wp.array]:
        """Return the actions of the rollout, and if they are discrete the masks of legal ones."""
        return [self._flat(name) for name in ("actions", "action_mask") if name in self._rollout]

    def _log_prob(self, head: wp.array, rows: wp.array) -> list[wp.array]:
        """Return log-probability and entropy, both ``(rows,)``, of the rollout's actions in some of its rows."""
        return self._policy.log_prob(head, rows, *self._taken())

    def _mini_batch_sizes(self) -> list[int]:
        size, larger = divmod(self._rows.size, self.cfg.mini_batches)
        return [size + 1] * larger + [size] * (self.cfg.mini_batches - larger)

    def _prepare_update(self) -> None:
        """Compute the samples of an update; weights and statistics have not changed since the start of the rollout."""
        samples = self._samples
        shape = (self._rows.size, 1)
        last_values = self._scratch("last values", self.num_envs, 1)
        wp.copy(last_values, self._next_values())  # before a call on as many samples reuses its memory
        for name in self._input_widths:
            samples[name] = self._network_input(name, self._flat(name))
        samples["log_prob"], samples["values"] = self._scratch("log_prob", shape[0]), self._scratch("values", *shape)
        for start, stop in itertools.pairwise(itertools.accumulate(self._mini_batch_sizes(), initial=0)):
            head = self._policy.network(samples["observations"][start:stop])
            log_prob, _ = self._log_prob(head, self._rows[start:stop])
            wp.copy(samples["log_prob"], log_prob, dest_offset=start)
            wp.copy(samples["values"], self._value(samples[self._critic_input][start:stop]), dest_offset=start)
        values = self._denormalize(samples["values"])
        advantages = losses.compute_gae(
            rewards=self._rollout["rewards"],
            values=values.reshape(self._rollout["rewards"].shape),
            last_values=last_values,
            continues=self._rollout["continues"],
            acted=self._rollout["acted"],
            discount_factor=self.cfg.discount_factor,
            gae_lambda=self.cfg.gae_lambda,
        ).reshape(shape)
        samples["targets"] = self._scratch("targets", *shape)
        launch(losses.add, shape[0], [advantages, values], [samples["targets"]])
        if "returns" in self._normalizers:
            self._normalizers["returns"].update(samples["targets"], self._acted_rows)
            samples["targets"] = self._normalizers["returns"](samples["targets"])
        samples["advantages"] = self._scratch("advantages", *shape)
        statistics = self._moments(advantages, self._acted_rows)
        launch(losses.standardize, shape[0], [advantages, *statistics], [samples["advantages"]])

    def _step(self, size: int) -> None:
        """Take an optimiser step on the next mini-batch."""
        cfg, samples = self.cfg, self._samples
        rows = self._scratch("rows", size, dtype=wp.int32)
        launch(select, size, [self._orders, self._position], [rows])
        launch(kernels.advance, 1, [size], [self._position])
        batch = {name: self._scratch(name, size, width) for name, width in self._input_widths.items()}
        for name, array in batch.items():
            launch(kernels.gather, array.shape, [samples[name], rows], [array])
        head, values = self._policy.network(batch["observations"]), self._value(batch[self._critic_input])
        log_prob, entropy = self._log_prob(head, rows)
        old = [samples[name] for name in ("log_prob", "values", "advantages", "targets")]
        scales = [cfg.ratio_clip, cfg.value_clip, cfg.value_loss_scale, cfg.entropy_loss_scale]
        terms = self._scratch("terms", size, 4, dtype=wp.float64)
        by_log_prob, by_value = self._scratch("by log_prob", size), self._scratch("by value", size, 1)
        inputs = [log_prob, entropy, values, rows, *old, *scales]
        launch(losses.compute_losses, size, inputs, [terms, by_log_prob, by_value])
        parts = count_parts(self.device, size)
        sums = self._scratch("sums", parts, 4, dtype=wp.float64)
        launch(losses.add_terms, sums.shape, [terms, part_of(self.device, size)], [sums])
        launch(kernels.add_sums, 4, [sums, 1.0], [self._totals])
        by_head = self._policy.backward(head, by_log_prob, -cfg.entropy_loss_scale / size, rows, *self._taken())
        self._policy.network.backward(batch["observations"], by_head)
        self._value.backward(batch[self._critic_input], by_value)
        self._optimizer.step(parts, cfg.grad_norm_clip)

    # Saving.

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = map_tree(self._framework.copy, self._learnt)
        models, optimizer = state["models"], state["optimizer"]  # Warp has no 0-d arrays
        models |= {name: np.array(models[name].numpy()[0]) for name in models if name.endswith(".count")}
        optimizer["step"] = int(optimizer["step"].numpy()[0])
        return state

    def _restore(self, state: Mapping[str, Any]) -> None:
        fill(self._learnt, state)

    def _progress(self) -> dict[str, Any]:
        return {"rollout": self._rollout, "next": self._next, "noise": self._noise, "generator": self._generator}

    def _resume(self, state: Mapping[str, Any]) -> None:
        fill(self._rollout, {"action_mask": True} | state["rollout"])
        fill({"next": self._next, "noise": self._noise}, state)
        self._generator = state["generator"]

    def __getstate__(self) -> dict[str, Any]:
        self._read_update()
        attributes = {name: value for name, value in vars(self).items() if name not in self._allocated}
        kept = {name: value.numpy().copy() for name in KEPT if (value := attributes[name]) is not None}
        return attributes | kept | {"_snapshot": self.snapshot()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).clear()
        vars(self).update(state)
        self.device = self._framework.find_device_or_default(self.device)
        kept = {name: wp.array(array, device=self.device) for name in KEPT if (array := vars(self)[name]) is not None}
        self._allocate()
        self.restore(vars(self).pop("_snapshot"))
        vars(self).update(kept)
