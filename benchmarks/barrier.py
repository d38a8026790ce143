"""The cost of a barrier in every step: workers that only exchange a byte after each step.

No fan-out on the same cores can be faster: only the byte is sent, and the driver makes no outputs.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bare import Peers

TIMESTEPS = 1_000_000


class Barrier(Peers):
    """Processes, each with HalfCheetah-v5 environments and one of skrl's PPO agents."""

    def __init__(self, workers: int, num_envs: int) -> None:
        super().__init__([sys.executable, "-W", "ignore", __file__], workers, num_envs // workers)

    def train(self) -> None:
        for peer in self.sockets:
            peer.sendall(b"x")
        for peer in self.sockets:
            if not peer.recv(1):
                raise ConnectionError("a bare worker is gone")


def serve(port: int, num_envs: int) -> None:
    """Do one iteration for every byte received."""
    import torch
    from halfcheetah import cheetah_env, skrls_agent
    from ray import cloudpickle

    from trainer.config import StepTrainerCfg
    from workers.remote.service import Service
    from workers.remote.spec import WorkerSpec
    from workers.types import Mode, Scope, Tick

    torch.set_num_threads(1)
    service = Service(cloudpickle.dumps)
    spec = WorkerSpec(
        scope=Scope(0, 0, num_envs),
        framework="torch",
        agent=cloudpickle.dumps(skrls_agent),
        env=cloudpickle.dumps(cheetah_env().recipe),
        observation_space=None,
        cfg=cloudpickle.dumps(StepTrainerCfg(headless=True)),
        seed=None,
    )
    if service.handle(1, "build", (spec,)).status != "ok":
        raise RuntimeError("the worker cannot be built")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seq = 1
        while connection.recv(1):
            seq += 1
            service.handle(seq, "tick", (Tick(Mode.TRAIN, seq, TIMESTEPS), 1))
            connection.sendall(b"x")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.nice(15)  # like Ray's workers
    serve(int(sys.argv[1]), int(sys.argv[2]))
