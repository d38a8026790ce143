"""Agents that take note of everything that they are given."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import torch

from workers.types import Scope


class NullAgent:
    """Has all members, and acts on zeros."""

    def __init__(self, scope: Scope | None = None) -> None:
        self.training = False

    def init(self, *, trainer_cfg: Any = None) -> None:
        self.trainer_cfg = trainer_cfg

    def enable_training_mode(self, enabled: bool = True) -> None:
        self.training = enabled

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        pass

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        return torch.zeros(len(observations), 1), {}

    def record_transition(self, **arguments: Any) -> None:
        pass

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        pass

    def track_data(self, tag: str, value: float) -> None:
        pass


class RecordingAgent(NullAgent):
    """Acts on ``100 row + timestep`` and keeps copies of every argument of every call, in order."""

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
        actions = 100 * observations[:, :1] + timestep
        self._note("act", observations=observations, states=states, timestep=timestep, timesteps=timesteps)
        return actions, {"mean_actions": -actions}

    def record_transition(self, **arguments: Any) -> None:
        self._note("record", **arguments)

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        self._note("post", training=self.training, timestep=timestep, timesteps=timesteps)

    def track_data(self, tag: str, value: float) -> None:
        self.tracked.append((tag, value))


class NoisyAgent(NullAgent):
    """Draws its weights and its actions from the global generators of torch and NumPy."""

    def __init__(self, scope: Scope | None = None) -> None:
        super().__init__(scope)
        self.weights = torch.randn(4) + float(np.random.standard_normal())
        self.drawn: list[float] = []

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        noise = torch.randn(len(observations), 2) + float(np.random.standard_normal())
        self.drawn.append(float(noise.sum()))
        return noise, {}

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        self.weights += torch.rand(4)


class DyingAgent(NullAgent):
    """Ends or stops its own process at timestep 3."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        if timestep == 3:
            os.kill(os.getpid(), self.signal_number)
            threading.Event().wait(60)  # the signal may take effect a little later
        return super().act(observations, states, timestep=timestep, timesteps=timesteps)


class LinearAgent(NullAgent):
    """Puts the very array that it is given through a network, whose bits depend on how the array lies in memory."""

    def __init__(self, scope: Scope | None = None) -> None:
        super().__init__(scope)
        self.net = torch.nn.Sequential(torch.nn.Linear(17, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))

    def state_dict(self) -> dict[str, Any]:
        return self.net.state_dict()

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        return self.net(observations), {}

    def record_transition(self, **arguments: Any) -> None:
        with torch.no_grad():
            self.net[0].bias += 1e-2 * self.net[0](arguments["next_observations"]).mean(0)


def copied(value: Any) -> Any:
    """A deep copy with tensors as NumPy arrays."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().numpy()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return value
