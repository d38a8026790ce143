"""No row is ever swapped: every value says which row, episode and step it comes from."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from orchestrator.ray import RayOrchestrator
from tests.support.agents import RecordingAgent
from tests.support.envs import build_counting, counting_factory
from tests.support.parity import assert_same, run
from tests.support.schedule import FRAMEWORKS, in_turn
from workers.envs import wrap_env

STEPS = 25
SCOPES = [1, 2, 4]
STARTS = [0, 1, 3]
NUM_ENVS = sum(SCOPES)


def length(row: int) -> int:
    return 3 + row % 4


def expected(row: int, timestep: int) -> dict[str, Any]:
    """Return the values of row `row` in iteration `timestep` (from 1), computed from the definition alone."""
    episode, step = divmod(timestep - 1, length(row))
    step += 1
    ended = step == length(row)
    action = 100.0 * row + timestep
    final = [row, episode, step, action]
    return {
        "observations": [row, episode + 1, 0, -1.0] if ended else final,
        "acted_on": [row, episode, step - 1, -1.0 if step == 1 else 100.0 * row + timestep - 1],
        "actions": [action],
        "next_observations": final,
        "rewards": [np.float32(1000.0 * row + 10.0 * episode + step / 10)],
        "terminated": [ended and row % 2 == 0],
        "truncated": [ended and row % 2 == 1],
        "ended": ended,
        "step": step,
        "episode": episode,
    }


def rows_of(name: str, rows: range, timestep: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.array([expected(row, timestep)[name] for row in rows], dtype=dtype)


def check_infos(infos: dict[str, Any], rows: range, timestep: int) -> None:
    """Check the infos of `rows`: those of ended rows are in ``final_info``, and all contain the row's number."""
    wanted = [expected(row, timestep) for row in rows]
    ended = np.array([want["ended"] for want in wanted])
    np.testing.assert_array_equal(infos["row"], list(rows))
    running = [(row, want) for row, want in zip(rows, wanted, strict=True) if not want["ended"]]
    if running:
        np.testing.assert_array_equal(infos["_name"], ~ended)
        assert [name for name in infos["name"] if name is not None] == [f"row {row}" for row, _ in running]
        steps = [want["step"] for _, want in running]
        np.testing.assert_array_equal(infos["nested"]["step"][~ended], steps)
        np.testing.assert_array_equal(infos["nested"]["deeper"]["episode"][~ended], [w["episode"] for _, w in running])
    else:
        assert "name" not in infos
        assert "nested" not in infos
    if ended.any():
        np.testing.assert_array_equal(infos["_final_obs"], ended)
        final = rows_of("next_observations", rows, timestep)
        np.testing.assert_array_equal(infos["final_obs"], np.where(ended[:, None], final, 0.0))
        np.testing.assert_array_equal(
            infos["final_info"]["episode"]["l"][ended], np.array([length(r) for r in rows])[ended]
        )
    else:
        assert not {"final_obs", "final_info", "_final_obs", "reset"} & set(infos)


def environments(kind: str, framework: str) -> Any:
    if kind == "shared":
        return wrap_env(build_counting(NUM_ENVS, 0), framework=framework)
    return counting_factory(NUM_ENVS)


@pytest.mark.parametrize(("kind", "framework"), [*product(["local"], FRAMEWORKS), *in_turn(["sharded", "shared"])])
def test_every_row_of_everything(kind, framework, request):
    orchestrator: Any = "local"
    if kind != "local":
        request.getfixturevalue("ray_cluster")
        orchestrator = RayOrchestrator()
    outputs, agents = run(
        STEPS,
        framework=framework,
        env=environments(kind, framework),
        agents=[RecordingAgent] * 3,
        scopes=SCOPES,
        orchestrator=orchestrator,
        seed=1,
    )
    for timestep, (observations, rewards, terminated, truncated, infos) in enumerate(outputs, start=1):
        rows = range(NUM_ENVS)
        np.testing.assert_array_equal(observations, rows_of("observations", rows, timestep))
        np.testing.assert_array_equal(rewards, rows_of("rewards", rows, timestep))
        np.testing.assert_array_equal(terminated, rows_of("terminated", rows, timestep, bool))
        np.testing.assert_array_equal(truncated, rows_of("truncated", rows, timestep, bool))
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float32, np.bool_, np.bool_)
        check_infos(infos, rows, timestep)
    for start, size, agent in zip(STARTS, SCOPES, agents, strict=True):
        check_agent(agent, range(start, start + size))


def check_agent(agent: RecordingAgent, rows: range) -> None:
    """Check the order of the phases, and every argument of every call, for the rows of one agent."""
    assert [name for name, _ in agent.calls] == ["init"] + ["pre", "act", "record", "post"] * STEPS
    acts = [arguments for name, arguments in agent.calls if name == "act"]
    for timestep, (act, record) in enumerate(zip(acts, agent.records(), strict=True), start=1):
        np.testing.assert_array_equal(act["observations"], rows_of("acted_on", rows, timestep))
        for name, dtype in (("actions", np.float32), ("rewards", np.float32), ("next_observations", np.float32)):
            np.testing.assert_array_equal(record[name], rows_of(name, rows, timestep, dtype))
        np.testing.assert_array_equal(record["observations"], rows_of("acted_on", rows, timestep))
        np.testing.assert_array_equal(record["terminated"], rows_of("terminated", rows, timestep, bool))
        np.testing.assert_array_equal(record["truncated"], rows_of("truncated", rows, timestep, bool))
        assert (record["states"], record["next_states"]) == (None, None)
        assert (record["timestep"], record["timesteps"]) == (timestep, STEPS)
        check_infos(record["infos"], rows, timestep)


def test_the_expectation_would_notice_swapped_rows():
    outputs, _ = run(3, env=counting_factory(NUM_ENVS), agents=RecordingAgent)
    swapped = outputs[0][0][::-1]
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(swapped, rows_of("observations", range(NUM_ENVS), 1))
    with pytest.raises(AssertionError):
        assert_same(swapped, outputs[0][0])
