"""A run that is saved at any timestep and goes on in a fresh process is the run that nobody stopped, bit for bit."""

from __future__ import annotations

import random
import zlib
from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.support.parity import assert_same
from tests.support.resumed import CASES, MODES, build_trainer, ending, in_a_fresh_process, iterations
from tests.support.schedule import FRAMEWORKS, IS_LONG
from workers.errors import CheckpointError

SHORT = [
    ("torch", "CartPole", "local", ["sharded"]),
    ("jax", "Pendulum", "sharded", ["local"]),
    ("warp", "HalfCheetah", "local", ["local"]),
    ("torch", "team", "shared", ["local"]),
    ("jax", "NEXT_STEP", "local", ["shared"]),
    ("warp", "device", "local", ["local"]),
]
LONG = [(*pair, mode, list(MODES)) for *pair, mode in product(FRAMEWORKS, CASES, MODES)]


def ends_of(outputs: list[Any]) -> tuple[int, int]:
    """Count the episodes that ended, and the agents of teams that died before."""
    ends = deaths = 0
    for _, _, terminated, _, infos in outputs:
        over = np.any(infos.get("_final_obs", False))
        ends += int(over)
        deaths += sum(map(int, map(np.any, terminated.values()))) if isinstance(terminated, dict) and not over else 0
    return ends, deaths


@pytest.mark.parametrize(("framework", "case", "saved_in", "loaded_in"), LONG if IS_LONG else SHORT)
def test_a_loaded_run_is_the_undisturbed_run(ray_cluster, framework, case, saved_in, loaded_in, tmp_path):
    import ray

    address = ray.get_runtime_context().gcs_address
    steps = CASES[case].steps
    stop = random.Random(zlib.crc32(f"{framework} {case} {saved_in}".encode())).randrange(17, steps - 17)
    with build_trainer(case, framework, "local") as trainer:
        trainer.collect_metrics()
        before = list(iterations(trainer, 0, stop))
        expected = ending(trainer, stop, steps)
    ends, deaths = ends_of(before + expected[0])
    assert ends > 1
    assert deaths > 2 or case != "team"
    with build_trainer(case, framework, saved_in) as trainer:
        trainer.collect_metrics()
        assert_same(list(iterations(trainer, 0, stop)), before)
        trainer.save(tmp_path / "checkpoint")
        assert_same(ending(trainer, stop, steps), expected)
    fitting = [mode for mode in loaded_in if CASES[case].by_row or (mode == "sharded") == (saved_in == "sharded")]
    if fitting:
        endings = in_a_fresh_process(case, framework, fitting, address, tmp_path)
        for mode in fitting:
            assert len(endings[mode][0]) == steps - stop
            assert_same(endings[mode], expected)
    for mode in set(loaded_in) - set(fitting):
        with (
            build_trainer(case, framework, mode) as trainer,
            pytest.raises(CheckpointError, match="can only be stored as a whole"),
        ):
            trainer.load(tmp_path / "checkpoint")
