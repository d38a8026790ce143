"""One compute thread and no telemetry for every test; one small Ray for the tests that need it."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# before any framework is imported: the same thread count here and in Ray's workers
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    NPROC="1",
    RAY_USAGE_STATS_ENABLED="0",
    PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]),
)
os.environ.pop("RAY_ADDRESS", None)
if "PYTEST_XDIST_WORKER" not in os.environ:
    # a key of this session, not the user's, signs the run directories
    _data = tempfile.TemporaryDirectory(prefix="lockstep-data-")
    atexit.register(_data.cleanup)
    os.environ["XDG_DATA_HOME"] = _data.name
    # share what JAX compiles among all processes of this session: Ray's actors, xdist's workers
    _compiled = tempfile.TemporaryDirectory(prefix="lockstep-compiled-")
    atexit.register(_compiled.cleanup)
    os.environ.update(
        JAX_COMPILATION_CACHE_DIR=_compiled.name,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )

import pytest

from tests.support.processes import descendants, still_alive
from tests.support.schedule import FRAMEWORKS

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts make in the background ignores it


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    """Name of each framework."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray with four CPUs, to which trainers with ``orchestrator="ray"`` attach."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of a bucket in a stand-in for S3."""
    from tests.support.strikes import s3_server

    with s3_server() as url:
        yield url


@pytest.fixture(scope="session", autouse=True)
def _no_process_left() -> Iterator[None]:
    """Fail if the tests leave a process behind."""
    yield
    # Python's tracker of shared memory ends with this process
    trackers = {process.pid for process in descendants("resource_tracker")}
    still_alive([process for process in descendants() if process.pid not in trackers])
    alive = [process for process in descendants() if process.pid not in trackers]
    assert not alive, f"processes left behind: {alive}"
    assert sys.modules.get("ray") is None or not sys.modules["ray"].is_initialized()


SLOW_ROOMS = ("chaos", "modes", "ray", "trainer", "command", "house", "agents")


def room_of(nodeid: str) -> str:
    """Return the name of the folder of a test."""
    return nodeid.split("::")[0].split("/")[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow folders first, so that both processes end together. The order within a folder is kept."""
    rank = {room: place for place, room in enumerate(SLOW_ROOMS)}
    items.sort(key=lambda item: rank.get(room_of(item.nodeid), len(rank)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how long the tests of each room took, summed over all processes."""
    seconds: defaultdict[str, float] = defaultdict(float)
    tests: defaultdict[str, set[str]] = defaultdict(set)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                room = room_of(report.nodeid)
                seconds[room] += report.duration
                tests[room].add(report.nodeid)
    terminalreporter.section("time by room")
    for room in sorted(seconds, key=seconds.__getitem__, reverse=True):
        terminalreporter.write_line(f"{seconds[room]:7.1f} s  {len(tests[room]):5d} tests  {room}")
