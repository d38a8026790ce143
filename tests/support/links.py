"""Request streams to a worker behind a relay, with an agent that records its calls."""

from __future__ import annotations

import threading
from typing import Any

from ray import cloudpickle

from orchestrator.ray.connection import Link
from tests.support.connections import KEY, Relay
from tests.support.processes import PATIENCE
from tests.support.service import LiveRecordingAgent, spec
from workers.frameworks import load_framework
from workers.remote.dialing import Address
from workers.remote.server import Server
from workers.remote.service import Service
from workers.remote.wire import read_outcome


class RelayedWorker:
    """A server on its own thread, behind a relay."""

    def __init__(self) -> None:
        LiveRecordingAgent.made.clear()
        self.service = Service(cloudpickle.dumps)
        self.server = Server(self.service, cloudpickle.dumps)
        self.address = self.server.open("127.0.0.1", KEY)
        self.relay = Relay((self.address.host, self.address.port))
        self._thread = threading.Thread(target=self.server.serve, daemon=True)
        self._thread.start()

    def link(self) -> Link:
        """Connect through the relay."""
        return Link(Address(*self.relay.address), KEY)

    def close(self) -> None:
        self.server.shut()
        self.relay.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def receive(link: Link, seq: int) -> Any:
    """Return the payload of a reply."""
    reply = link.receive(seq, 30)
    assert reply is not None
    assert (reply.seq, reply.status) == (seq, "ok"), reply.payload
    return reply.payload


def build(link: Link) -> Any:
    """Build the worker, with request 1, and return its agent."""
    link.send(1, "build", (spec(),), ack=1)
    receive(link, 1)
    (agent,) = LiveRecordingAgent.made
    return agent


def step_of(packed: Any) -> int:
    """Return the steps of the last row, whose episodes are longest."""
    return int(read_outcome(packed, load_framework("torch"), 3).infos["nested"]["step"][-1])


def acted(agent: Any) -> list[int]:
    """Return the timesteps in which an agent has acted."""
    return [call["timestep"] for name, call in agent.calls if name == "act"]
