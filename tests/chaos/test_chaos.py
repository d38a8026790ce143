"""A few schedules of faults; `make chaos` runs many."""

from __future__ import annotations

import pytest

from tests.chaos.running import run
from tests.chaos.schedules import CASES, FRAMEWORKS, WAYS, schedule_of
from tests.support.schedule import full_or_short


def test_a_number_makes_a_schedule_and_many_make_all():
    schedules = [schedule_of(seed) for seed in range(360)]
    assert schedules == [schedule_of(seed) for seed in range(360)]
    met = {(one.case, one.framework, one.mode) for one in schedules}
    assert len(met) == len(CASES) * len(FRAMEWORKS) * 2
    assert {one.way for one in schedules} == set(WAYS)
    assert {one.mode for one in schedules if one.way == "run"} == {"sharded", "shared"}
    assert all(list(one.faults) == sorted(one.faults, key=lambda fault: fault.timestep) for one in schedules)


@pytest.mark.parametrize("seed", full_or_short([1485, *range(36)], [1485]))
def test_a_run_that_meets_faults_ends_with_the_numbers_of_one_that_does_not(ray_cluster: None, seed: int):
    result = run(schedule_of(seed))
    assert result.faults >= (10 if seed == 1485 else 5)  # some wait for a recovery that does not come
    assert result.recoveries > 0
