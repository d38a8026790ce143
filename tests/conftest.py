"""One compute thread and no telemetry for every test; one small Ray for all that need it."""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
    # what JAX compiles in one process of this session need not be compiled in the others: Ray's actors, xdist's workers
    _compiled = tempfile.TemporaryDirectory(prefix="lockstep-compiled-")
    atexit.register(_compiled.cleanup)
    os.environ.update(
        JAX_COMPILATION_CACHE_DIR=_compiled.name,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )

import psutil
import pytest

from tests.support.parity import FRAMEWORKS
from tests.support.processes import descendants


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    """Each framework's name."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray with four CPUs, to which trainers with ``orchestrator="ray"`` attach."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning")
    yield
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def _no_process_left() -> Iterator[None]:
    """Fail if the tests leave a process behind."""
    yield
    # Python's own tracker of shared memory ends with this process
    trackers = {process.pid for process in descendants("resource_tracker")}
    psutil.wait_procs([process for process in descendants() if process.pid not in trackers], timeout=20)
    alive = [process for process in descendants() if process.pid not in trackers]
    assert not alive, f"processes left behind: {alive}"
    assert sys.modules.get("ray") is None or not sys.modules["ray"].is_initialized()
