"""Exceptions that would end a program are ordinary failures of a worker; only Ray ends its process."""

from __future__ import annotations

import asyncio
import pickle
import signal
import threading
from collections.abc import Callable
from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
from ray._private.worker import raise_sys_exit_with_custom_error_message

from orchestrator.ray.connection import Link
from tests.support.agents import NullAgent
from tests.support.envs import CountingEnv
from tests.support.processes import PATIENCE
from tests.support.schedule import full_or_short
from tests.support.service import Client, spec, tick
from workers.envs import EnvFactory
from workers.errors import Failure
from workers.frameworks import load_framework
from workers.remote.server import Server
from workers.remote.service import Service
from workers.remote.wire import Packed, to_wire
from workers.types import Transition

KEY = b"k" * 32


class Custom(BaseException):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class Shouting(str):
    """A string that only this process can unpickle."""

    def __reduce__(self) -> Any:
        raise TypeError("not at all")


class Odd(SyntaxError):
    def __str__(self) -> str:
        return Shouting("odd")

    @property
    def filename(self) -> str:  # type: ignore[override]
        raise LookupError("no file")


KINDS = [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, StopIteration, Custom, Mute, Odd]


class Raising:
    """Raises `kind` at one place, in iteration 2 if it belongs to an iteration."""

    def __init__(self, place: str, kind: type[BaseException]) -> None:
        self.place, self.kind = place, kind

    def at(self, place: str) -> None:
        if place == self.place:
            self.calls_the_function_that_raises()

    def calls_the_function_that_raises(self) -> None:
        raise self.kind("oh no")


class RaisingAgent(NullAgent):
    def __init__(self, raising: Raising) -> None:
        super().__init__()
        self.raising = raising
        raising.at("building the agent")

    def init(self, *, trainer_cfg: Any = None) -> None:
        self.raising.at("init")

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        if timestep == 2:
            self.raising.at("pre-interaction")

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        if timestep == 2:
            self.raising.at("act")
        return super().act(observations, states, timestep=timestep, timesteps=timesteps)

    def record_transition(self, **arguments: Any) -> None:
        if arguments["timestep"] == 2:
            self.raising.at("record")

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        if timestep == 2:
            self.raising.at("post-interaction")

    def state_dict(self) -> dict[str, Any]:
        self.raising.at("store")
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass

    def __getstate__(self) -> Any:
        self.raising.at("export")
        return self.__dict__


class RaisingEnv(CountingEnv):
    def __init__(self, row: int, raising: Raising) -> None:
        super().__init__(row)
        self.raising = raising
        raising.at("building the environments")

    def reset(self, **options: Any) -> Any:
        self.raising.at("reset")
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        if self.step_count == 1:
            self.raising.at("step")
        return super().step(action)

    def close(self) -> None:
        self.raising.at("close")


class Made:
    """The factories of both, without anything that cannot be pickled."""

    def __init__(self, place: str, kind: type[BaseException]) -> None:
        self.place, self.kind = place, kind

    def agent(self, scope: Any) -> RaisingAgent:
        return RaisingAgent(Raising(self.place, self.kind))

    def envs(self, num_envs: int, first_env: int) -> list[RaisingEnv]:
        # only the first copy raises: errors of several copies in close() are told as a group
        return [RaisingEnv(first_env + i, Raising("" if i else self.place, self.kind)) for i in range(num_envs)]


BUILDING = ["building the agent", "init", "building the environments"]
STEPPING = ["pre-interaction", "act", "step", "record", "post-interaction"]
LATER = ["store", "close"]
PLACES = BUILDING + STEPPING + LATER


def check(failure: Failure, kind: type[BaseException], phase: str, timestep: int | None) -> None:
    rows = (5, 6) if phase in ("step", "reset") else (5, 8)  # the first copy, or all
    assert (failure.scope, failure.rows, failure.phase, failure.timestep) == (2, rows, phase, timestep)
    assert failure.kind.rpartition(".")[2] == kind.__name__
    assert failure.message == {Mute: "(str() of the exception failed: SystemExit)", Odd: "odd"}.get(kind, "oh no")
    assert type(failure.message) is str
    assert "in calls_the_function_that_raises\n" in failure.traceback


@pytest.mark.parametrize(
    ("place", "kind"), full_or_short(list(product(PLACES, KINDS)), list(zip(PLACES, cycle(KINDS), strict=False)))
)
def test_every_exception_is_a_failure_with_its_place(place: str, kind: type[BaseException]):
    made = Made(place, kind)
    client = Client()
    build = "build", spec(made.agent, EnvFactory(made.envs, num_envs=9))
    if place in BUILDING:
        check(client.failure(*build), kind, "build", None)
        return
    client.ok(*build)
    client.ok("tick", tick(1), 1)
    if place in STEPPING:
        check(client.failure("tick", tick(2), 3), kind, place, 2)
        assert "the previous iteration failed" in client.failure("tick", tick(3)).message
    else:
        check(client.failure(place), kind, place, 1 if place == "store" else None)
        assert client.ok("tick", tick(2), 1) is not None


def test_the_place_is_that_of_the_iteration_within_a_request():
    made = Made("act", SystemExit)
    client = Client(spec(made.agent, EnvFactory(made.envs, num_envs=9)))
    check(client.failure("tick", tick(1), 5), SystemExit, "act", 2)
    made = Made("reset", SystemExit)
    client = Client(spec(made.agent, EnvFactory(made.envs, num_envs=9)))
    check(client.failure("tick", tick(1), 5), SystemExit, "reset", 1)


@pytest.mark.parametrize(("place", "method"), [("act", "act"), ("record", "learn"), ("post-interaction", "learn")])
def test_an_agent_of_shared_environments(place: str, method: str):
    client, framework = Client(spec(Made(place, SystemExit).agent, env=None)), load_framework("torch")
    rows = framework.from_numpy(np.zeros((3, 4), np.float32))
    observed = to_wire((rows, None, None), framework)
    if method == "learn":
        client.ok("act", tick(2), observed)
        observed = to_wire(Transition(rows, rows, None, rows, rows, {}, 0.0), framework)
    check(client.failure(method, tick(2), observed), SystemExit, place, 2)


def end_process(**_: Any) -> None:
    raise_sys_exit_with_custom_error_message("The process receives a SIGTERM.", exit_code=1)


def test_rays_own_exit_goes_through():
    """It is told from others by a mark that only Ray makes."""
    client = Client(spec(Made("nowhere", SystemExit).agent))
    assert client.service._runner is not None
    client.service._runner.agent.post_interaction = end_process
    with pytest.raises(SystemExit):
        client.service.handle(2, "tick", (tick(1), 1))


class Harmful:
    """Raises when it is pickled or unpickled."""

    def __init__(self, at: str, error: BaseException) -> None:
        self.at, self.error = at, error

    def __reduce__(self) -> Any:
        if self.at == "dumps":
            raise self.error
        return _raise, (self.error,)


def _raise(error: BaseException) -> None:
    raise error


class Serving:
    """A server that is asked over a connection."""

    def __init__(self) -> None:
        self.service = Service(pickle.dumps)
        self.server = Server(self.service, pickle.dumps)
        self.link = Link(self.server.open("127.0.0.1", KEY), KEY)
        self.seq = 0

    def ask(self, method: str, *args: Any) -> Any:
        self.seq += 1
        self.link.send(self.seq, method, args, ack=self.seq)
        reply = self.link.receive(self.seq, PATIENCE)
        assert reply is not None
        return reply

    def run(self, driver: Callable[[], Any]) -> None:
        """Serve on this thread, the main one, while `driver` runs on another."""
        raised: list[BaseException] = []

        def drive() -> None:
            try:
                driver()
            except BaseException as error:
                raised.append(error)
            self.link.close()
            self.server.shut()

        thread = threading.Thread(target=drive)
        thread.start()
        try:
            self.server.serve()
        finally:
            thread.join(PATIENCE)
        if raised:
            raise raised[0]


@pytest.mark.parametrize("error", [SystemExit("oh no"), KeyboardInterrupt("oh no"), OSError("oh no")])
def test_what_raises_on_its_way_is_a_failure(error: BaseException, monkeypatch: pytest.MonkeyPatch):
    serving = Serving()

    def drive() -> None:
        assert serving.ask("build", spec()).status == "ok"
        serving.seq += 1
        harmful = Packed((Harmful("loads", error),), (), b"", 0)
        serving.link.send(serving.seq, "learn", (tick(1),), harmful, ack=serving.seq)
        reply = serving.link.receive(serving.seq, PATIENCE)
        assert reply is not None
        assert (reply.status, reply.payload[0].phase) == ("error", "request")
        assert f"{type(error).__name__}: oh no" in reply.payload[0].message
        monkeypatch.setattr(Service, "_collect", lambda _: Packed((Harmful("dumps", error),), (), b"", 0))
        reply = serving.ask("collect")
        assert (reply.status, reply.payload[0].phase) == ("error", "reply")
        assert reply.payload[0].kind == type(error).__name__
        assert serving.ask("tick", tick(1), 1).status == "ok"

    serving.run(drive)


@pytest.mark.parametrize("kind", [TimeoutError, KeyboardInterrupt, SystemExit, ValueError])
def test_what_a_signal_handler_raises_between_requests_fails_the_next_one(kind: type[BaseException]):
    """The connection may be lost in the middle of a message, but nothing is done twice."""
    serving = Serving()
    raised = threading.Event()

    def handler(*_: Any) -> None:
        raised.set()
        raise kind("oh no")

    def drive() -> None:
        assert serving.ask("build", spec()).status == "ok"
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)  # type: ignore[arg-type]
        assert raised.wait(PATIENCE)
        reply = serving.ask("tick", tick(1), 1)
        (failure,) = reply.payload
        assert (failure.scope, failure.phase, failure.kind) == (2, "between requests", kind.__name__)
        assert "in handler\n" in failure.traceback
        assert serving.ask("collect").status == "ok"

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        serving.run(drive)
    finally:
        signal.signal(signal.SIGUSR1, before)
