"""Protocol of the contestants and their runner: the work, and the lines that they exchange.

A contestant sends a line when it is ready. For each line that it receives, it does a repetition and sends a line. This
file needs only the standard library, because each peer has its own virtual environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

ENV_ID = "HalfCheetah-v5"
NUM_ENVS, WORKERS = 64, 2
STEPS, EPOCHS, MINI_BATCHES = 32, 4, 4
ROLLOUTS = 4  # in one repetition
TIMESTEPS = ROLLOUTS * STEPS
ENV_STEPS = TIMESTEPS * NUM_ENVS
LEARNING_RATE, GAMMA, LAMBDA, RATIO_CLIP, GRAD_CLIP = 3e-4, 0.99, 0.95, 0.2, 0.5


def serve(repeat: Callable[[], int], *packages: str) -> None:
    """Warm up, then do a repetition for each line received, until the input ends.

    `repeat` returns its number of environment steps. Whatever it prints goes to stderr: stdout is for the runner.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    repeat()
    _send(answers, {package: version(package) for package in packages})
    while sys.stdin.readline():
        start = time.perf_counter()
        env_steps = repeat()
        _send(answers, {"seconds": time.perf_counter() - start, "env_steps": env_steps})


def _send(answers: Any, message: dict[str, Any]) -> None:
    print(json.dumps(message), file=answers, flush=True)
