"""Runs of a trainer as plain data, and their comparison to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.agents import copied
from trainer.torch import StepTrainer

CFG = {"headless": True, "disable_progressbar": True}


def run(steps: int, *, mode: str = "train", **options: Any) -> tuple[list[Any], list[Any]]:
    """Outputs of every step, and the trained agents."""
    with StepTrainer(cfg={**CFG, "timesteps": steps}, **options) as trainer:
        outputs = [copied_outputs(getattr(trainer, mode)()) for _ in range(steps)]
        return outputs, list(trainer.agents)


def copied_outputs(outputs: Any) -> tuple[Any, ...]:
    return tuple(copied(output) for output in outputs)


def assert_same(given: Any, expected: Any, path: str = "") -> None:
    """Assert that two trees are equal to the last bit, in structure, dtype and values."""
    assert type(given) is type(expected), f"{path}: {type(given)} is not {type(expected)}"
    if isinstance(expected, dict):
        assert given.keys() == expected.keys(), f"{path}: {sorted(given)} are not {sorted(expected)}"
        for key in expected:
            assert_same(given[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(given) == len(expected), f"{path}: {len(given)} items, not {len(expected)}"
        for index, (one, other) in enumerate(zip(given, expected, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    elif isinstance(expected, np.ndarray):
        assert given.dtype == expected.dtype, f"{path}: {given.dtype} is not {expected.dtype}"
        assert given.shape == expected.shape, f"{path}: {given.shape} is not {expected.shape}"
        if expected.dtype == object:
            assert_same(given.tolist(), expected.tolist(), path)
        else:
            assert given.tobytes() == expected.tobytes(), f"{path}: {given} is not {expected}"
    else:
        assert given == expected or (given != given and expected != expected), f"{path}: {given!r} is not {expected!r}"
