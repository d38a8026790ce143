"""Addresses of Ray: who answers there, and the reason and the remedy where this process is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import psutil
import pytest
from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

from orchestrator.ray import address as addresses
from orchestrator.ray.address import check_address, unreachable
from tests.support.processes import PATIENCE, ROOT, python, still_alive
from tests.support.schedule import only_long
from workers.errors import ClusterError

NO_TOKEN = "Token authentication is enabled but Ray couldn't find an authentication token. Create a token file at X."
FAILED_CHECK = f"""[2026-01-01 00:00:00,000 C 1 1] authentication_token_loader.cc:115:  An unexpected system state has \
occurred. Check failed: has_token || ignore_auth_mode {NO_TOKEN}
*** StackTrace Information ***
/lib/_raylet.so(+0x1812b9a) [0x7fdc44a12b9a] ray::operator<<()

"""
NO_FILE = "RAY_AUTH_TOKEN_PATH is set but file cannot be opened or is empty: /nothing"
RAISED = """[2026-01-01 00:00:00,000 W 1 1] gcs_client.cc:210: Failed to get cluster ID from GCS server
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
    check_status(status)
    ^^^^^^^^^^^^^^^^^^^^
ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: it is missing.
Ensure that the token is available.
"""


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (FAILED_CHECK, NO_TOKEN),
        (f"x.cc:1: Check failed: !result.hasError() {NO_FILE}\n*** StackTrace", NO_FILE),
        (
            RAISED,
            "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: it is missing.\nEnsure that the token is "
            "available.",
        ),
        ("one line\nthe last line\n", "the last line"),
        ("", "not healthy"),
    ],
)
def test_the_reason_of_ray_is_whole(stderr: str, reason: str):
    assert addresses._reason(stderr) == reason


@pytest.mark.parametrize(
    ("address", "reason", "what", "remedy"),
    [
        ("auto", NO_TOKEN, "Ray cannot be reached at 'auto'", "it belongs in ~/.ray/auth_token, with mode 600"),
        ("host:1", NO_FILE, "Ray cannot be reached at 'host:1'", "ray get-auth-token --generate"),
        ("local", NO_FILE, "Ray cannot be started on this machine", "RAY_AUTH_TOKEN_PATH, or in RAY_AUTH_TOK"),
        ("host:1", "RPC error: Method not found!", "Ray cannot be reached", "such as ray://HOST:10001"),
        ("local", "OSError: full", "Ray cannot be started", "look at its logs"),
        ("host:1", "ConnectionRefusedError", "Ray cannot be reached", "ray status"),
    ],
)
def test_each_reason_has_its_remedy(address: str, reason: str, what: str, remedy: str):
    text = str(unreachable(address, reason))
    assert text.startswith(f"{what}")
    assert reason in text
    assert remedy in text.partition(reason)[2]


class ClientServer(ray_client_pb2_grpc.RayletDriverServicer):
    """Answers a ping, or refuses it."""

    def __init__(self, refusal: grpc.StatusCode | None) -> None:
        self.refusal = refusal

    def ClusterInfo(self, request: Any, context: Any) -> Any:
        if self.refusal is not None:
            context.abort(self.refusal, "AuthToken" if self.refusal == grpc.StatusCode.UNAUTHENTICATED else "")
        return ray_client_pb2.ClusterInfoResponse()


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (None, None),
        (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED: AuthToken.*; a cluster with tokens needs the"),
        (grpc.StatusCode.UNIMPLEMENTED, "the port of another service of Ray"),
    ],
)
def test_a_client_server_is_asked_before_ray_connects(refusal: grpc.StatusCode | None, error: str | None):
    server = grpc.server(ThreadPoolExecutor(1))
    ray_client_pb2_grpc.add_RayletDriverServicer_to_server(ClientServer(refusal), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        if error is None:
            check_address(f"ray://127.0.0.1:{port}", PATIENCE)
        else:
            with pytest.raises(ClusterError, match=error):
                check_address(f"ray://127.0.0.1:{port}", PATIENCE)
    finally:
        server.stop(None).wait(PATIENCE)


def test_whoever_is_silent_is_given_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with pytest.raises(ClusterError, match="DEADLINE_EXCEEDED"):
            check_address(f"ray://127.0.0.1:{port}", 0.2)


@pytest.mark.parametrize("address", ["host", "ray://host", "host:", "ray://:10001"])
def test_an_address_needs_host_and_port(address: str):
    with pytest.raises(ClusterError, match=r"expected 'auto', 'host:port' or 'ray://host:port'"):
        check_address(address, 1)


TOKEN, WRONG = "a-token-of-this-test-" + "0" * 30, "a-wrong-token-of-this-test-" + "0" * 30


class Head:
    """A head node with tokens, in a temporary folder and on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("token", TOKEN), ("wrong", WRONG)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o600)
        self.port, self.client, listen = free_ports(3)
        options = {
            "port": self.port,
            "ray-client-server-port": self.client,
            "dashboard-agent-listen-port": listen,
            "include-dashboard": "false",
            "num-cpus": 2,
        }
        variables = self.env(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(folder / "token"))
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            env={name: value for name, value in {**os.environ, **variables}.items() if value is not None},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def env(self, **more: str) -> dict[str, str | None]:
        """Return changes of the environment variables, so that a process finds only this token, or none."""
        unset = dict.fromkeys(("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
        return {**unset, "HOME": str(self.folder), "RAY_TMPDIR": str(self.folder), **more}

    def run(self, program: str, *arguments: str, **env: str) -> str:
        """Run a program here and return what it prints."""
        done = python("-c", program, *arguments, env=self.env(**env))
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert WRONG not in done.stdout + done.stderr
        return done.stdout

    def _wait(self) -> None:
        """Wait until it listens for clients."""
        deadline = monotonic() + PATIENCE
        while monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.client), timeout=1).close()
                return
            except OSError:
                pass
            with suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"the head ended with {self._process.wait(0.2)}")
        raise TimeoutError("the head does not listen")

    def close(self) -> None:
        processes = [*psutil.Process(self._process.pid).children(recursive=True)]
        self._process.terminate()
        self._process.wait(PATIENCE)
        for process in processes:
            if process.is_running():
                process.kill()
        assert not still_alive(processes)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    one = Head(tmp_path_factory.mktemp("h"))
    yield one
    one.close()


CONNECT = """
import sys, time
from orchestrator.ray.cluster import connect
from workers.errors import ClusterError
started = time.monotonic()
try:
    connect(sys.argv[1], timeout=60).disconnect()
    print("connected")
except ClusterError as error:
    print(error)
assert time.monotonic() - started < 50
"""
INVALID = ("Authentication token is missing or incorrect", "Invalid or missing authentication token")


@only_long
def test_tokens_are_refused_with_rays_reason_and_the_remedy(head: Head):
    for kind, address in enumerate((f"127.0.0.1:{head.port}", f"ray://127.0.0.1:{head.client}")):
        right, wrong = str(head.folder / "token"), str(head.folder / "wrong")
        assert "connected" in head.run(CONNECT, address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=right)
        for env, reason in (
            ({}, INVALID[kind]),
            ({"RAY_AUTH_TOKEN_PATH": right}, INVALID[kind]),
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": wrong}, INVALID[kind]),
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG}, INVALID[kind]),
            ({"RAY_AUTH_MODE": "token"}, "Token authentication is enabled but Ray couldn't find an authentication"),
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nothing"}, "cannot be opened or is empty: /nothing"),
        ):
            text = head.run(CONNECT, address, **env)
            assert reason in text
            assert "copy ~/.ray/auth_token of the head node to the same place here with mode 600" in text


TRAIN = """
import sys
import gymnasium
from orchestrator.ray import RayOrchestrator
from trainer.torch import StepTrainer
from workers.agents.torch import PPO
from workers.envs import make_env
orchestrator = RayOrchestrator(address=sys.argv[1]) if len(sys.argv) > 1 else "local"
env = make_env("CartPole-v1", num_envs=4, framework="torch")
spaces = gymnasium.make("CartPole-v1")
cfg = {"timesteps": 40, "headless": True, "disable_progressbar": True}
with StepTrainer(env=env, agents=[lambda scope: PPO(
    observation_space=spaces.observation_space, action_space=spaces.action_space, num_envs=scope.num_envs,
    cfg={"rollouts": 8})] * 2, cfg=cfg, orchestrator=orchestrator, seed=0) as trainer:
    print([trainer.train()[0].double().sum().item() for _ in range(40)][-3:])
"""


@only_long
def test_a_client_of_ray_computes_the_same(head: Head):
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.folder / "token")}
    assert head.run(TRAIN, f"ray://127.0.0.1:{head.client}", **env) == head.run(TRAIN)
