"""Runs of a trainer as plain data, and their comparison to the last bit."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ray import cloudpickle

from orchestrator.merge import merge_outcomes
from orchestrator.scopes import resolve_scopes
from tests.support.agents import copied
from trainer.config import StepTrainerCfgDict, resolve_cfg
from workers.envs import EnvFactory
from workers.frameworks import load_framework
from workers.remote.service import Service
from workers.remote.spec import WorkerSpec
from workers.remote.wire import read_outcome
from workers.types import Mode, Tick

CFG: StepTrainerCfgDict = {"headless": True, "disable_progressbar": True}


def step_trainer(framework: str) -> Any:
    """Return the framework's StepTrainer."""
    return importlib.import_module(f"trainer.{framework}").StepTrainer


def ppo(framework: str) -> Any:
    """Return the framework's PPO."""
    return importlib.import_module(f"workers.agents.{framework}").PPO


def run(steps: int, *, framework: str = "torch", mode: str = "train", **options: Any) -> tuple[list[Any], list[Any]]:
    """Return the outputs of every step, and the trained agents.

    In mode "all ways", `train`, `iterate` and `run` do the steps in turn; outputs that `run` does not return are None.
    """
    with step_trainer(framework)(cfg={**CFG, "timesteps": steps}, **options) as trainer:
        if mode == "all ways":
            outputs = list(outputs_in_all_ways(trainer, steps))
        else:
            outputs = [copied_outputs(getattr(trainer, mode)()) for _ in range(steps)]
        return outputs, list(trainer.agents)


def outputs_in_all_ways(trainer: Any, steps: int) -> Iterator[Any]:
    """Yield the outputs of every step, None for those that `run` does not return. The turns have different lengths."""
    done = 0
    while done < steps:
        for prefetch, count in ((1, 7), (0, 3), (3, 9)):
            yield copied_outputs(trainer.train())
            # all are kept until the last one arrives: later steps must not change them
            kept = list(trainer.iterate(count, prefetch=prefetch))
            yield from map(copied_outputs, kept)
            yield from [None] * (count - 1)
            yield copied_outputs(trainer.run(count))
            done += 1 + 2 * count


def without_hidden(outputs: Sequence[Any], shown: Sequence[Any]) -> list[Any]:
    """Return the outputs, with None for the steps that another run does not show."""
    return [output if other is not None else None for output, other in zip(outputs, shown, strict=True)]


def slices_run(steps: int, name: str, env: EnvFactory, agents: Any, sizes: Any) -> tuple[list[Any], list[Any]]:
    """Like `run`, with each scope in its own service as in an actor, but without Ray and one after the other.

    The second item has the ``state_dict()`` of each agent.
    """
    framework = load_framework(name)
    scopes = resolve_scopes(sizes, num_envs=sum(sizes), num_simultaneous_agents=len(sizes), seed=3)
    services = [Service(cloudpickle.dumps) for _ in scopes]
    for service, scope, agent in zip(services, scopes, agents, strict=True):
        spec = WorkerSpec(
            scope=scope,
            framework=name,
            agent=cloudpickle.dumps(agent),
            env=cloudpickle.dumps(env),
            observation_space=None,
            cfg=cloudpickle.dumps(resolve_cfg({**CFG, "timesteps": steps})),
            seed=3,
        )
        assert service.handle(1, "build", (spec,)).status == "ok"
    outputs = []
    for step in range(1, steps + 1):
        replies = [service.handle(step + 1, "tick", (Tick(Mode.TRAIN, step, steps),)) for service in services]
        outcomes = [
            read_outcome(reply.payload, framework, scope.num_envs) for reply, scope in zip(replies, scopes, strict=True)
        ]
        outputs.append(copied_outputs(merge_outcomes(outcomes, scopes, framework)))
    exported = [service.handle(steps + 2, "export", ()).payload for service in services]
    return outputs, [copied(cloudpickle.loads(part.data).state_dict()) for part in exported]


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


def assert_alike(given_value: Any, expected: Any, path: str = "") -> None:
    """Assert that infos are equal but for the types of numbers."""
    if isinstance(expected, dict):
        assert isinstance(given_value, dict), f"{path}: {given_value!r}"
        assert given_value.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_alike(given_value[key], value, f"{path}[{key!r}]")
    elif isinstance(expected, np.ndarray) and expected.dtype.kind in "biufc":
        assert given_value.dtype.kind in "biufc", f"{path}: {given_value!r} is not {expected!r}"
        np.testing.assert_array_equal(given_value, expected, path, strict=given_value.dtype == expected.dtype)
    elif isinstance(expected, np.ndarray):
        assert given_value.dtype.kind == expected.dtype.kind, f"{path}: {given_value!r} is not {expected!r}"
        assert_alike(given_value.tolist(), expected.tolist(), path)
    elif isinstance(expected, (list, tuple)):
        assert len(given_value) == len(expected)
        for index, (one, other) in enumerate(zip(given_value, expected, strict=True)):
            assert_alike(one, other, f"{path}[{index}]")
    else:
        assert given_value == expected, f"{path}: {given_value!r} is not {expected!r}"
