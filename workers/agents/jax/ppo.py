"""JAX PPO: the arrays of an agent. The rollout logic is in `workers.agents.ppo`, the computation in `programs`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax import numpy as jnp

from workers.agents import ppo
from workers.agents.jax import programs
from workers.errors import AgentError

__all__ = ["PPO"]

ARRAYS = ("_weights", "_optimizer", "_normalizers", "_rollout", "_key", "_acting", "_legal", "_own", "_action_map")
"""Attributes of the agent that are trees of arrays on its device."""


@functools.cache
def on_device(row: int, device: jax.Device) -> Array:
    """Return the number of a rollout's row on a device: it travels once, not in every timestep."""
    return jax.device_put(np.int32(row), device)


class PPO(ppo.PPO):
    """Proximal Policy Optimization in JAX.

    The constructor draws a seed from NumPy's global generator; all randomness comes from this seed. Acting, recording
    and a whole update are one compiled call each. The values of ``cfg`` are compiled in.
    Agents with equal spaces, ``num_envs`` and ``cfg`` share their compiled functions.

    Arguments and errors are those of `workers.agents.ppo.PPO`; ``device`` is a `jax.Device` or a name such as
    ``"cpu"`` or ``"cuda:0"``. Statistics are float64 and discrete actions int64 if JAX has 64-bit numbers enabled, else
    32-bit.

    If the arrays given to an agent are on its device, nothing travels between the device and the host from one update
    to the next, after the first rollout. An update waits for the device once, or twice if not all rows acted.
    """

    framework = "jax"

    def _build(self) -> None:
        integers = np.iinfo(jnp.result_type(int))
        for actions in self._components or ():
            if actions.start < integers.min or actions.stop - 1 > integers.max:
                raise AgentError(
                    f"action_space {self.action_space} has actions from {actions.start} to {actions.stop - 1}; "
                    f"expected {integers.bits}-bit integers, from {integers.min} to {integers.max}: use such actions, "
                    "or set jax_enable_x64"
                )
        specification = programs.Specification(
            cfg=self._static_cfg(),
            input_widths=tuple(self._input_widths.items()),
            critic_input=self._critic_input,
            components=self._components,
            action_width=self._action_width,
            head_width=self._head_width,
            is_on_cpu=self.device.platform == "cpu",
        )
        self._specification = programs.the_one(specification)
        seed = np.random.randint(2**31)
        self._generator = np.random.default_rng(seed)  # for the orders: XLA's sort takes milliseconds on a CPU
        networks = self._initial_networks(self._generator)
        key = jax.random.key_data(jax.random.key(seed))
        arrays = *programs.initialize(self._specification, *networks), key
        self._weights, self._optimizer, self._normalizers, self._key = jax.device_put(
            arrays, self.device, may_alias=False
        )
        self._rollout: Any = None
        self._rate: tuple[float, Array] | None = None  # the last `learning_rate`, and the same on the device

    def _static_cfg(self) -> programs.StaticCfg:
        return programs.StaticCfg(**{field.name: getattr(self.cfg, field.name) for field in fields(ppo.PPOCfg)})

    def _forget_compiled(self) -> None:
        self._specification = programs.the_one(self._specification._replace(cfg=self._static_cfg()))

    def _use_action_map(self, mapping: npt.NDArray[np.float32] | None) -> None:
        self._action_map = jax.device_put(mapping, self.device, may_alias=False)

    def _sample_actions(self, observations: Array, action_mask: Array | None) -> tuple[Array | None, Array, Array]:
        own, actions, mean_actions, self._key = self._act(observations, action_mask)
        return own, actions, mean_actions

    def _mean_actions(self, observations: Array, action_mask: Array | None) -> Array:
        return self._act(observations, action_mask)[2]

    def _act(self, observations: Array, action_mask: Array | None) -> tuple[Array | None, Array, Array, Array]:
        given = self._here({"observations": observations, "action_mask": action_mask})
        acted: tuple[Array | None, Array, Array, Array] = programs.act(
            self._specification,
            self._weights["policy"],
            self._normalizers,
            self._action_map,
            self._key,
            given["observations"],
            given["action_mask"],
        )
        return acted

    def _legal_on_device(self, mask: Array) -> Array:
        return programs.legal(self._specification, self._here({"action_mask": mask})["action_mask"])

    def _here(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Return arrays, or None, on the agent's device."""
        place = {self.device}
        elsewhere = {name: array for name, array in arrays.items() if array is not None and array.devices() != place}
        if not elsewhere:
            return arrays
        moved = jax.device_put(elsewhere, self.device)
        # arrays on the host may be views of NumPy memory that changes afterwards
        is_on_host = self._framework.is_on_host
        jax.block_until_ready([moved[name] for name, array in elsewhere.items() if is_on_host(array)])
        return arrays | moved

    def _store_transition(
        self,
        row: int,
        *,
        inputs: dict[str, Array],
        next_critic_input: Array,
        actions: Array,
        rewards: Array,
        terminated: Array,
        truncated: Array,
        acted: Array | None,
        action_mask: Array | None,
    ) -> None:
        arrays = inputs | {"next": next_critic_input, "actions": actions, "rewards": rewards}
        if acted is not None:
            arrays["acted"] = acted
        if action_mask is not None:
            arrays["action_mask"] = action_mask
        arrays = self._here(arrays | {"terminated": terminated, "truncated": truncated})
        rollout = self._take_rollout()
        if action_mask is not None and "action_mask" not in rollout:
            everything = np.ones((self.cfg.rollouts, *action_mask.shape), np.bool_)
            rollout = rollout | {"action_mask": jax.device_put(everything, self.device, may_alias=False)}
        if not self._recorded:
            row = 0
        self._rollout = programs.record(
            self._specification, self._critic(), rollout, on_device(row, self.device), arrays
        )
        if self._specification.is_on_cpu:  # arrays may be views of NumPy memory that changes afterwards
            jax.block_until_ready(self._rollout)

    def _cut_rollout(self, row: int) -> None:
        rollout = self._take_rollout()
        if self._recorded:
            rollout = programs.cut(self._specification, self._critic(), rollout, on_device(row, self.device))
        self._rollout = rollout

    def _take_rollout(self) -> Any:
        """Return the rollout and give up ownership, so that a compiled call can reuse its memory for its result.

        An interrupt before that result is stored loses the recorded transitions, but nothing learned.
        """
        rollout, self._rollout = self._rollout, None
        if rollout is None:
            self._recorded = 0
            rollout = jax.device_put(
                programs.empty_rollout(self._specification, self.num_envs), self.device, may_alias=False
            )
        return rollout

    def _begun_rollout(self) -> Any:
        """Return the rollout, which the agent keeps."""
        if self._rollout is None:
            self._rollout = self._take_rollout()
        return self._rollout

    def _critic(self) -> programs.Critic:
        return self._weights["value"], self._normalizers

    def _acted(self) -> npt.NDArray[np.intp]:
        return np.flatnonzero(self._rollout["acted"])

    def _draw_orders(self) -> Array | npt.NDArray[np.intp]:
        if not self._specification.is_on_cpu:
            orders, self._key = programs.draw_orders(self._specification, self._key, self._begun_rollout()["acted"])
            return orders
        samples = self.cfg.rollouts * self.num_envs
        acted = np.arange(samples) if self._all_acted else self._acted()
        orders = [self._generator.permutation(acted) for _ in range(self.cfg.learning_epochs)]
        return np.stack([np.resize(order, samples) for order in orders])

    def _update(self, orders: Array) -> Callable[[], dict[str, float]]:
        if self._rate is None or self._rate[0] != self.learning_rate:
            self._rate = self.learning_rate, jax.device_put(np.float32(self.learning_rate), self.device)
        self._weights, self._optimizer, self._normalizers, learning_rate, scalars = programs.update(
            self._specification,
            self._weights,
            self._optimizer,
            self._normalizers,
            self._rollout,
            orders,
            self._rate[1],
        )
        return functools.partial(self._read_scalars, scalars, learning_rate)

    def _read_scalars(self, scalars: dict[str, Array], learning_rate: Array) -> dict[str, float]:
        scalars, adapted = jax.device_get((scalars, learning_rate))  # the only wait for the device
        if self.cfg.kl_threshold:
            self.learning_rate = float(adapted)
            self._rate = self.learning_rate, learning_rate
        return {tag: float(value) for tag, value in scalars.items()}

    # Saving.

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes, with NumPy arrays and the device's name."""
        self._read_update()
        arrays = {name: getattr(self, name) for name in ARRAYS}
        others = {"device": f"{self.device.platform}:{self.device.id}", "_rate": None}
        return vars(self) | jax.device_get(arrays) | others

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the result of `__getstate__`, on the same device if there is one."""
        device = state["_framework"].find_device_or_default(state["device"])
        arrays = jax.device_put({name: state[name] for name in ARRAYS}, device, may_alias=False)
        specification = programs.the_one(state["_specification"]._replace(is_on_cpu=device.platform == "cpu"))
        vars(self).update(state | arrays | {"device": device, "_specification": specification})

    def _state(self) -> dict[str, Any]:
        models = flatten_dict(self._weights | {"normalizers": self._normalizers}, sep=".")
        adam = self._optimizer
        moments = {"exp_avg": flatten_dict(adam.mu, sep="."), "exp_avg_sq": flatten_dict(adam.nu, sep=".")}
        copies = jax.tree.map(jnp.array, {"models": models, "optimizer": moments})
        copies["optimizer"]["step"] = int(adam.count)
        return copies

    def _restore(self, state: Mapping[str, Any]) -> None:
        weights = unflatten_dict(state["models"], sep=".")
        normalizers = weights.pop("normalizers", {})
        moments = state["optimizer"]
        trees = {name: unflatten_dict(moments[name], sep=".") for name in ("exp_avg", "exp_avg_sq")}
        optimizer = type(self._optimizer)(count=moments["step"], mu=trees["exp_avg"], nu=trees["exp_avg_sq"])
        copies = jax.tree.map(
            lambda given, kept: given.astype(kept.dtype),
            (weights, optimizer, normalizers),
            (self._weights, self._optimizer, self._normalizers),
        )
        self._weights, self._optimizer, self._normalizers = self._copied(copies)

    def _copied(self, tree: Any) -> Any:
        """Return copies on the device of a tree of NumPy arrays, which may change afterwards.

        `jax.device_put` may keep their memory, even with ``may_alias=False``, and `jax.numpy.array` may read it later.
        """
        return jax.block_until_ready(jax.device_put(jax.tree.map(jnp.array, tree), self.device))

    def _progress(self) -> dict[str, Any]:
        rollout = dict(self._begun_rollout())
        following = rollout.pop("next")
        return {"rollout": rollout, "next": following, "key": self._key, "generator": self._generator}

    def _resume(self, state: Mapping[str, Any]) -> None:
        self._rollout, self._key = self._copied((state["rollout"] | {"next": state["next"]}, state["key"]))
        self._generator = state["generator"]
