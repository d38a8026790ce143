"""The time of an empty step: an iteration in which neither the environment nor the agent does anything."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box

from orchestrator.ray import RayOrchestrator
from orchestrator.ray.session import RaySession
from trainer.step import StepTrainer
from workers.envs import EnvFactory, Wrapper

__all__ = ["Step", "measure_empty_step"]

_WARM_UP, _STEPS = 20, 200
_MOST_SECONDS = 0.5


class _NoOpEnv(Wrapper):
    """One environment that always returns the same arrays."""

    framework = "numpy"
    num_envs = 1
    observation_space = action_space = Box(-1, 1, (1,), np.float32)
    state_space = None

    def __init__(self) -> None:
        zeros, flags = np.zeros((1, 1), np.float32), np.zeros((1, 1), bool)
        self._outputs: Any = zeros, zeros, flags, flags, {}

    def reset(self, *, seed: int | None = None) -> Any:
        return self._outputs[0], {}

    def step(self, actions: npt.NDArray[Any]) -> Any:
        return self._outputs

    def state(self) -> None:
        return None

    def render(self) -> None:
        pass

    def close(self) -> None:
        pass


class _NoOpAgent:
    """Agent that always returns the same action."""

    def init(self, *, trainer_cfg: Any = None) -> None:
        pass

    def enable_training_mode(self, enabled: bool = True) -> None:
        pass

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        pass

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        return observations, {}

    def record_transition(self, **arguments: Any) -> None:
        pass

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        pass

    def track_data(self, tag: str, value: float) -> None:
        pass


class _NoOpTrainer(StepTrainer[npt.NDArray[Any]]):
    framework = "numpy"  # nothing else has to be imported

    @property
    def transport(self) -> tuple[str, str]:
        """What carries the steps; see `RaySession.transport`."""
        assert isinstance(self._session, RaySession)
        return self._session.transport


class Step(NamedTuple):
    """An empty step.

    Attributes:
        seconds: Its median time.
        transport: What carries it; see `RaySession.transport`.
        unreachable: Why no connection does, if the worker cannot be reached; else empty.
    """

    seconds: float
    transport: str
    unreachable: str = ""


def measure_empty_step(orchestrator: RayOrchestrator) -> Step:
    """Measure the empty step of one worker.

    Args:
        orchestrator: Where the worker is started.

    Raises:
        LockstepError: The worker cannot be started, or does not reply.
    """
    env = EnvFactory(lambda num_envs, first_env: _NoOpEnv(), num_envs=1)
    cfg: Any = {"headless": True, "disable_progressbar": True}
    with (
        _quiet(),
        _NoOpTrainer(env=env, agents=lambda scope: _NoOpAgent(), cfg=cfg, orchestrator=orchestrator) as trainer,
    ):
        trainer.run(_WARM_UP)
        times: list[float] = []
        end = monotonic() + _MOST_SECONDS
        while len(times) < _STEPS and monotonic() < end:
            started = perf_counter()
            trainer.train()
            times.append(perf_counter() - started)
        return Step(statistics.median(times), *trainer.transport)


@contextmanager
def _quiet() -> Iterator[None]:
    """Show only errors of Lockstep. What it warns of is in the result."""
    logger = logging.getLogger("lockstep")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
