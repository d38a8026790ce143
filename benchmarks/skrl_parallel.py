"""skrl's ParallelTrainer in its own process, so that it can take turns and can be ended if it hangs.

Its `train()` starts its processes and runs to the end, so the environments measure the time: from the beginning of one
`env.step` to the beginning of the `steps`-th after it. That is `steps` whole iterations with their updates, without the
start. Between turns the environments wait, and so does the rest of the trainer.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gymnasium
import torch
from skrl.envs.wrappers.torch import wrap_env
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from skrl.trainers.torch import ParallelTrainer

sys.path.insert(0, str(Path(__file__).parent))

from contestants import MODELS, make_skrl

START_DEADLINE, TURN_DEADLINE, END_DEADLINE = 90, 60, 20  # seconds


def perceptron(inputs: int, outputs: int) -> torch.nn.Sequential:
    hidden = (torch.nn.Linear(inputs, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh())
    return torch.nn.Sequential(*hidden, torch.nn.Linear(64, outputs))


class Policy(GaussianMixin, Model):
    """Policy as in `contestants.py`, but as a class that can be pickled: with any other, skrl's trainer hangs."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
        GaussianMixin.__init__(self)
        self.net = perceptron(self.num_observations, self.num_actions)
        self.log_std = torch.nn.Parameter(torch.zeros(self.num_actions))

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
        return self.net(inputs["observations"]), {"log_std": self.log_std}


class Value(DeterministicMixin, Model):
    """Critic as in `contestants.py`, but as a class that can be pickled."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = perceptron(self.num_observations, 1)

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


def picklable_models(observation_space: Any, action_space: Any) -> dict[str, Any]:
    return {"policy": Policy(observation_space, action_space), "value": Value(observation_space, action_space)}


class Turns:
    """A `step` function that reports the time of every `steps` steps and then waits for a line of input."""

    def __init__(self, step: Any, steps: int, replies: int) -> None:
        self._step, self._steps, self._replies = step, steps, replies
        self._count, self._start = 0, time.perf_counter()

    def __call__(self, actions: Any) -> Any:
        if self._count % self._steps == 0:
            os.write(self._replies, f"{time.perf_counter() - self._start}\n".encode())
            if not sys.stdin.readline():
                raise SystemExit  # the parent process is gone
            self._start = time.perf_counter()
        self._count += 1
        return self._step(actions)


class ParallelTrainerProcess:
    """Handle in the parent process: starts the process and gives it its turns."""

    def __init__(self, env_id: str, num_envs: int, steps: int) -> None:
        self._steps = steps
        command = [sys.executable, __file__, env_id, str(num_envs), str(steps)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            self._read(START_DEADLINE)
        except BaseException:
            self._end()
            raise

    def measure(self) -> float:
        """Do one turn and return microseconds per step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read(TURN_DEADLINE) / self._steps * 1e6

    def _read(self, deadline: float) -> float:
        assert self._process.stdout is not None
        alarm = threading.Timer(deadline, self._end)
        alarm.start()
        try:
            line = self._process.stdout.readline()
        finally:
            alarm.cancel()
        if not line:
            raise TimeoutError(f"skrl's ParallelTrainer ended by itself, or was ended after {deadline} s")
        return float(line)

    def _end(self) -> None:
        """End the process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=END_DEADLINE)  # it ends when its input is closed
        self._end()


def main() -> None:
    """Train without end, in turns of `steps`."""
    env_id, num_envs, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    replies = os.dup(1)
    os.dup2(2, 1)  # what the trainer prints goes to stderr
    torch.set_num_threads(1)
    MODELS["torch"] = picklable_models
    env = wrap_env(
        gymnasium.make_vec(env_id, num_envs=num_envs, vectorization_mode="sync"), wrapper="gymnasium", verbose=False
    )
    env.step = Turns(env.step, steps, replies)
    agents = [make_skrl("torch", env.observation_space, env.action_space, num_envs // 2) for _ in range(2)]
    cfg = {"timesteps": 10**9, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    ParallelTrainer(env=env, agents=agents, scopes=[num_envs // 2] * 2, cfg=cfg).train()


if __name__ == "__main__":
    main()
