"""Proximal Policy Optimization without the arrays: rollout logic, saving.

A framework subclasses `PPO` and implements the abstract methods: networks, storage and the update.

Sources: PPO, https://arxiv.org/abs/1707.06347; GAE, https://arxiv.org/abs/1506.02438.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from workers.agents.base import Agent, discrete_components, space_width
from workers.agents.initial_layers import initial_layers
from workers.agents.masks import legal_actions
from workers.agents.ppo_cfg import PPOCfg, resolve_cfg
from workers.errors import AgentError, ConfigError
from workers.storage.state_file import conform_state

__all__ = ["PPO", "PPOCfg"]

INPUT_LIMIT = 10.0
"""Normalised observations and states are limited to this and its negative."""


class PPO(Agent):
    """Proximal Policy Optimization (https://arxiv.org/abs/1707.06347), the part that needs no arrays.

    Actions of a Box space are Gaussian with a log standard deviation that does not depend on the observation, and
    are not clipped to the space's bounds. Those of a Discrete space are categorical; those of MultiDiscrete and
    MultiBinary have an independent categorical component for each element, in C order. The policy sees observations,
    the critic sees states where there is a state space, else observations: any space that Gymnasium can flatten, as
    arrays that are flat already. Episodes that are truncated are bootstrapped from the value of their true final
    observation.

    What the infos say of the observations is heeded. ``infos["action_mask"]``: only legal actions are sampled.
    ``infos["alive"]``: rows that do not act are not learnt from and count in no mean. What arrives in such a row,
    reward and end, belongs to the row's last transition, so that an agent that moves in turns learns from what the
    others' moves bring it. A transition that waits so when the rollout is full is bootstrapped from the observation
    at that time.

    ``pickle`` and ``copy.deepcopy`` carry the whole agent, with the rollout in progress: the copy goes on bit for bit
    as the original. `state_dict` and `save` carry what was learnt, without the rollout and the random stream; its
    names and shapes are the same in every framework, so an agent of one can go on as that of another. Values of ``cfg``
    are compiled in: they are not to be changed after construction.

    Args:
        observation_space: Space of one environment's observations.
        action_space: Space of one environment's actions: Discrete, MultiDiscrete, MultiBinary, or a Box of floats.
        state_space: Space of one environment's privileged states, or None.
        num_envs: Number of environments.
        cfg: Configuration; a copy is kept.
        device: Where the arrays live; None for the framework's default.

    Raises:
        AgentError: A space or `num_envs` is unsuitable, or there is no such device.
        ConfigError: A value of `cfg` is wrong.
    """

    def __init__(
        self,
        *,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        state_space: gymnasium.Space[Any] | None = None,
        num_envs: int,
        cfg: PPOCfg | Mapping[str, Any] | None = None,
        device: Any = None,
    ) -> None:
        super().__init__(
            observation_space=observation_space,
            action_space=action_space,
            state_space=state_space,
            num_envs=num_envs,
        )
        self.cfg = resolve_cfg(cfg)
        samples = self.cfg.rollouts * num_envs
        if self.cfg.mini_batches > samples:
            raise ConfigError(
                f"PPOCfg.mini_batches must be at most rollouts x num_envs = {self.cfg.rollouts} x {num_envs} = "
                f"{samples}, got {self.cfg.mini_batches}"
            )
        self.device = device
        self.learning_rate = float(self.cfg.learning_rate)
        self._recorded = 0  # transitions in the rollout in progress
        self._acting: Any = None  # which rows the last `act` was for
        self._legal: Any = None  # what they might do
        self._set_widths()
        self._build()

    def _set_widths(self) -> None:
        self._input_widths = {"observations": space_width(self.observation_space, "observation_space")}
        if self.state_space is not None:
            self._input_widths["states"] = space_width(self.state_space, "state_space")
        self._critic_input = "observations" if self.state_space is None else "states"
        space = self.action_space
        self._components = discrete_components(space)  # None for Gaussian actions
        if self._components is None and not (isinstance(space, gymnasium.spaces.Box) and space.dtype.kind == "f"):
            supported = "a Discrete, MultiDiscrete, MultiBinary or a Box of floats"
            raise AgentError(f"action_space must be {supported}, got {space!r}")
        self._action_width = len(self._components) if self._components else space_width(space, "action_space")
        # what the policy's network returns: a logit for each category, or the means
        self._head_width = sum(map(len, self._components)) if self._components else self._action_width

    def init(self, *, trainer_cfg: Any = None) -> None:
        """Make ready for a trainer; weights, and transitions recorded so far, are kept.

        Args:
            trainer_cfg: The trainer's configuration.
        """
        self._interrupt_rollout()

    def enable_training_mode(self, enabled: bool = True, *, apply_to_models: bool = False) -> None:
        """Switch between training and evaluation, which cuts the rollout in progress; see `Agent`."""
        if self.training and not enabled:
            self._interrupt_rollout()
        super().enable_training_mode(enabled, apply_to_models=apply_to_models)

    def act(
        self,
        observations: Any,
        states: Any,
        *,
        infos: Mapping[str, Any] | None = None,
        timestep: int,
        timesteps: int,
    ) -> tuple[Any, dict[str, Any]]:
        """Sample actions from the policy.

        Args:
            observations: ``(num_envs, size)``, any dtype; in evaluation any number of rows.
            states: ``(num_envs, size)``, or None; the policy does not use them.
            infos: What comes with the observations. Used are ``"alive"``, ``(num_envs, 1)`` bool: the rows that act;
                and, of a discrete action space, ``"action_mask"``, ``(num_envs, n)``: the legal actions, for a space of
                several components those of each after the other. A component without a legal action may do anything.
            timestep: Current timestep.
            timesteps: Total number of timesteps.

        Returns:
            Actions, ``(num_envs, size)`` float32 or ``(num_envs, components)`` int64 (int32 in JAX, unless its 64-bit
            numbers are enabled), and outputs with ``mean_actions`` of the same shape and dtype: the Gaussian mean or
            the most probable category of each component. Both are fresh arrays.

        Raises:
            AgentError: `observations`, or something in `infos`, has the wrong shape.
        """
        rows = self.num_envs if self.training else None
        self._check_shape("observations", observations, self._input_widths["observations"], rows)
        self._acting = self._legal = None
        if infos:
            self._heed(infos, observations.shape[0])
        return self._sample_actions(observations, self._legal)

    def _heed(self, infos: Mapping[str, Any], rows: int) -> None:
        """Take note of who acts, and what is legal."""
        alive: Any = infos.get("alive")
        # anything else is an entry of this name that a single-agent environment has for itself
        if getattr(alive, "ndim", 0) == 2 and "bool" in str(alive.dtype):
            self._acting = alive if self._framework.is_array(alive) else self._framework.from_numpy(alive)
            self._check_shape("infos['alive']", self._acting, 1, rows)
        mask = infos.get("action_mask")
        if mask is not None and self._components:
            mask = self._framework.to_numpy(mask) if self._framework.is_array(mask) else mask
            self._legal = self._framework.from_numpy(legal_actions(mask, rows, list(map(len, self._components))))

    def record_transition(
        self,
        *,
        observations: Any,
        states: Any,
        actions: Any,
        rewards: Any,
        next_observations: Any,
        next_states: Any,
        terminated: Any,
        truncated: Any,
        infos: Any,
        timestep: int,
        timesteps: int,
    ) -> None:
        """Copy a transition into the rollout; in evaluation nothing is recorded.

        A row that is truncated but not terminated has ``discount_factor`` times the value of its next observation
        added to the recorded reward; every ended row cuts the advantage estimation.

        Args:
            observations: ``(num_envs, size)``.
            states: ``(num_envs, size)``; None where there is no state space.
            actions: ``(num_envs, size)``.
            rewards: ``(num_envs, 1)``, float32.
            next_observations: ``(num_envs, size)``, what the actions led to: the final ones where an episode ended.
            next_states: ``(num_envs, size)``; None where there is no state space.
            terminated: ``(num_envs, 1)``, bool.
            truncated: ``(num_envs, 1)``, bool.
            infos: Not used: those that `act` was given are what the transition begins with.
            timestep: Current timestep.
            timesteps: Total number of timesteps.

        Raises:
            AgentError: An array has the wrong shape, or the rollout is full because `post_interaction` was not called.
        """
        acting, legal = self._acting, self._legal
        self._acting = self._legal = None
        if not self.training:
            return
        if self._recorded >= self.cfg.rollouts:
            raise AgentError(
                f"the rollout of {self.cfg.rollouts} timesteps is full: call post_interaction after record_transition"
            )
        arrays = {"observations": observations, "states": states}
        next_arrays = {"observations": next_observations, "states": next_states}
        for name, width in self._input_widths.items():
            self._check_shape(name, arrays[name], width, self.num_envs)
            self._check_shape(f"next_{name}", next_arrays[name], width, self.num_envs)
        self._check_shape("actions", actions, self._action_width, self.num_envs)
        for name, array in (("rewards", rewards), ("terminated", terminated), ("truncated", truncated)):
            self._check_shape(name, array, 1, self.num_envs)
        self._store_transition(
            self._recorded,
            inputs={name: arrays[name] for name in self._input_widths},
            next_critic_input=next_arrays[self._critic_input],
            actions=actions,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            acted=acting,
            action_mask=legal,
        )
        self._recorded += 1

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Learn when ``cfg.rollouts`` transitions have been recorded; in evaluation do nothing.

        Args:
            timestep: Current timestep.
            timesteps: Total number of timesteps.
        """
        if self.training and self._recorded == self.cfg.rollouts:
            try:
                self._learn()
            finally:  # after an error, too: another trainer may go on with the agent
                self._recorded = 0

    def _learn(self) -> None:
        """One update from a full rollout, if there is anything in it to learn from."""
        if not len(self._acted()):
            return
        for tag, value in self._update(self._draw_orders()).items():
            self.track_data(tag, value)
        self.track_data("Learning / Learning rate", self.learning_rate)

    def _interrupt_rollout(self) -> None:
        """What is recorded next will not follow the last transition: treat its rows as truncated there."""
        if self._recorded:
            self._cut_rollout(self._recorded - 1)

    # Saving.

    def state_dict(self) -> dict[str, Any]:
        """What was learnt, as copies, in plain dictionaries of the framework's arrays and numbers.

        Returns:
            ``"models"``: arrays by name, such as ``policy.network.0.weight`` ``(outputs, inputs)``, ``value.0.bias``,
            ``policy.log_std``, ``normalizers.observations.mean``. ``"optimizer"``: ``"step"``, the number of Adam's
            steps, and its moments ``"exp_avg"`` and ``"exp_avg_sq"``, by the names of the weights.
            ``"learning_rate"``: the current one.
        """
        return self._state() | {"learning_rate": self.learning_rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. A rollout in progress is dropped: other weights gathered it.

        Args:
            state: What `state_dict` of an agent of the same shape returned, with arrays of this framework or NumPy's.

        Raises:
            AgentError: `state` does not fit this agent, which is left as it was.
        """
        try:
            numbers = conform_state(state, self.state_dict(), self._framework)
        except (TypeError, ValueError) as error:
            raise AgentError(f"the state does not fit this agent: {error}") from error
        self._restore(numbers)
        self.learning_rate = float(numbers["learning_rate"])
        self._recorded = 0

    def _check_shape(self, name: str, array: Any, width: int, rows: int | None) -> None:
        is_array = self._framework.is_array(array)
        shape: tuple[int, ...] = tuple(array.shape) if is_array else ()
        if len(shape) != 2 or shape[1] != width or rows not in (None, shape[0]):
            given = f"shape {shape}" if is_array else f"{type(array).__qualname__}, which is none of {self.framework}"
            expected = f"({'rows' if rows is None else rows}, {width})"
            raise AgentError(f"{name} must be an array of shape {expected}, got {given}")

    def _initial_networks(self, generator: np.random.Generator) -> tuple[Any, Any]:
        """Layers of a fresh policy network and a fresh critic; see `initial_layers`."""
        hidden, widths = self.cfg.hidden_sizes, self._input_widths
        policy = initial_layers((widths["observations"], *hidden, self._head_width), 0.01, generator)
        return policy, initial_layers((widths[self._critic_input], *hidden, 1), 1.0, generator)

    # What a framework implements.

    @abstractmethod
    def _build(self) -> None:
        """Make networks, optimiser (Adam), normalisers and rollout, on `device`.

        Weights are orthogonal, of gain sqrt(2) in hidden layers, 0.01 in the policy's head and 1 in the value's.
        """

    @abstractmethod
    def _sample_actions(self, observations: Any, action_mask: Any) -> tuple[Any, dict[str, Any]]:
        """What `act` returns; `action_mask` is ``(rows, categories)`` bool, or None where everything is legal."""

    @abstractmethod
    def _store_transition(
        self,
        row: int,
        *,
        inputs: dict[str, Any],
        next_critic_input: Any,
        actions: Any,
        rewards: Any,
        terminated: Any,
        truncated: Any,
        acted: Any,
        action_mask: Any,
    ) -> None:
        """Copy a transition to `row` of the rollout, with the discounted next values added to truncated rewards.

        Args:
            row: Timestep in the rollout.
            inputs: Observations, and states where there are any.
            next_critic_input: What the critic sees after the actions; it is kept until the next transition.
            actions: ``(num_envs, size)``.
            rewards: ``(num_envs, 1)``.
            terminated: ``(num_envs, 1)``.
            truncated: ``(num_envs, 1)``.
            acted: ``(num_envs, 1)`` bool; None where all did.
            action_mask: ``(num_envs, categories)`` bool; None where everything was legal.
        """

    @abstractmethod
    def _acted(self) -> Any:
        """Indices, in NumPy or the framework, of the rollout's samples that were acted on; see `_draw_orders`."""

    @abstractmethod
    def _cut_rollout(self, row: int) -> None:
        """End the episodes that go on after `row`, the last one recorded, as by truncation; again, change nothing."""

    @abstractmethod
    def _draw_orders(self) -> Any:
        """Random orders of the rollout's samples, one for each epoch: ``(learning_epochs, rollouts x num_envs)``.

        Sample ``t x num_envs + i`` is that of environment i at timestep t of the rollout. An order is made of the
        samples that were acted on, and where these are not all it begins again until it has its length: mini-batches
        keep their sizes. Each order is cut into `mini_batches` parts, the first of which have one sample more where it
        does not divide evenly.
        """

    @abstractmethod
    def _update(self, orders: Any) -> dict[str, float]:
        """One update from a full rollout, which sets `learning_rate`; the statistics of the inputs come last.

        Args:
            orders: What `_draw_orders` gave.

        Returns:
            The scalars to track.
        """

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """``"models"`` and ``"optimizer"`` of `state_dict`, as copies."""

    @abstractmethod
    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over copies of what `_state` gave, which is NumPy's now, of the right names and shapes."""
