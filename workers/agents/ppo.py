"""The framework-independent part of Proximal Policy Optimization: the rollout logic.

Prediction is in `ppo_prediction`, saving in `ppo_saving`.

Each framework subclasses `PPO` and implements the abstract methods: networks, storage and the update.

Sources: PPO, https://arxiv.org/abs/1707.06347; GAE, https://arxiv.org/abs/1506.02438.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from workers.agents.action_bounds import action_map
from workers.agents.base import discrete_components, space_width
from workers.agents.initial_layers import initial_layers
from workers.agents.masks import legal_actions
from workers.agents.ppo_cfg import PPOCfg, resolve_cfg
from workers.agents.ppo_hyperparameters import PPOHyperparameters
from workers.agents.ppo_prediction import PPOPrediction
from workers.errors import AgentError, ConfigError

__all__ = ["PPO", "PPOCfg"]

INPUT_LIMIT = 10.0
"""Normalised observations and states are clipped to ``[-INPUT_LIMIT, INPUT_LIMIT]``."""


class PPO(PPOPrediction, PPOHyperparameters):
    """The framework-independent part of Proximal Policy Optimization (https://arxiv.org/abs/1707.06347).

    Actions of a Box space are Gaussian, with a log standard deviation that does not depend on the observation; how
    they respect the bounds is up to `PPOCfg.action_bounds`. Actions of a Discrete space are categorical. MultiDiscrete
    and MultiBinary actions have an independent categorical component for each element, in C order. The policy sees
    observations; the critic sees states if there is a state space, else observations. Both may be of any space that
    Gymnasium can flatten and are passed as flat arrays. Truncated episodes are bootstrapped from the value of their
    true final observation.

    `act` respects two entries of the infos. ``infos["action_mask"]``: only legal actions are sampled.
    ``infos["alive"]``: the agent does not learn from rows that do not act, and no mean includes them. The rewards and
    flags of such a row are credited to the row's last transition, so an agent that takes turns learns from the
    outcome of the others' moves. If a transition is still waiting for them when the rollout is full, it is bootstrapped
    from the observation at that time.

    `predict` acts on what an environment gives, without a trainer.

    ``pickle`` and ``copy.deepcopy`` copy the whole agent, including the rollout in progress; the copy continues
    bit for bit like the original. Between two iterations, `snapshot` and `restore` do the same without pickle.
    `state_dict` and `save` cover what was learned, without the rollout and the random stream. Names and shapes are the
    same in every framework, so an agent of one framework can load the state of an agent of another. The values of
    ``cfg`` are compiled in: only `set_hyperparameters` changes some of them after construction.

    Args:
        observation_space: Observation space of one environment.
        action_space: Action space of one environment: Discrete, MultiDiscrete, MultiBinary, or a Box of floats.
        state_space: Space of the privileged states of one environment, or None.
        num_envs: Number of environments.
        cfg: Configuration. The agent keeps a copy.
        device: Device of the networks and the rollout, such as ``"cuda:0"``; None for the framework's default device.
            Arrays of other devices may be passed to `act` and `record_transition`; actions are on this one.

    Raises:
        AgentError: A space or `num_envs` is unsuitable, or the device does not exist.
        ConfigError: A value of `cfg` is invalid.
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
        self.architecture = f"the activation {self.cfg.activation}"
        samples = self.cfg.rollouts * num_envs
        if self.cfg.mini_batches > samples:
            raise ConfigError(
                f"PPOCfg.mini_batches is {self.cfg.mini_batches}; expected at most rollouts x num_envs = "
                f"{self.cfg.rollouts} x {num_envs} = {samples}"
            )
        self.device = self._framework.find_device(device)
        self._learning_rate = float(self.cfg.learning_rate)
        # the scalars of an update that the device may not have finished: they are read when they are needed
        self._unread: Callable[[], dict[str, float]] | None = None
        self._recorded = 0  # transitions in the rollout in progress
        self._all_acted = True  # whether none of them came with a mask of the rows that act
        # of the last `act` in training, until its transition is recorded
        self._acting: Any = None  # rows that acted
        self._legal: Any = None  # their legal actions
        self._own: Any = None  # the policy's own actions, if the environment gets others
        self._action_map: Any = None  # on the device
        self._set_widths()
        mapping = action_map(self.action_space, self.cfg.action_bounds)  # first: it may refuse the space
        self._build()
        self._use_action_map(mapping)

    def _set_widths(self) -> None:
        self._input_widths = {"observations": space_width(self.observation_space, "observation_space")}
        if self.state_space is not None:
            self._input_widths["states"] = space_width(self.state_space, "state_space")
        self._critic_input = "observations" if self.state_space is None else "states"
        space = self.action_space
        self._components = discrete_components(space)  # None for Gaussian actions
        if self._components is None and not (isinstance(space, gymnasium.spaces.Box) and space.dtype.kind == "f"):
            supported = "a Discrete, MultiDiscrete, MultiBinary or a Box of floats"
            raise AgentError(f"action_space is {space!r}; expected {supported}")
        self._action_width = len(self._components) if self._components else space_width(space, "action_space")
        # outputs of the policy network: a logit for each category, or the means
        self._head_width = sum(map(len, self._components)) if self._components else self._action_width

    def init(self, *, trainer_cfg: Any = None) -> None:
        """Prepare for a trainer; keep the weights and the transitions recorded so far. See `Agent`."""
        self._interrupt_rollout()

    def enable_training_mode(self, enabled: bool = True, *, apply_to_models: bool = False) -> None:
        """Switch between training and evaluation; the start of evaluation cuts the rollout in progress. See `Agent`."""
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
        """Sample actions from the policy, and map them to the environment's by ``cfg.action_bounds``.

        Args:
            observations: ``(num_envs, size)``, any dtype; in evaluation, any number of rows.
            states: ``(num_envs, size)`` or None; the policy does not use them.
            infos: Infos returned with the observations. The agent uses ``"alive"``, ``(num_envs, 1)`` bool: the rows
                that act; and, for discrete action spaces, ``"action_mask"``, ``(num_envs, n)``: the legal actions of
                each component, one component after the other. All actions of a component without a legal one are
                allowed.
            timestep: Current timestep.
            timesteps: Total number of timesteps.

        Returns:
            Actions, ``(num_envs, size)`` float32 or ``(num_envs, components)`` int64 (int32 in JAX unless 64-bit
            numbers are enabled), and outputs with ``mean_actions`` of the same shape and dtype: the Gaussian mean,
            mapped in the same way, or the most probable category of each component. Both are new arrays.

        Raises:
            AgentError: `observations` or an entry of `infos` has the wrong shape.
        """
        rows = self.num_envs if self.training else None
        self._check_shape("observations", observations, self._input_widths["observations"], rows)
        self._forget_act()
        acting, legal = self._heed(infos, observations.shape[0]) if infos else (None, None)
        own, actions, mean_actions = self._sample_actions(observations, legal)
        if self.training:
            self._acting, self._legal, self._own = acting, legal, own
        return actions, {"mean_actions": mean_actions}

    def _forget_act(self) -> None:
        self._acting = self._legal = self._own = None

    def _heed(self, infos: Mapping[str, Any], rows: int) -> tuple[Any, Any]:
        """Return the rows that act and their legal actions; None for all rows or actions."""
        acting: Any = None
        alive: Any = infos.get("alive")
        # other values are a single-agent environment's own entry of this name
        if getattr(alive, "ndim", 0) == 2 and "bool" in str(alive.dtype):
            acting = alive if self._framework.is_array(alive) else self._framework.from_numpy(alive)
            self._check_shape("infos['alive']", acting, 1, rows)
        mask = infos.get("action_mask")
        if mask is None or not self._components:
            return acting, None
        if self._framework.is_array(mask):
            if mask.shape == (rows, self._head_width) and self._framework.kind(mask) in "bi":
                return acting, self._legal_on_device(mask)
            mask = self._framework.to_numpy(mask)
        return acting, self._framework.from_numpy(legal_actions(mask, rows, list(map(len, self._components))))

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
        """Copy a transition into the rollout; in evaluation, do nothing.

        For rows that are truncated but not terminated, ``discount_factor`` times the value of the next observation is
        added to the recorded reward. The advantage estimation stops at every ended row.

        Args:
            observations: ``(num_envs, size)``.
            states: ``(num_envs, size)``; None if there is no state space.
            actions: ``(num_envs, size)``. Where ``cfg.action_bounds`` changes actions, the policy's own actions of the
                last `act` are recorded in place of these.
            rewards: ``(num_envs, 1)``, float32.
            next_observations: ``(num_envs, size)``, the observations after the actions; the true final ones where an
                episode ended.
            next_states: ``(num_envs, size)``; None if there is no state space.
            terminated: ``(num_envs, 1)``, bool.
            truncated: ``(num_envs, 1)``, bool.
            infos: Not used; the transition uses the infos passed to `act`.
            timestep: Current timestep.
            timesteps: Total number of timesteps.

        Raises:
            AgentError: An array has the wrong shape, the rollout is full because `post_interaction` was not called, or
                the policy's own actions are needed and `act` was not called in training since the last transition.
        """
        if not self.training:
            return
        if self._recorded >= self.cfg.rollouts:
            raise AgentError(
                f"the rollout of {self.cfg.rollouts} timesteps is full; call post_interaction after record_transition"
            )
        arrays = {"observations": observations, "states": states}
        next_arrays = {"observations": next_observations, "states": next_states}
        for name, width in self._input_widths.items():
            self._check_shape(name, arrays[name], width, self.num_envs)
            self._check_shape(f"next_{name}", next_arrays[name], width, self.num_envs)
        self._check_shape("actions", actions, self._action_width, self.num_envs)
        for name, array in (("rewards", rewards), ("terminated", terminated), ("truncated", truncated)):
            self._check_shape(name, array, 1, self.num_envs)
        if self._action_map is not None and self._own is None:
            raise AgentError(
                "record_transition() needs an act() in training before it: with action_bounds "
                f"{self.cfg.action_bounds!r}, it records the policy's own actions of that act()"
            )
        self._store_transition(
            self._recorded,
            inputs={name: arrays[name] for name in self._input_widths},
            next_critic_input=next_arrays[self._critic_input],
            actions=actions if self._own is None else self._own,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            acted=self._acting,
            action_mask=self._legal,
        )
        self._all_acted = self._acting is None and (self._all_acted or not self._recorded)
        self._forget_act()
        self._recorded += 1

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Learn once ``cfg.rollouts`` transitions are recorded; in evaluation, do nothing. See `Agent`."""
        if not self.training or self._recorded < self.cfg.rollouts:
            return
        try:
            if self._all_acted or len(self._acted()):  # else there is nothing to learn from
                self._unread = self._update(self._draw_orders())
                if self._framework.device_name(self.device).startswith("cpu"):  # it has computed everything
                    self._read_update()
        finally:  # even after an error: another trainer may continue with this agent
            self._recorded = 0

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Track the scalars of the last update: here, an agent on a GPU waits for it. See `Learner`."""
        self._read_update()

    def write_tracking_data(self, *, timestep: int, timesteps: int) -> None:
        """Write all tracked scalars; see `Learner`."""
        self._read_update()
        super().write_tracking_data(timestep=timestep, timesteps=timesteps)

    def _interrupt_rollout(self) -> None:
        """Truncate the episodes in progress, because the next transition will not follow the last recorded one."""
        if self._recorded:
            self._cut_rollout(self._recorded - 1)

    def _initial_networks(self, generator: np.random.Generator) -> tuple[Any, Any]:
        """Return the initial layers of the policy network and the critic; see `initial_layers`."""
        hidden, widths = self.cfg.hidden_sizes, self._input_widths
        policy = initial_layers((widths["observations"], *hidden, self._head_width), 0.01, generator)
        return policy, initial_layers((widths[self._critic_input], *hidden, 1), 1.0, generator)

    # Implemented by each framework.

    @abstractmethod
    def _build(self) -> None:
        """Create networks, optimiser (Adam), normalisers and rollout on `device`.

        Weights are orthogonal, with gain sqrt(2) in hidden layers, 0.01 in the policy's head and 1 in the critic's.
        """

    def _legal_on_device(self, mask: Any) -> Any:
        """Return a new array of the legal actions of `mask`, as `legal_actions` does, if possible without waiting.

        `mask` is an array of the framework, ``(rows, categories)``, of bools or integers.
        """
        mask = self._framework.to_numpy(mask)
        return self._framework.from_numpy(legal_actions(mask, len(mask), list(map(len, self._components or ()))))

    @abstractmethod
    def _sample_actions(self, observations: Any, action_mask: Any) -> tuple[Any, Any, Any]:
        """Return the policy's own actions, None without an `_action_map`, and new arrays of actions and mean actions.

        `action_mask` is ``(rows, categories)`` bool; None if all actions are legal.
        """

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
        """Copy a transition to `row` of the rollout and add the discounted next values to truncated rewards.

        Args:
            row: Timestep in the rollout.
            inputs: Observations, and states if there are any.
            next_critic_input: The critic's input after the actions; kept until the next transition.
            actions: The policy's own actions, ``(num_envs, size)``.
            rewards: ``(num_envs, 1)``.
            terminated: ``(num_envs, 1)``.
            truncated: ``(num_envs, 1)``.
            acted: ``(num_envs, 1)`` bool; None if all rows acted.
            action_mask: ``(num_envs, categories)`` bool; None if all actions were legal.
        """

    @abstractmethod
    def _acted(self) -> Any:
        """Return the indices, NumPy's or the framework's, of the samples whose row acted; see `_draw_orders`.

        This waits for the device. It is only called if `_all_acted` is false.
        """

    @abstractmethod
    def _cut_rollout(self, row: int) -> None:
        """Truncate the episodes that continue after `row`, the last one recorded. A second call changes nothing."""

    @abstractmethod
    def _draw_orders(self) -> Any:
        """Draw a random order of the rollout's samples for each epoch: ``(learning_epochs, rollouts x num_envs)``.

        Sample ``t x num_envs + i`` belongs to environment i at timestep t of the rollout. An order contains only
        samples whose row acted. If these are not all, the order is repeated to full length, so that mini-batches keep
        their sizes. Each order is split into `mini_batches` parts; if they cannot be equal, the first parts have one
        sample more.
        """

    @abstractmethod
    def _update(self, orders: Any) -> Callable[[], dict[str, float]]:
        """Update from a full rollout, and then the statistics of the inputs, without waiting for the device.

        Args:
            orders: The result of `_draw_orders`.

        Returns:
            A function that waits for the device, sets `learning_rate`, and returns the scalars to track.
        """
