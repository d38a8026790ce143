"""A trainer on a device without values: ``python -m tests.support.fake_gpu`` prints how often the host waited, as JSON.

The device is registered for this process only. Its tensors are torch's fake ones: they have shapes, dtypes and a
device, but no values, so everything that would wait for a GPU fails, and so does every mix of devices.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.support.capture import CaptureError, CapturingWorkspace
from trainer.torch import StepTrainer, StepTrainerCfg
from workers.agents.torch import PPO
from workers.envs import Wrapper
from workers.frameworks import Reading
from workers.frameworks.torch import TorchFramework

DEVICE = "fakegpu"
ENVS, ROLLOUTS = 6, 4


class NeverReady(Reading):
    """Arrays that are still on their way; `waits` counts how often somebody waited for them."""

    waits = 0

    def __init__(self, _: Any, arrays: Any) -> None:
        super().__init__([np.zeros(array.shape) for array in arrays])

    def is_ready(self) -> bool:
        return False

    def result(self) -> Any:
        NeverReady.waits += 1
        return super().result()


class FakeEnv(Wrapper):
    """Environments on the device."""

    framework = "torch"
    observation_space = Box(-np.inf, np.inf, (5,), np.float32)
    num_envs = ENVS

    def __init__(self, action_space: Any) -> None:
        self.device = torch.device(DEVICE, 0)
        self.action_space = action_space

    def reset(self, *, seed: int | None = None) -> Any:
        return torch.zeros(ENVS, 5, device=self.device), {}

    def step(self, actions: Any) -> Any:
        assert actions.device == self.device
        observations = torch.zeros(ENVS, 5, device=self.device) + actions[:, :1]
        flags = observations[:, :1] > 0
        infos = {"final_obs": observations, "_final_obs": flags[:, 0], "episode": {"r": observations[0, 0]}}
        return observations, observations[:, :1], flags, flags, infos

    def render(self) -> None:
        pass

    def close(self) -> None:
        pass


def convert_in_place(module: Any, convert: Callable[[Any], Any], recurse: bool = True) -> Any:
    """Convert a module's tensors; torch's own way fails for fake ones."""
    for part in module.modules():
        part._parameters.update({name: torch.nn.Parameter(convert(one)) for name, one in part._parameters.items()})
        for buffer in part._buffers.values():
            buffer.constant = None  # fake tensors may know the values of constants; a device has none
        part._buffers.update({name: convert(one) for name, one in part._buffers.items()})
    return module


def waits_of(action_space: Any, agents: int) -> int:
    """Run two rollouts with their updates, and one step more; return how often the host waited for values."""

    def make(scope: Any) -> PPO:
        cfg = {"rollouts": ROLLOUTS, "mini_batches": 2, "learning_epochs": 2, "kl_threshold": 0.01}
        agent = PPO(observation_space=FakeEnv.observation_space, action_space=action_space, num_envs=scope.num_envs,
                    cfg=cfg, device=DEVICE)  # fmt: skip
        agent._workspace = CapturingWorkspace(agent.device, compares=False)
        return agent

    cfg = StepTrainerCfg(timesteps=100, headless=True, disable_progressbar=True)
    with StepTrainer(env=FakeEnv(action_space), agents=[make] * agents, cfg=cfg) as trainer:
        for runner in trainer._session._runners:  # type: ignore[attr-defined]
            runner._log.start(midway=False)  # as collect_metrics() does, which reads
        before = NeverReady.waits
        for timestep in range(2 * ROLLOUTS + 1):
            trainer.train(timestep=timestep)
        waits = NeverReady.waits - before
        for agent in trainer.agents:
            assert agent._workspace.runs["_act_again"] == 2 * ROLLOUTS + 1
    return waits


def refused() -> list[str]:
    """Return which planted faults are refused."""
    values = torch.zeros(4, device=DEVICE)
    planted: dict[str, Callable[[], Any]] = {
        "scalar": lambda: float(values.sum()),
        "nonzero": lambda: values.nonzero(),
        "boolean index": lambda: values[values > 1],
        "host copy": lambda: values.to("cpu"),
        "mixed devices": lambda: values.copy_(torch.zeros(4)),
    }
    found = []
    for name, function in planted.items():
        try:
            CapturingWorkspace(values.device).run(function)
        except CaptureError:
            found.append(name)
    return found


def main() -> None:
    """Print how often the host waited, by case."""
    _setup_privateuseone_for_python_backend(DEVICE)
    torch.nn.Module._apply = convert_in_place  # type: ignore[method-assign]
    TorchFramework.read_later = lambda *given: NeverReady(*given)  # type: ignore[method-assign]
    TorchFramework.has_devices = lambda self: True  # type: ignore[method-assign]
    with FakeTensorMode():
        told = {
            "planted": refused(),
            "gaussian": waits_of(Box(-1, 1, (2,), np.float32), 1),
            "categorical": waits_of(Discrete(3), 1),
            "two agents": waits_of(Box(-1, 1, (2,), np.float32), 2),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
