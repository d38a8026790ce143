"""Schedules of faults. A schedule is made from a number alone, so a number repeats one that failed."""

from __future__ import annotations

import random
from typing import NamedTuple

__all__ = ["CASES", "Fault", "Schedule", "schedule_of"]

CASES = ("CartPole", "HalfCheetah", "team")
FRAMEWORKS = ("torch", "jax", "warp")
WAYS = ("train", "run", "iterate", "in turn")

STEPS = 240
"""Iterations of a schedule; those of a team take longer, and their episodes too."""

KINDS = {
    "kill": 10,
    "stop": 2,
    "pause": 2,
    "cut": 3,
    "unreadable": 2,
    "exception": 2,
    "full disk": 1,
    "slow": 1,
    "node": 1,
}
"""Kinds of faults, and how often each is drawn. On a single node, a worker is killed in place of a node."""

DURING = ("build", "stage", "restore", "tick", "act", "learn")
"""Requests of a recovery during which workers are killed again."""


class Fault(NamedTuple):
    """A fault.

    Attributes:
        kind: One of `KINDS`.
        timestep: It happens when this timestep has been asked for.
        delay: Seconds after that.
        scopes: The scopes whose workers it hits.
        during: A request of a recovery or of a snapshot, during which it happens; empty for an iteration.
    """

    kind: str
    timestep: int
    delay: float
    scopes: tuple[int, ...]
    during: str = ""


class Schedule(NamedTuple):
    """A run and its faults.

    Attributes:
        seed: The number that it was made from.
        case: Environments of `tests.support.resumed.CASES`.
        framework: The framework.
        mode: ``"sharded"`` or ``"shared"``.
        way: How the iterations are asked for.
        transport: How requests reach the workers.
        spares: Number of spare processes.
        faults: The faults, in order.
    """

    seed: int
    case: str
    framework: str
    mode: str
    way: str
    transport: str
    spares: int
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.case} in {self.framework}, {self.mode}, {self.way}, {self.transport}"


def schedule_of(seed: int, faults: int = 10) -> Schedule:
    """Return the schedule of a number; consecutive numbers go through all cases, frameworks, modes and ways.

    Args:
        seed: The number.
        faults: Number of faults.
    """
    chance = random.Random(seed)
    mode = ("sharded", "shared")[seed % 2]
    case, framework = CASES[seed % 3], FRAMEWORKS[seed // 3 % 3]
    way = WAYS[seed // 2 % 4]
    drawn = []
    for timestep in sorted(chance.sample(range(5, STEPS - 5), faults)):
        (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
        scopes = chance.choice([(0,), (1,), (0, 1)])
        delay = chance.choice([0.0, chance.uniform(0, 0.02), chance.uniform(0, 0.3)])
        during = chance.choice(["", "", "snapshot", *DURING]) if kind == "kill" else ""
        drawn.append(Fault(kind, timestep, delay, scopes, during))
    transport = "ray" if chance.random() < 0.15 else "connection"
    return Schedule(seed, case, framework, mode, way, transport, int(chance.random() < 0.2), tuple(drawn))
