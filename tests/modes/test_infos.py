"""Infos of every step are the same in every mode, to the bit: those of the outputs, and those that each agent gets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordStatisticsOfTheBatch

from orchestrator.ray import RayOrchestrator
from tests.rules.test_infos import gymnasium_infos
from tests.support.agents import NullAgent, copied
from tests.support.envs import CountingEnv
from tests.support.parity import CFG, assert_same, step_trainer
from tests.support.schedule import FRAMEWORKS, full_or_short
from workers.envs import EnvFactory, wrap_env
from workers.frameworks import load_framework
from workers.infos import merge_infos

# which rows end together does not depend on the framework: only one of them has a long run
STEPS = {"torch": 500, "jax": 100, "warp": 100}
SCOPES = [2, 3, 1]
STARTS = [0, 2, 5]
NUM_ENVS = sum(SCOPES)


def row_infos(row: int, episode: int, step: int) -> dict[str, Any]:
    """Return the infos of one row; some keys are only in some steps or in some rows."""
    number = 10_000 * row + 100 * episode + step
    infos: dict[str, Any] = {
        "number": number,
        "name": f"row {row}",
        "share": number / 7,
        "single": np.float32(number / 7),
        "even": step % 2 == 0,
        "vector": np.array([row, episode, step], np.int16),
        "zero_d": np.array(number / 3),
        "object": (row, episode),
        "nested": {"step": step, "name": f"step {step}", "deeper": {"share": number / 9, "flag": row % 2 == 0}},
    }
    if (step + row) % 4 == 0:
        infos["seldom"] = {"count": number, "why": f"{row}/{episode}/{step}", "deeper": {"mean": number / 11}}
        infos["nested"]["at times"] = float(step)
    if row % 2:
        infos["odd rows"] = number
        infos["nested"]["deeper"]["odd rows"] = [row]
    if row == NUM_ENVS - 1 and step % 5 == 0:
        infos["last row"] = str(number)
    return infos


class TellingEnv(CountingEnv):
    """Row i ends after ``3 + 2 i`` steps: even rows terminate, odd ones are truncated."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.length = length_of(row)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, _ = super().reset(seed=seed, options=options)
        return observation, {"begun": self.episode, "nested": {"begun": f"{self.row} begins {self.episode}"}}

    def step(self, action: Any) -> Any:
        *outputs, _ = super().step(action)
        return *outputs, row_infos(self.row, self.episode, self.step_count)


def length_of(row: int) -> int:
    return 3 + 2 * row


def batch_infos(framework: str, step: int, num_envs: int) -> dict[str, Any]:
    """Return infos of a vector environment for all its rows at once; no value depends on the number of rows."""
    from_numpy = load_framework(framework).from_numpy
    infos: dict[str, Any] = {
        "all float": step / 7,
        "all float64": np.float64(step / 7),
        "all float32": np.float32(step / 7),
        "all zero_d": np.array(step / 7),
        "all nan": float("nan"),
        "all int": step,
        "all int64": np.int64(step),
        "all zero_d int": np.array(step),
        "all bool": step % 2 == 0,
        "all text": f"step {step}",
        "all none": None,
        "all list": [step, {"deep": step}],
        "all array": np.arange(NUM_ENVS + 1) + step,
        "all nested": {"float": step / 9, "int": step, "none": None, "deeper": {"text": str(step), "empty": {}}},
        "all empty": {},
        # a value for each row, with a mask that is often all False
        "rows": np.full(num_envs, step),
        "masked": np.full(num_envs, step / 3),
        "_masked": np.full(num_envs, step % 4 == 0),
        "tensor rows": from_numpy(np.full((num_envs, 2), step / 3, np.float32)),
    }
    if framework != "warp":  # Warp has no zero-dimensional arrays
        infos["all tensor"] = from_numpy(np.array(step / 7, np.float32))
    if step % 3 == 0:
        infos |= {"at times float": step / 11, "at times int": step, "at times nested": {"text": "third"}}
    return infos


class TellingBatch(VectorWrapper):
    """Wrapper that adds infos for all rows at once."""

    def __init__(self, env: SyncVectorEnv, framework: str) -> None:
        super().__init__(env)
        self.framework = framework
        self.steps = 0

    def step(self, actions: Any) -> Any:
        *outputs, infos = self.env.step(actions)
        self.steps += 1
        assert isinstance(infos, dict)
        added = batch_infos(self.framework, self.steps, self.num_envs)
        if self.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
            del added["tensor rows"]  # Gymnasium's infos are NumPy's: only these are split into ended and running rows
        return *outputs, {**infos, **added}


def one_row(row: int) -> gymnasium.Env[Any, Any]:
    return RecordEpisodeStatistics(TellingEnv(row))


def build_rows(num_envs: int, first_env: int) -> list[gymnasium.Env[Any, Any]]:
    return [one_row(first_env + i) for i in range(num_envs)]


def build_batch(mode: AutoresetMode, framework: str, num_envs: int, first_env: int) -> Any:
    vector = SyncVectorEnv([partial(one_row, first_env + i) for i in range(num_envs)], autoreset_mode=mode)
    return RecordStatisticsOfTheBatch(TellingBatch(vector, framework), stats_key="batch episode")


BUILDS: dict[str, Callable[[str, int, int], Any]] = {
    "batch": partial(build_batch, AutoresetMode.SAME_STEP),
    "batch that resets by mask": partial(build_batch, AutoresetMode.DISABLED),
}


class InfosAgent(NullAgent):
    """Agent that keeps copies of the infos and then overwrites what it was given."""

    def __init__(self, scope: Any = None) -> None:
        super().__init__(scope)
        self.infos: list[dict[str, Any]] = []

    def record_transition(self, **arguments: Any) -> None:
        self.infos.append(without_clock(copied(arguments["infos"])))
        spoil(arguments["infos"])


def spoil(infos: dict[str, Any]) -> None:
    for value in infos.values():
        if isinstance(value, dict):
            spoil(value)
        elif hasattr(value, "fill_"):  # JAX's arrays cannot be written
            value.fill_(-1)
        elif isinstance(value, np.ndarray) and value.flags.writeable:
            value[...] = None if value.dtype == object else -1
    infos.clear()


def without_clock(infos: dict[str, Any]) -> dict[str, Any]:
    """Return the infos with zeros for the duration of episodes."""
    for place in (infos, infos.get("final_info", {})):
        for key in ("episode", "batch episode"):
            if key in place:
                place[key]["t"] = np.zeros_like(place[key]["t"])
    return infos


Run = tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]


def run(framework: str, env: Any, scopes: list[int], orchestrator: Any = "local", steps: int | None = None) -> Run:
    """Return the infos of every step, and those that each agent got."""
    options = {"agents": [InfosAgent] * len(scopes), "scopes": scopes, "orchestrator": orchestrator, "seed": 3}
    with step_trainer(framework)(env=env, cfg=CFG, **options) as trainer:
        outputs = [without_clock(copied(trainer.train()[4])) for _ in range(steps or STEPS[framework])]
        return outputs, [agent.infos for agent in trainer.agents]


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module", params=BUILDS)
def build(framework: str, request: pytest.FixtureRequest) -> Any:
    return partial(BUILDS[request.param], framework)


@pytest.fixture(scope="module")
def local(framework: str, build: Any) -> Run:
    return run(framework, EnvFactory(build, num_envs=NUM_ENVS), SCOPES)


@pytest.fixture(scope="module")
def alone(framework: str, build: Any) -> list[Run]:
    """Each scope on its own, with only its environments."""

    def build_from(start: int, num_envs: int, first_env: int) -> Any:
        return build(num_envs, start + first_env)

    return [
        run(framework, EnvFactory(partial(build_from, start), num_envs=size), [size])
        for start, size in zip(STARTS, SCOPES, strict=True)
    ]


@pytest.mark.parametrize(
    ("kind", "framework"),
    full_or_short(list(product(["sharded", "shared"], FRAMEWORKS)), [("sharded", "torch")]),
    indirect=["framework"],
)
@pytest.mark.parametrize("build", ["batch"], indirect=True)  # one is enough: Ray starts processes
def test_ray_is_local(framework: str, local: Run, build: Any, kind: str, ray_cluster: None):
    env: Any = EnvFactory(build, num_envs=NUM_ENVS)
    if kind == "shared":
        env = wrap_env(build(NUM_ENVS, 0), framework=framework)
    assert_same(run(framework, env, SCOPES, RayOrchestrator()), local)


def test_each_scope_alone_gets_what_it_gets_among_others(local: Run, alone: list[Run]):
    for scope, (_, (infos,)) in enumerate(alone):
        assert_same(infos, local[1][scope])


def test_the_parts_merge_into_the_whole(framework: str, local: Run, alone: list[Run]):
    parts = zip(*(outputs for outputs, _ in alone), strict=True)
    assert_same([copied(merge_infos(part, SCOPES, load_framework(framework))) for part in parts], local[0])


def test_one_agent_of_all_rows_sees_the_same_rows(framework: str, local: Run, build: Any):
    _, (infos,) = run(framework, EnvFactory(build, num_envs=NUM_ENVS), [NUM_ENVS])
    for one, several in zip(infos, local[0], strict=True):
        by_row = {key for key, value in one.items() if not key.startswith(("all ", "at times "))}
        for key in by_row - {"final_info"}:
            assert_same(one[key], several[key], key)


def test_single_rows_are_what_gymnasium_makes_of_them():
    """Infos of agents and of the full batch follow from the environments' definition alone. All of them are NumPy's."""
    outputs, agents = run("torch", EnvFactory(build_rows, num_envs=NUM_ENVS), SCOPES)
    ends = set()
    for step in range(1, len(outputs) + 1):
        for start, stop, infos in (
            (0, NUM_ENVS, outputs[step - 1]),
            *(
                (start, start + size, agent[step - 1])
                for start, size, agent in zip(STARTS, SCOPES, agents, strict=True)
            ),
        ):
            ended, expected = expected_rows(range(start, stop), step)
            ends.add(ended)
            infos = dict(infos)
            infos.pop("final_obs", None)
            infos.pop("_final_obs", None)
            assert_same(infos, expected, f"step {step}, rows {start} to {stop}: ")
    assert len(ends) > 20  # various rows end together


def expected_rows(rows: range, step: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    singles, ended = [], []
    for row in rows:
        episode, before = divmod(step - 1, length_of(row))
        infos = row_infos(row, episode, before + 1)
        if before + 1 == length_of(row):
            ended.append(row)
            total = 0.0
            for number in range(1, length_of(row) + 1):
                total += 1000.0 * row + 10.0 * episode + number / 10
            infos["episode"] = {"r": total, "l": length_of(row), "t": 0.0}
            begun = {"begun": episode + 1, "nested": {"begun": f"{row} begins {episode + 1}"}}
            infos = {**begun, "final_info": infos}
        singles.append(infos)
    return tuple(ended), gymnasium_infos(singles)


@pytest.mark.parametrize("name", ["batch", "batch that resets by mask"])
def test_infos_of_all_rows_by_the_rule(framework: str, name: str):
    env = EnvFactory(partial(BUILDS[name], framework), num_envs=NUM_ENVS)
    outputs, agents = run(framework, env, SCOPES, steps=30)
    for step, infos in enumerate(outputs, start=1):
        given = batch_infos(framework, step, NUM_ENVS)
        for key in ("all float", "all float64", "all float32", "all zero_d", "all tensor", "at times float"):
            assert (key in infos) is (key in given)
            if key in given:
                assert_same(infos[key], float(given[key]), key)
        for key in ("int", "int64", "zero_d int", "bool", "text", "none", "list", "array"):
            assert_same(infos[f"all {key}"], [given[f"all {key}"]] * 3, key)
        assert_same(
            infos["all nested"],
            {
                "float": step / 9,
                "int": [step] * 3,
                "none": [None] * 3,
                "deeper": {"text": [str(step)] * 3, "empty": {}},
            },
        )
        assert infos["all empty"] == {}
        assert infos.get("at times int") == (None if step % 3 else [step] * 3)
        for size, agent in zip(SCOPES, agents, strict=True):
            own = batch_infos(framework, step, size)
            seen = agent[step - 1]
            if step % 4:  # no row is valid
                assert not {"masked", "_masked"} & (set(seen) | set(infos))
            if step % 4 or name != "batch":
                del own["masked"], own["_masked"]
            if name != "batch":
                del own["rows"], own["tensor rows"]  # rows that have ended are empty, or the key is missing
            assert_same({key: seen[key] for key in own}, copied(own))
    ended = [("batch episode" if name == "batch" else "final_info") in infos for infos in outputs]
    assert any(ended)
    assert not all(ended)
