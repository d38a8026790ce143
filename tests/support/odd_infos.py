"""Environments whose infos have keys of any type, ragged and mixed values, or objects that cannot be sent."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.envs import CountingEnv
from tests.support.multi_agent_envs import TEAM, CountingTeamEnv

A_SET = frozenset({"a set", "of strings"})


class Colour(enum.Enum):
    RED = 1


def odd_infos(row: int, episode: int, step: int) -> dict[Any, Any]:
    number = 10_000 * row + 100 * episode + step
    kinds = [number, number / 7, f"{row}/{step}", None, {"n": number, 2: [row]}, [row, step], np.full(row % 3, number)]
    infos: dict[Any, Any] = {
        "int or float": number if (row + step) % 2 else number / 7,
        "any kind": kinds[(row + step) % len(kinds)],
        "ragged": np.full((1 + (row + step) % 2, 2), number),
        "text of some length": np.array(["x" * (1 + row)]),
        "nested or not": {"x": number, "deep": {"y": step}} if (row + step) % 3 else number,
        "nested": {1: number, "mixed": number if row % 2 else str(number)},
        None: f"{row} without a name",
        ("pair", row % 2): number,
        Colour.RED: step,
        A_SET: number,
        2.5: number,
    }
    if step % 3 == 0:
        infos[7] = 2**70 + number if row == 4 else number
    return infos


class OddEnv(CountingEnv):
    """Row i ends after ``3 + i % 4`` steps; its infos at a reset are odd, too."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, _ = super().reset(seed=seed, options=options)
        return observation, odd_infos(self.row, self.episode, 0)

    def step(self, action: Any) -> Any:
        *outputs, _ = super().step(action)
        return *outputs, odd_infos(self.row, self.episode, self.step_count)


class OddTeamEnv(CountingTeamEnv):
    def info(self, name: str) -> dict[Any, Any]:
        return odd_infos(self.row, self.episode, self.step_count + TEAM.index(name))


class Unreadable:
    """An object that can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return refuse, ()


def refuse() -> None:
    raise LookupError("no licence")


class HoldingEnv(CountingEnv):
    """The infos of rows 3 and 6 hold an object from the third step on."""

    def __init__(self, row: int, thing: Callable[[], Any]) -> None:
        super().__init__(row)
        self.thing, self.length = thing, 4

    def step(self, action: Any) -> Any:
        *outputs, infos = super().step(action)
        if self.row in (3, 6) and (self.step_count > 2 or self.episode):
            infos["nested"]["held"] = [self.thing()]
        return *outputs, infos


class HoldingTeamEnv(CountingTeamEnv):
    """The infos of the tank hold an object."""

    def __init__(self, row: int, thing: Callable[[], Any]) -> None:
        super().__init__(row)
        self.thing = thing

    def info(self, name: str) -> dict[str, Any]:
        return super().info(name) | ({"held": [self.thing()]} if name == "tank" else {})


def build_holding(kind: Any, thing: Any, num_envs: int, first_env: int) -> list[Any]:
    return [kind(first_env + i, thing) for i in range(num_envs)]
