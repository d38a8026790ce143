"""Benchmark of steps between hosts: their time by where the workers live, and the bytes that travel.

    ray job submit --working-dir . -- python benchmarks/hosts.py

Needs a cluster of at least two hosts that nothing else uses. The driver is where the job runs. Linux only: it asks the
kernel how many bytes each connection has carried.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import argparse
import logging
import socket
import statistics
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray import cloudpickle

sys.path.insert(0, str(Path(__file__).parent))

import no_op
from measuring import judge, trainer
from no_op import NoOpAgent, NoOpEnv, no_op_agent
from report import describe_machine, spread, table

from orchestrator.ray import RayOrchestrator
from trainer.torch import StepTrainer
from workers.envs import EnvFactory, make_env
from workers.types import Scope

NUM_ENVS = 64
STEPS = 200
COUNTED = 1000
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_THIS = ("127.0.0.1", "::1")
_BYTES = struct.Struct("=120xQQ")
"""Of TCP_INFO: bytes sent and acknowledged, and bytes received."""


class BalancingAgent(NoOpAgent):
    """Pushes the cart to the side to which the pole falls, so that few episodes end."""

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        return (observations[:, 2:3] + observations[:, 3:4] > 0).long(), {}


def balancing_agent(scope: Scope) -> BalancingAgent:
    return BalancingAgent(scope.num_envs)


def build_narrow(num_envs: int, _first_env: int) -> NoOpEnv:
    return NoOpEnv(num_envs)


def build_wide(num_envs: int, _first_env: int) -> NoOpEnv:
    return NoOpEnv(num_envs, 4096)  # 1 MB of observations


class Traffic(NamedTuple):
    """Bytes sent and received.

    Attributes:
        sent: By this process to other hosts over TCP, without headers.
        received: By this process from other hosts over TCP, without headers.
        outward: By this host through its network interfaces, with headers.
        inward: To this host through its network interfaces, with headers.
    """

    sent: int
    received: int
    outward: int
    inward: int

    @classmethod
    def until_now(cls, here: str) -> Traffic:
        """Count up to now, from a host with this address."""
        sent = received = outward = inward = 0
        for sock in _sockets():
            with sock, suppress(OSError):  # not connected, or not of TCP
                if sock.family in _INTERNET and sock.getpeername()[0].removeprefix("::ffff:") not in (here, *_THIS):
                    told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES.size)
                    acknowledged, arrived = _BYTES.unpack(told)
                    sent, received = sent + acknowledged, received + arrived
        for line in Path("/proc/net/dev").read_text().splitlines()[2:]:
            interface, _, numbers = line.partition(":")
            if interface.strip() != "lo":
                fields = numbers.split()
                inward, outward = inward + int(fields[0]), outward + int(fields[8])
        return cls(sent, received, outward, inward)

    def since(self, before: Traffic, steps: int) -> list[float]:
        """Return the bytes of each step."""
        return [(now - then) / steps for now, then in zip(self, before, strict=True)]


def _sockets() -> Iterator[socket.socket]:
    """Yield duplicates of all sockets of this process."""
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the folder itself was listed
            if os.readlink(file).startswith("socket:"):
                yield socket.socket(fileno=os.dup(int(file.name)))


def nodes() -> tuple[str, str, str, str]:
    """Return the address of the driver's host and its node's id, then those of another host."""
    here = ray.util.get_node_ip_address()
    alive = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
    others = sorted(alive.keys() - {here})
    if not others:
        raise SystemExit("this cluster has one host; this benchmark needs two")
    return here, alive[here], others[0], alive[others[0]]


def on(nodes: list[str], count: int, transport: str = "connection") -> RayOrchestrator:
    """Return an orchestrator whose workers live on these nodes in turns."""
    where = [{"ray.io/node-id": nodes[index % len(nodes)]} for index in range(count)]
    return RayOrchestrator(label_selector=where, num_cpus=0.1, transport=transport, step_timeout=120)


def times(ours: StepTrainer) -> list[str]:
    """Return the spread of `train()`, from its 5th to its 95th percentile, and the mean of `run(n)`, in µs."""
    for _ in range(50):
        ours.train()
    took = []
    for _ in range(STEPS):
        start = time.perf_counter()
        ours.train()
        took.append((time.perf_counter() - start) * 1e6)
    start = time.perf_counter()
    ours.run(COUNTED)
    run = (time.perf_counter() - start) / COUNTED * 1e6
    cuts = statistics.quantiles(took, n=20)
    return [f"{statistics.median(took):,.0f} ({cuts[0]:,.0f} to {cuts[-1]:,.0f})", f"{run:,.0f}"]


def empty_steps(here: str, other: str) -> str:
    """Measure steps of workers that do nothing."""
    places = {"the driver's": [here], "another": [other], "both in turns": [here, other]}
    rows = []
    for transport in ("connection", "ray"):
        for count in (1, 2, 4):
            for place, ids in places.items():
                if count < len(ids):
                    continue
                env = EnvFactory(build_narrow, num_envs=NUM_ENVS)
                with trainer(env, [no_op_agent] * count, orchestrator=on(ids, count, transport)) as ours:
                    rows.append([transport, count, place, *times(ours)])
                print(*rows[-1], flush=True)
    return table(["transport", "workers", "their host", "`train()`, µs", "`run(n)`, µs a step"], rows)


def bytes_of_steps(address: str, other: str, repetitions: int) -> str:
    """Count what travels for workers on another host."""
    contestants = {
        "CartPole-v1 x 64": (make_env("CartPole-v1", num_envs=NUM_ENVS, framework="torch"), balancing_agent),
        "1 MB of observations": (EnvFactory(build_wide, num_envs=NUM_ENVS), no_op_agent),
    }
    rows = []
    for name, (env, agent) in contestants.items():
        for count in (1, 2, 4):
            counted = []
            with trainer(env, [agent] * count, orchestrator=on([other], count)) as ours:
                outputs = ours.train()
                size = sum(array.numel() * array.element_size() for array in outputs[:4])
                for _ in range(repetitions):
                    before = Traffic.until_now(address)
                    for _ in range(COUNTED):
                        ours.train()
                    counted.append(Traffic.until_now(address).since(before, COUNTED))
            sent, received, outward, inward = zip(*counted, strict=True)
            ratio = judge([value / size for value in received], most=1.3)
            whole = [(out + back) / size for out, back in zip(outward, inward, strict=True)]
            rows.append([name, count, f"{size:,}", spread(received, 0), *ratio, spread(sent, 0), spread(whole, 2)])
            print(*rows[-1], flush=True)
    columns = ["environments", "workers", "bytes of the outcome", "received", "/ outcome", "bar", "met", "sent"]
    return table([*columns, "all that passes the host's interfaces / outcome"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5, help="how often the bytes are counted")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lockstep").setLevel("ERROR")
    for module in (no_op, sys.modules["__main__"]):  # other hosts need not have this folder
        cloudpickle.register_pickle_by_value(module)
    ray.init(address="auto", logging_level=logging.WARNING)
    address, here, _, other = nodes()
    print(describe_machine("torch", "ray", "numpy"), flush=True)
    print(f"""
### Empty steps by host

{empty_steps(here, other)}

### Bytes between hosts

{options.repetitions} times {COUNTED:,} steps, bytes a step. The driver has received and sent them over TCP, without
headers. What passes the interfaces of its host, in both directions, has headers, and what Ray says meanwhile.

{bytes_of_steps(address, other, options.repetitions)}""")


if __name__ == "__main__":
    main()
