"""The bare contestants: the same no-op phases in Ray actors and behind TCP sockets, without Lockstep.

`python benchmarks/bare.py PORT NUM_ENVS` is one peer; `SocketPeers` starts them. A peer ends when its connection ends.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from no_op import NoOpAgent, NoOpEnv

REQUEST = struct.Struct("<qq")  # timestep, timesteps
DEADLINE = 60  # seconds for every wait
TIMESTEPS = 100_000
LAYOUT = ((4, np.float32), (1, np.float32), (1, np.bool_), (1, np.bool_))  # columns and dtype of each array
ROW_BYTES = sum(columns * np.dtype(dtype).itemsize for columns, dtype in LAYOUT)


class NoOpWorker:
    """The phases of one scope, one after the other."""

    def __init__(self, num_envs: int) -> None:
        self.env, self.agent = NoOpEnv(num_envs), NoOpAgent(num_envs)
        self.observations, _ = self.env.reset()

    def tick(self, timestep: int, timesteps: int) -> tuple[np.ndarray, ...]:
        env, agent, observations = self.env, self.agent, self.observations
        agent.enable_training_mode(True)
        agent.pre_interaction(timestep=timestep, timesteps=timesteps)
        actions, _ = agent.act(observations, None, timestep=timestep, timesteps=timesteps)
        agent.track_data("Stats / Inference time (ms)", 0.0)
        next_observations, rewards, terminated, truncated, infos = env.step(actions)
        next_states = env.state()
        agent.track_data("Stats / Env stepping time (ms)", 0.0)
        agent.record_transition(
            observations=observations,
            states=None,
            actions=actions,
            rewards=rewards,
            next_observations=next_observations,
            next_states=next_states,
            terminated=terminated,
            truncated=truncated,
            infos=infos,
            timestep=timestep,
            timesteps=timesteps,
        )
        agent.post_interaction(timestep=timestep, timesteps=timesteps)
        self.observations = next_observations
        return next_observations.numpy(), rewards.numpy(), terminated.numpy(), truncated.numpy()


class ActorCalls:
    """A bare Ray actor for each scope, driven by plain actor calls."""

    def __init__(self, workers: int, num_envs: int) -> None:
        import ray

        self.get, self.kill = ray.get, ray.kill
        actor = ray.remote(num_cpus=0.01)(NoOpWorker)
        self.actors = [actor.remote(num_envs // workers) for _ in range(workers)]
        self.timestep = 0

    def train(self) -> list[torch.Tensor]:
        self.timestep += 1
        refs = [actor.tick.remote(self.timestep, TIMESTEPS) for actor in self.actors]
        parts = self.get(refs, timeout=DEADLINE)
        return [torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for actor in self.actors:
            self.kill(actor)


class Peers:
    """A process for each scope, each behind its own TCP socket."""

    def __init__(self, command: list[str], workers: int, num_envs: int) -> None:
        with ExitStack() as cleanup:
            self.sockets = _listen_and_start(command, workers, num_envs, cleanup)
            self.cleanup = cleanup.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cleanup.close()


class SocketPeers(Peers):
    """Peers that exchange raw bytes in a fixed layout."""

    def __init__(self, workers: int, num_envs: int) -> None:
        rows = num_envs // workers
        self.timestep = 0
        # one message per row, so that a block of columns is the full batch of one array
        self.received = np.empty((workers, rows * ROW_BYTES), np.uint8)
        self.buffers = [memoryview(row) for row in self.received]
        self.columns = []
        start = 0
        for columns, dtype in LAYOUT:
            stop = start + rows * columns * np.dtype(dtype).itemsize
            self.columns.append((self.received[:, start:stop], dtype, (num_envs, columns)))
            start = stop
        super().__init__([sys.executable, __file__], workers, rows)

    def train(self) -> list[torch.Tensor]:
        self.timestep += 1
        request = REQUEST.pack(self.timestep, TIMESTEPS)
        for peer in self.sockets:
            peer.sendall(request)
        for peer, buffer in zip(self.sockets, self.buffers, strict=True):
            if peer.recv_into(buffer, 0, socket.MSG_WAITALL) != len(buffer):
                raise ConnectionError("a bare peer is gone")
        return [torch.from_numpy(column.copy().view(dtype).reshape(shape)) for column, dtype, shape in self.columns]


def _listen_and_start(command: list[str], workers: int, num_envs: int, cleanup: ExitStack) -> list[socket.socket]:
    """Start equal processes, each with the port and `num_envs` as arguments, and wait for their connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE)
        for _ in range(workers):
            cleanup.callback(_end, subprocess.Popen([*command, str(server.getsockname()[1]), str(num_envs)]))
        connections = [cleanup.enter_context(server.accept()[0]) for _ in range(workers)]
    for connection in connections:
        # a deadline in the kernel: Python's would cost another system call for each wait
        connection.setblocking(True)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", DEADLINE, 0))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connections


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(DEADLINE)  # its connection has been closed
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(port: int, num_envs: int) -> None:
    """Answer requests until the connection ends."""
    torch.set_num_threads(1)
    worker = NoOpWorker(num_envs)
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as connection:
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = bytearray(REQUEST.size)
        while connection.recv_into(request, 0, socket.MSG_WAITALL) == REQUEST.size:
            connection.sendall(b"".join(worker.tick(*REQUEST.unpack(request))))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    serve(int(sys.argv[1]), int(sys.argv[2]))
