"""Agents that do nothing, record everything that they are given, draw random numbers, or die."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from workers.frameworks import Framework, load_framework
from workers.spaces import action_width
from workers.types import Scope


def framework_of(array: Any) -> Framework:
    """Return the framework of an array."""
    package = type(array).__module__.partition(".")[0]
    return load_framework({"jaxlib": "jax"}.get(package, package))


def to_numpy(array: Any) -> Any:
    """Return an array as a NumPy array; None unchanged."""
    return None if array is None else framework_of(array).to_numpy(array)


class NullAgent:
    """Agent with all required members, whose actions are zeros."""

    def __init__(self, scope: Scope | None = None) -> None:
        self.training = False

    def init(self, *, trainer_cfg: Any = None) -> None:
        self.trainer_cfg = trainer_cfg

    def enable_training_mode(self, enabled: bool = True) -> None:
        self.training = enabled

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        pass

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        return framework_of(observations).from_numpy(np.zeros((len(observations), 1), np.float32)), {}

    def record_transition(self, **arguments: Any) -> None:
        pass

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        pass

    def track_data(self, tag: str, value: float) -> None:
        pass


class RecordingAgent(NullAgent):
    """Agent whose actions are ``100 row + timestep``; it keeps copies of every argument of every call, in order."""

    def __init__(self, scope: Scope | None = None) -> None:
        super().__init__(scope)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.tracked: list[tuple[str, float]] = []

    def _note(self, name: str, **arguments: Any) -> None:
        self.calls.append((name, {key: copied(value) for key, value in arguments.items()}))

    def records(self) -> list[dict[str, Any]]:
        return [arguments for name, arguments in self.calls if name == "record"]

    def init(self, *, trainer_cfg: Any = None) -> None:
        self._note("init")

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        self._note("pre", training=self.training, timestep=timestep, timesteps=timesteps)

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        actions, framework = 100 * to_numpy(observations)[:, :1] + timestep, framework_of(observations)
        self._note("act", observations=observations, states=states, timestep=timestep, timesteps=timesteps)
        return framework.from_numpy(actions), {"mean_actions": framework.from_numpy(-actions)}

    def record_transition(self, **arguments: Any) -> None:
        self._note("record", **arguments)

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        self._note("post", training=self.training, timestep=timestep, timesteps=timesteps)

    def track_data(self, tag: str, value: float) -> None:
        self.tracked.append((tag, value))


class RecordingTeam(RecordingAgent):
    """Multi-agent whose action is the first legal one if it gets a mask, else ``1 + timestep % 2``."""

    def __init__(self, action_spaces: Mapping[str, Any], scope: Scope | None = None) -> None:
        super().__init__(scope)
        self.action_spaces = action_spaces

    def act(self, observations: Any, states: Any, *, infos: Any = None, timestep: int, timesteps: int) -> Any:
        self._note("act", observations=observations, states=states, infos=infos, timestep=timestep)
        actions = {}
        for name, space in self.action_spaces.items():
            array, mask = observations[name], infos.get(name, {}).get("action_mask")
            chosen = np.full((len(array), action_width(space)), 1 + timestep % 2, space.dtype)
            if mask is not None:
                chosen[:] = int(space.start) + to_numpy(mask).argmax(axis=1)[:, None]
            actions[name] = framework_of(array).from_numpy(chosen)
        return actions, {}


class NoisyAgent(NullAgent):
    """Agent that draws weights and actions from NumPy's global generator, and from torch's if that is its framework."""

    def __init__(self, framework: str, scope: Scope | None = None) -> None:
        super().__init__(scope)
        self.framework = framework
        self.weights = self.draw(4)
        self.drawn: list[float] = []

    def draw(self, *shape: int) -> Any:
        numbers = np.random.standard_normal(shape).astype(np.float32)
        if self.framework == "torch":
            import torch

            numbers += torch.randn(shape).numpy()
        return numbers

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        noise = self.draw(len(observations), 2)
        self.drawn.append(float(noise.sum()))
        return load_framework(self.framework).from_numpy(noise), {}

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        self.weights += self.draw(4)


class DyingAgent(NullAgent):
    """Agent that ends or stops its own process at timestep 3."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        if timestep == 3:
            os.kill(os.getpid(), self.signal_number)
            threading.Event().wait(60)  # the signal may take effect a little later
        return super().act(observations, states, timestep=timestep, timesteps=timesteps)


def copied(value: Any) -> Any:
    """Return a deep copy with NumPy arrays in place of the framework's."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if hasattr(value, "shape") and not isinstance(value, np.generic):
        return np.array(to_numpy(value))
    return value
