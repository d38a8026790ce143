"""The framework-independent prediction of PPO agents: actions for observations as environments give them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Dict, Tuple

from workers.agents.base import Agent
from workers.by_agent import map_tree
from workers.errors import AgentError, EnvError
from workers.spaces import check_members, check_space, flatten_rows, mask_columns, unflatten_actions

__all__ = ["PPOPrediction"]


class PPOPrediction(Agent):
    """The part of `workers.agents.ppo.PPO` that acts without a trainer."""

    _input_widths: dict[str, int]

    def predict(self, observations: Any, *, action_mask: Any = None) -> Any:
        """Return the most likely actions: the mean, as ``action_bounds`` maps it, or the most probable categories.

        Nothing of the agent changes, nor does a random generator: it may be called in the middle of a rollout. JAX
        compiles, and Warp allocates, once for each number of rows.

        Args:
            observations: One observation, as the environment's `reset` and `step` return it: an array (or number) of
                the observation space, or for a Dict or Tuple space a dictionary or tuple of them. Or a batch of any
                number of them, as a vector environment returns it: the same with an additional first dimension. Or
                flat observations, ``(rows, size)``, in an array of the agent's framework, as the trainer returns them.
            action_mask: Legal actions of a discrete action space: ``(n,)`` for one observation, else ``(rows, n)``, as
                `act` takes them in its infos. None: those of the ``action_mask`` in a Dict observation, else all.

        Returns:
            What the environment's `step` takes: a NumPy array (for one observation of a Discrete space, a NumPy
            integer) of the action space's shape and dtype; for a batch, with an additional first dimension. For an
            array of the framework, a new one of flat actions: ``(rows, size)`` float32, or ``(rows, components)``
            integers.

        Raises:
            AgentError: The observations are not of the observation space, or the mask has another shape.
        """
        if self._framework.is_array(observations):
            return self._predicted(observations, action_mask)
        flat, is_batch = self._flat_rows(observations)
        if action_mask is not None and not is_batch:
            action_mask = np.reshape(action_mask, (1, -1))
        flat_actions = self._predicted(flat, action_mask)
        # a copy, because JAX's cannot be written to
        actions = unflatten_actions(self.action_space, np.array(self._framework.to_numpy(flat_actions)))
        return actions if is_batch else actions[0]

    def _flat_rows(self, given: Any) -> tuple[Any, bool]:
        """Return observations as an array of the framework, ``(rows, size)``, and whether they are a batch.

        Raises:
            AgentError: They are not of the observation space, or the framework cannot hold a number.
        """
        try:
            check_space(self.observation_space, "observation_space")
            is_batch = _is_batch(self.observation_space, given)
            batch = given if is_batch else map_tree(lambda leaf: np.asarray(leaf)[None], given)
            return self._framework.from_numpy(flatten_rows(self.observation_space, batch)), is_batch
        except (EnvError, ValueError) as error:
            raise AgentError(
                "predict takes one observation of the observation space, a batch of them, or flat observations in an "
                f"array of the agent's framework; {error}"
            ) from error

    def _predicted(self, observations: Any, action_mask: Any) -> Any:
        self._check_shape("observations", observations, self._input_widths["observations"], None)
        columns = mask_columns(self.observation_space)
        if action_mask is None and columns is not None:
            action_mask = self._framework.to_numpy(observations)[:, columns] != 0
        _, legal = self._heed({"action_mask": action_mask}, observations.shape[0])
        return self._mean_actions(observations, legal)

    # Implemented by `PPO`, or by each framework.

    @abstractmethod
    def _heed(self, infos: Mapping[str, Any], rows: int) -> tuple[Any, Any]:
        """Return the rows that act and their legal actions; None for all rows or actions."""

    @abstractmethod
    def _mean_actions(self, observations: Any, action_mask: Any) -> Any:
        """Return a new array of mean actions like that of `act`, and leave everything as it is.

        `action_mask` is ``(rows, categories)`` bool; None if all actions are legal.
        """


def _is_batch(space: Any, given: Any) -> bool:
    """Whether the first array in `given` has more dimensions than its space."""
    while isinstance(space, (Dict, Tuple)):
        keys: list[Any] = list(space.spaces) if isinstance(space, Dict) else list(range(len(space.spaces)))
        check_members(given, space, keys, "an observation")
        space, given = space[keys[0]], given[keys[0]]
    return np.ndim(given) > len(space.shape)
