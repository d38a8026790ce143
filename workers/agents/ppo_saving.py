"""The framework-independent saving of PPO agents: what was learned, and the whole state between two iterations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.agents.action_bounds import action_map
from workers.agents.base import Agent
from workers.agents.plain_data import fitting, from_plain, to_plain
from workers.agents.ppo_cfg import PPOCfg
from workers.storage.state_file import conform_state

__all__ = ["PPOSaving"]

MOST_STEPS = 2**31
"""Frameworks count Adam's steps in 32 bits."""


class PPOSaving(Agent):
    """The part of `workers.agents.ppo.PPO` that saves and restores."""

    cfg: PPOCfg
    _learning_rate: float
    _unread: Callable[[], dict[str, float]] | None
    _components: tuple[range, ...] | None
    _head_width: int
    _recorded: int
    _all_acted: bool

    # The last update.

    @property
    def learning_rate(self) -> float:
        """Adam's learning rate, which updates adapt if ``cfg.kl_threshold`` is positive."""
        self._read_update()
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._read_update()  # which would set it later
        self._learning_rate = value

    def _read_update(self) -> None:
        """Wait for the last update, if nothing has yet, and track its scalars."""
        read, self._unread = self._unread, None
        if read is not None:
            for tag, value in (read() | {"Learning / Learning rate": self._learning_rate}).items():
                self.track_data(tag, value)

    # What was learned.

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything learned, as dictionaries of the framework's arrays and of numbers.

        Returns:
            ``"models"``: arrays by name, such as ``policy.network.0.weight`` ``(outputs, inputs)``, ``value.0.bias``,
            ``policy.log_std``, ``normalizers.observations.mean``. ``"optimizer"``: ``"step"``, the number of Adam
            steps, and the moments ``"exp_avg"`` and ``"exp_avg_sq"``, by parameter name. ``"learning_rate"``: the
            current learning rate. ``"action_bounds"``: that of the configuration, if the actions are of a Box.
        """
        state = self._state() | {"learning_rate": self.learning_rate}
        return state if self._components else state | {"action_bounds": self.cfg.action_bounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state and drop the rollout in progress, which other weights collected.

        Args:
            state: State returned by `state_dict` of an agent of the same shape, with arrays of this framework or NumPy.
                Its ``"action_bounds"`` replaces that of ``cfg``; without it, it is ``"none"``.

        Raises:
            AgentError: `state` does not fit this agent. The agent remains unchanged.
        """
        with fitting("state"):
            learned = self._checked(state)
        self._load(*learned)

    def _checked(self, state: Any) -> tuple[dict[str, Any], PPOCfg, npt.NDArray[np.float32] | None]:
        """Return a state with NumPy arrays, the configuration and the action map that belong to it.

        Raises:
            ValueError: `state` does not fit this agent.
            TypeError: A value is not numeric.
        """
        cfg, expected = self.cfg, self.state_dict()
        if expected.pop("action_bounds", None) and isinstance(state, Mapping):
            state = dict(state)
            cfg = replace(cfg, action_bounds=state.pop("action_bounds", "none"))
            cfg.validate()
        numbers = conform_state(state, expected, self._framework)
        steps = numbers["optimizer"]["step"]
        if not 0 <= steps < MOST_STEPS:
            raise ValueError(f"state['optimizer']['step'] is {steps}; expected a number from 0 to {MOST_STEPS - 1}")
        return numbers, cfg, action_map(self.action_space, cfg.action_bounds)

    def _load(self, numbers: dict[str, Any], cfg: PPOCfg, mapping: npt.NDArray[np.float32] | None) -> None:
        self._restore(numbers)
        self.learning_rate = float(numbers["learning_rate"])
        self.cfg, self._recorded = cfg, 0
        self._use_action_map(mapping)
        self._forget_act()

    # The whole state between two iterations.

    def snapshot(self) -> dict[str, Any]:
        """Return copies of the whole state between two iterations; see `Learner`.

        Returns:
            ``"state_dict"``: what was learned. ``"rollout"``: the recorded rows of each array; ``"recorded"``: their
            number, out of ``"rollouts"``. ``"next"``: the critic's raw input after the last one. ``"tracked"``: the
            scalars not yet written. ``"training"``: the mode. In JAX and Warp, the states of the random streams.
        """
        parts = self._parts()
        # the others are of earlier rollouts, and written before they are read
        rows = {name: self._framework.to_numpy(array)[: self._recorded] for name, array in parts["rollout"].items()}
        return to_plain(parts | {"rollout": rows}, self._framework)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot of an agent that was built alike; see `Learner`."""
        parts = self._parts()
        arrays = parts.pop("rollout")
        with fitting("snapshot"):
            given = {**state}
            rows = given.pop("rollout", None)
            given = from_plain(given, parts, self._framework)
            rollout = self._checked_rollout(rows, arrays, given)
            learned = self._checked(given["state_dict"])
        self._load(*learned)
        self._recorded, self.training, self.tracked = given["recorded"], given["training"], given["tracked"]
        self._all_acted = bool(rollout["acted"].all())
        self._resume(given | {"rollout": rollout})

    def _parts(self) -> dict[str, Any]:
        """Return the parts of a snapshot as they are, with all rows of the rollout."""
        progress = self._progress()  # first: in JAX, an interrupted rollout is empty
        common = {"training": self.training, "tracked": self.tracked, "state_dict": self.state_dict()}
        return common | {"rollouts": self.cfg.rollouts, "recorded": self._recorded} | progress

    def _checked_rollout(
        self, rows: Any, arrays: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the whole rollout: the recorded rows, followed by ones, which set the masks.

        Args:
            rows: ``"rollout"`` of a snapshot.
            arrays: The agent's own rollout.
            given: The rest of the snapshot, with checked names and types.

        Raises:
            ValueError: The rows do not fit.
            TypeError: A value is no array.
        """
        length, recorded = self.cfg.rollouts, given["recorded"]
        if given["rollouts"] != length:
            raise ValueError(f"snapshot['rollouts'] is {given['rollouts']}; expected {length}")
        if not 0 <= recorded <= length:
            raise ValueError(f"snapshot['recorded'] is {recorded}; expected a number from 0 to {length}")
        blank = {
            name: np.ones((length, *array.shape[1:]), self._framework.to_numpy(array).dtype)
            for name, array in arrays.items()
        }
        # there since the first mask only
        masks = blank.pop("action_mask", None)
        if self._components and isinstance(rows, Mapping) and "action_mask" in rows:
            blank["action_mask"] = (
                np.ones((length, self.num_envs, self._head_width), np.bool_) if masks is None else masks
            )
        expected = {name: array[:recorded] for name, array in blank.items()}
        for name, array in from_plain(rows, expected, self._framework, "snapshot['rollout']").items():
            blank[name][:recorded] = array
        return blank

    # Implemented by `PPO`, or by each framework.

    @abstractmethod
    def _forget_act(self) -> None:
        """Drop what the last `act` keeps for its transition."""

    @abstractmethod
    def _use_action_map(self, mapping: npt.NDArray[np.float32] | None) -> None:
        """Set `_action_map` to a result of `action_map`, on `device`."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """Return copies of ``"models"`` and ``"optimizer"`` for `state_dict`."""

    @abstractmethod
    def _restore(self, state: Mapping[str, Any]) -> None:
        """Copy in a state of the same form as that of `_state`, in NumPy arrays with checked names and shapes."""

    @abstractmethod
    def _progress(self) -> dict[str, Any]:
        """Return what changes between two iterations and is not in `state_dict`; not as copies.

        Returns:
            ``"rollout"``: arrays ``(rollouts, num_envs, width)`` by name, with ``"action_mask"`` at the latest after
            the first mask. ``"next"``: the critic's raw input after the last recorded row, ``(num_envs, width)``. The
            arrays and NumPy generators of the agent's random streams, by other names.
        """

    @abstractmethod
    def _resume(self, state: Mapping[str, Any]) -> None:
        """Copy in a state with the items of `_progress`, in NumPy arrays with checked names, shapes and dtypes.

        Its generators are the agent's to keep. Rows of the rollout that are not recorded yet contain ones. Without
        ``"action_mask"`` there, all actions were legal.
        """
