"""Model of the driver's cost and of the time of a step for up to 1,000 workers, with and without relays.

    python benchmarks/cost_model.py --step 10 --spread 0.1 --round-trip 100 --gigabits 25 --per-node 8

A relay would be a process on each node that passes the driver's request to the node's workers, merges their outcomes
and sends them as one. There is none: the model says what it could bring. Its constants are those that `driver_cost.py`
prints, so put in your own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from report import table

PARTS = ("send", "receive", "merge", "rest")
DRAWS = 200
WAKING = 50.0
"""Microseconds until a waiting relay runs."""


class Formula(NamedTuple):
    """Microseconds of CPU time with K workers and B bytes a worker: a + b K + c K B.

    Attributes:
        a: For a step.
        b: For a worker.
        c: For a byte.
    """

    a: float
    b: float
    c: float

    def __call__(self, count: float, size: float) -> float:
        return self.a + self.b * count + self.c * count * size

    def __str__(self) -> str:
        return f"{self.a:.1f} + {self.b:.2f} K + {self.c * 1e3:.4f} K B / 1,000"


def fitted(measured: Mapping[tuple[int, int], float]) -> Formula:
    """Fit a formula to microseconds by number of workers and bytes: the least squares of relative errors."""
    cases, values = np.array(list(measured), float), np.array(list(measured.values()))
    terms = np.stack([np.ones(len(cases)), cases[:, 0], cases[:, 0] * cases[:, 1]], axis=1)
    a, b, c = np.linalg.lstsq(terms / values[:, None], np.ones(len(values)), rcond=None)[0]
    return Formula(float(a), float(b), float(c))


@dataclass(frozen=True)
class Cost:
    """CPU time of a step by part: sending, receiving, merging, and the trainer's around them."""

    send: Formula
    receive: Formula
    merge: Formula
    rest: Formula

    @property
    def whole(self) -> Formula:
        """All parts together."""
        return Formula(*(sum(terms) for terms in zip(self.send, self.receive, self.merge, self.rest, strict=True)))

    def cpu(self, count: float, size: float) -> float:
        """CPU time of a step in microseconds."""
        return self.whole(count, size)

    def __str__(self) -> str:
        return "; ".join(f"{part} {getattr(self, part)}" for part in PARTS) + f"; together {self.whole}"


MEASURED = {
    "TCP": Cost(
        send=Formula(51.6, 12.52, 0.0001e-3),
        receive=Formula(148.0, 16.31, 0.1376e-3),
        merge=Formula(78.4, 2.93, 0.0444e-3),
        rest=Formula(84.2, 0.42, 0.0026e-3),
    ),
    "Unix": Cost(
        send=Formula(36.2, 7.27, 0.0296e-3),
        receive=Formula(126.2, 20.57, 0.0469e-3),
        merge=Formula(69.7, 2.48, 0.0828e-3),
        rest=Formula(75.0, 0.26, 0.0059e-3),
    ),
}
"""What `driver_cost.py` printed last, see RESULTS.md."""


@dataclass(frozen=True)
class Assumptions:
    """What was not measured here.

    Attributes:
        work: Microseconds that a worker works in a step, on average.
        spread: Standard deviation of the work, as a share of it.
        round_trip: Microseconds between two hosts, there and back.
        gigabits: Bits per nanosecond that the driver's link carries.
        per_node: Workers of a node.
    """

    work: float
    spread: float
    round_trip: float
    gigabits: float
    per_node: int

    def __str__(self) -> str:
        return (
            f"Workers work {self.work / 1e3:g} ms a step (normal, standard deviation {self.spread:.0%}); round trip "
            f"{self.round_trip:g} µs; the driver's link carries {self.gigabits:g} Gbit/s; {self.per_node} workers on "
            "each node."
        )

    @property
    def per_byte(self) -> float:
        """Microseconds that a byte takes on the driver's link."""
        return 8e-3 / self.gigabits


def served(ready: np.ndarray, each: float) -> np.ndarray:
    """Return when each of some tasks is done that are served in the order of columns, one after the other."""
    order = np.arange(ready.shape[1]) * each
    return np.maximum.accumulate(ready - order, axis=1) + order + each


def finished(cost: Cost, work: np.ndarray, size: float, *, one_way: float = 0.0, per_byte: float = 0.0) -> np.ndarray:
    """Return how long a step takes, in microseconds.

    Args:
        cost: The costs of who sends, receives and merges.
        work: How long each worker works in each draw.
        size: Bytes of a worker.
        one_way: How long a message travels.
        per_byte: How long a byte occupies the link.
    """
    count = work.shape[1]
    sent = cost.send(1, size) + (cost.send(1, size) - cost.send(0, size)) * np.arange(count)
    done = sent + one_way + work
    first = np.argsort(done, axis=1)
    arrived = np.empty_like(done)
    np.put_along_axis(arrived, first, served(np.take_along_axis(done, first, axis=1), size * per_byte), axis=1)
    read = served(arrived + one_way, cost.receive(1, size) - cost.receive(0, size))  # in the order of scopes
    return read[:, -1] + cost.receive.a + cost.merge(count, size) + cost.rest(count, size)


class Step(NamedTuple):
    """A step in the model, in microseconds.

    Attributes:
        work: The slowest worker's work.
        cpu: The driver's CPU time.
        link: How long the bytes occupy the driver's link.
        whole: How long the step takes.
        relayed_cpu: The driver's CPU time with relays.
        relayed: How long the step takes with relays.
    """

    work: float
    cpu: float
    link: float
    whole: float
    relayed_cpu: float
    relayed: float


def modelled(count: int, size: int, given: Assumptions) -> Step:
    """Return the step of `count` workers with `size` bytes each; the last node may have fewer workers."""
    tcp, unix, local = MEASURED["TCP"], MEASURED["Unix"], given.per_node
    nodes = -(-count // local)
    drawn = np.random.default_rng(0).normal(given.work, given.spread * given.work, (DRAWS, nodes * local))
    travel = {"one_way": given.round_trip / 2, "per_byte": given.per_byte}
    by_node = drawn.reshape(DRAWS * nodes, local)
    # a relay sends what it has merged: the bytes go through it once more
    relays = WAKING + finished(unix, by_node, size) + tcp.send.b + tcp.receive.c * local * size
    work = drawn[:, :count]
    return Step(
        work=float(work.max(axis=1).mean()),
        cpu=tcp.whole(count, size),
        link=count * size * given.per_byte,
        whole=float(finished(tcp, work, size, **travel).mean()),
        relayed_cpu=tcp.whole(nodes, local * size),
        relayed=float(finished(tcp, relays.reshape(DRAWS, nodes), local * size, **travel).mean()),
    )


COUNTS = (64, 128, 256, 512, 1000)
SIZES = (1216, 16576, 262336)


def thresholds(size: int, given: Assumptions) -> list[str]:
    """Return from how many workers the driver's CPU takes 1 and 10 ms, and from how many a relay pays."""
    whole, most = MEASURED["TCP"].whole, 4096
    over = [next((count for count in range(1, most) if whole(count, size) > limit), None) for limit in (1e3, 1e4)]
    pays = None
    for count in range(2 * given.per_node, COUNTS[-1] + 1, given.per_node):
        step = modelled(count, size, given)
        if step.relayed < 0.95 * step.whole:
            pays = count
            break
    return [f"{size:,}", *(f"over {most:,}" if count is None else f"{count:,}" for count in over), f"{pays or 'none'}"]


def report(given: Assumptions) -> str:
    """Return the model's tables."""
    rows = []
    for size in SIZES:
        for count in COUNTS:
            step = modelled(count, size, given)
            rows.append([f"{size:,}", f"{count:,}", *(f"{value / 1e3:.1f}" for value in step)])
    columns = [
        "bytes a worker",
        "workers",
        "slowest worker",
        "driver's CPU",
        "driver's link",
        "step",
        "CPU with relays",
        "step with relays",
    ]
    limits = ["bytes a worker", "CPU above 1 ms", "CPU above 10 ms", "relays make the step 5 % shorter"]
    return f"""{given} In ms:

{table(columns, rows)}

From how many workers:

{table(limits, [thresholds(size, given) for size in SIZES])}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", type=float, default=10.0, help="milliseconds that a worker works in a step")
    parser.add_argument("--spread", type=float, default=0.1, help="standard deviation of that, as a share")
    parser.add_argument("--round-trip", type=float, default=100.0, help="microseconds between two hosts")
    parser.add_argument("--gigabits", type=float, default=25.0, help="gigabits a second of the driver's link")
    parser.add_argument("--per-node", type=int, default=8, help="workers of a node")
    options = parser.parse_args()
    print(
        report(Assumptions(options.step * 1e3, options.spread, options.round_trip, options.gigabits, options.per_node))
    )


if __name__ == "__main__":
    main()
