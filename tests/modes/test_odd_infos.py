"""Odd infos are the same in every mode: keys of any type, ragged and mixed values, nested in some rows only.

Each value says which row, episode and step it comes from.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper

from orchestrator.ray import RayOrchestrator
from tests.support.agents import NullAgent, RecordingTeam, copied
from tests.support.envs import CountingEnv
from tests.support.foreign import ForeignEnv
from tests.support.multi_agent_envs import CountingTeamEnv
from tests.support.odd_infos import (
    HoldingEnv,
    HoldingTeamEnv,
    OddEnv,
    OddTeamEnv,
    Unreadable,
    build_holding,
    odd_infos,
)
from tests.support.parity import CFG, assert_alike, assert_same, slices_run, step_trainer
from tests.support.schedule import full_or_short, in_turn
from workers.envs import EnvFactory, wrap_env
from workers.errors import EnvError, WorkerError
from workers.info_rows import merge_rows

SCOPES = [2, 3, 1]
NUM_ENVS = sum(SCOPES)
STEPS = 24


def odd_copies(num_envs: int, first_env: int) -> list[OddEnv]:
    return [OddEnv(first_env + i) for i in range(num_envs)]


def odd_vector(kind: Any, mode: AutoresetMode, num_envs: int, first_env: int) -> Any:
    return kind([partial(OddEnv, first_env + i) for i in range(num_envs)], autoreset_mode=mode)


def odd_team(num_envs: int, first_env: int) -> list[OddTeamEnv]:
    return [OddTeamEnv(first_env + i) for i in range(num_envs)]


BUILDS: dict[str, Callable[[int, int], Any]] = {
    "copies": odd_copies,
    "sync": partial(odd_vector, SyncVectorEnv, AutoresetMode.SAME_STEP),
    "sync that resets by mask": partial(odd_vector, SyncVectorEnv, AutoresetMode.DISABLED),
    "async": partial(odd_vector, AsyncVectorEnv, AutoresetMode.SAME_STEP),
    "team": odd_team,
}


class OddAgent(NullAgent):
    """Agent that keeps copies of its infos."""

    def __init__(self, scope: Any = None) -> None:
        super().__init__(scope)
        self.infos: list[Any] = []

    def record_transition(self, **arguments: Any) -> None:
        self.infos.append(copied(arguments["infos"]))

    def state_dict(self) -> dict[str, Any]:
        return {"infos": self.infos}


class OddTeam(RecordingTeam):
    def __init__(self, scope: Any = None) -> None:
        super().__init__(OddTeamEnv(0)._action_spaces, scope)

    def state_dict(self) -> dict[str, Any]:
        return {"infos": [record["infos"] for record in self.records()]}


def agents_of(name: str) -> list[Any]:
    return [OddTeam if name == "team" else OddAgent] * len(SCOPES)


def run(name: str, framework: str, orchestrator: Any = "local", *, shared: bool = False) -> Any:
    env: Any = EnvFactory(BUILDS[name], num_envs=NUM_ENVS)
    if shared:
        env = wrap_env(BUILDS[name](NUM_ENVS, 0), framework=framework)
    options = {"agents": agents_of(name), "scopes": SCOPES, "orchestrator": orchestrator, "seed": 3}
    with step_trainer(framework)(env=env, cfg={**CFG, "timesteps": STEPS}, **options) as trainer:
        outputs = [copied(trainer.train()[4]) for _ in range(STEPS)]
        return outputs, [agent.state_dict()["infos"] for agent in trainer.agents]


def assert_equal(name: str, given: Any, expected: Any) -> None:
    """Assert that runs are equal; rows that are taken from a batch have numbers of the types in the whole batch."""
    (outputs, agents), (expected_outputs, expected_agents) = given, expected
    (assert_alike if "by mask" in name else assert_same)(outputs, expected_outputs)
    assert_alike(agents, expected_agents)


@pytest.mark.parametrize(("name", "framework"), in_turn(list(BUILDS)))
def test_local_is_scope_by_scope(name: str, framework: str):
    local = run(name, framework)
    env = EnvFactory(BUILDS[name], num_envs=NUM_ENVS)
    other_outputs, other_agents = slices_run(STEPS, framework, env, agents_of(name), SCOPES)
    assert_equal(name, ([output[4] for output in other_outputs], [agent["infos"] for agent in other_agents]), local)


REMOTE = [(name, shared) for name in BUILDS for shared in (False, True)]


@pytest.mark.parametrize(("name", "shared"), full_or_short(REMOTE, [("copies", False), ("team", True)]))
def test_ray_is_local(name: str, shared: bool, ray_cluster: None):
    assert_equal(name, run(name, "torch", RayOrchestrator(num_cpus=0.5), shared=shared), run(name, "torch"))


@pytest.mark.parametrize("name", ["copies", "sync", "async"])
def test_outputs_follow_from_the_rows(name: str):
    outputs, _ = run(name, "torch")
    ends = 0
    for step, infos in enumerate(outputs, start=1):
        rows: list[dict[Any, Any]] = []
        for row in range(NUM_ENVS):
            episode, before = divmod(step - 1, 3 + row % 4)
            told = odd_infos(row, episode, before + 1)
            has_ended = before + 1 == 3 + row % 4
            ends += has_ended
            rows.append({**odd_infos(row, episode + 1, 0), "final_info": told} if has_ended else told)
        infos = {key: value for key, value in infos.items() if key not in ("final_obs", "_final_obs")}
        assert_same(infos, merge_rows(rows))
    assert ends > NUM_ENVS


THINGS = [threading.Lock, partial(iter, [1]), lambda: threading, Unreadable]


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize(("kind", "agent"), [(HoldingEnv, OddAgent), (HoldingTeamEnv, OddTeam)])
def test_objects_that_cannot_be_copied_just_work_in_this_process(kind: Any, agent: Any, thing: Any):
    made: list[Any] = []

    def noted() -> Any:
        made.append(thing())
        return made[-1]

    env = EnvFactory(partial(build_holding, kind, noted), num_envs=5)
    with step_trainer("torch")(env=env, agents=[agent] * 2, scopes=[2, 3], cfg=CFG, seed=1) as trainer:
        found = [held for _ in range(12) for held in held_in(trainer.train()[4])]
    assert found
    assert {id(held) for held in found} <= {id(one) for one in made}


def held_in(infos: dict[str, Any]) -> Iterator[Any]:
    """Yield the objects under "held"."""
    for key, value in infos.items():
        if key == "held":
            yield from (held for row in value if row is not None for held in row)
        elif isinstance(value, dict):
            yield from held_in(value)


REASONS = {
    "lock": (threading.Lock, "TypeError: cannot pickle '_thread.lock' object; remove it"),
    "unreadable": (Unreadable, "cannot be unpickled: LookupError: no licence; make its module importable"),
}


PLACES = list(product(("shared", "sharded", "shared by ray", "sharded by ray"), REASONS))


@pytest.mark.parametrize(
    ("mode", "thing"), full_or_short(PLACES, [("shared", "lock"), ("sharded by ray", "unreadable")])
)
def test_what_cannot_travel_is_named_with_its_place(mode: str, thing: str, ray_cluster: None):
    make, reason = REASONS[thing]
    env: Any = EnvFactory(partial(build_holding, HoldingEnv, make), num_envs=5)
    if mode.startswith("shared"):
        env = wrap_env(env.build(5, 0), framework="torch")
    transport: Any = "ray" if mode.endswith("by ray") else "connection"
    orchestrator = RayOrchestrator(num_cpus=0.5, transport=transport)
    options = {"agents": [NullAgent] * 2, "scopes": [2, 3], "orchestrator": orchestrator}
    with step_trainer("torch")(env=env, cfg=CFG, **options) as trainer:
        trainer.train()
        trainer.train()
        with pytest.raises(WorkerError) as caught:
            trainer.train()
    (failure,) = caught.value.failures
    assert (failure.scope, failure.rows, failure.timestep) == (1, (2, 5), 3)
    assert failure.phase == ("record" if mode.startswith("shared") else "step")
    assert failure.kind == "workers.errors.EnvError"
    # row 3 is the second of its scope
    held = "infos['nested']['held'][1][0] is of type _thread.lock" if thing == "lock" else "infos['nested']['held'] has"
    assert failure.message.startswith(held)
    assert reason in failure.message


class ClashingEnv(CountingEnv):
    """The infos of row 1 have a key, and those of row 3 the name of its mask."""

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {1: {"a": 5}, 3: {"_a": 6}}.get(self.row, {})


def build_clashing(num_envs: int, first_env: int) -> list[ClashingEnv]:
    return [ClashingEnv(first_env + i) for i in range(num_envs)]


@pytest.mark.parametrize("orchestrator", full_or_short(["local", "ray"], ["local"]))
def test_keys_that_clash_between_scopes_are_named(orchestrator: Any, request: pytest.FixtureRequest):
    if orchestrator == "ray":
        request.getfixturevalue("ray_cluster")
        orchestrator = RayOrchestrator(num_cpus=0.5)
    env = EnvFactory(build_clashing, num_envs=5)
    options = {"agents": [NullAgent] * 2, "scopes": [2, 3], "orchestrator": orchestrator}
    with step_trainer("torch")(env=env, cfg=CFG, **options) as trainer, pytest.raises(WorkerError) as caught:
        trainer.train()
    (failure,) = caught.value.failures
    assert (failure.scope, failure.rows, failure.timestep, failure.phase) == (None, (0, 5), 1, "step")
    assert failure.kind == "workers.errors.EnvError"
    assert "of infos clash: '_a' is the name of the mask of 'a'; rename one of them" in failure.message


class GivenEnv(CountingEnv):
    """The infos of row 1 are those given."""

    def __init__(self, row: int, infos: Any) -> None:
        super().__init__(row)
        self.infos = infos

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], self.infos if self.row else {}


class GivenVector(VectorWrapper):
    """The infos of the batch are those given."""

    def __init__(self, infos: Any) -> None:
        super().__init__(SyncVectorEnv([partial(CountingEnv, 0)], autoreset_mode=AutoresetMode.SAME_STEP))
        self.infos = infos

    def step(self, actions: Any) -> Any:
        return *self.env.step(actions)[:4], self.infos


class GivenTeamEnv(CountingTeamEnv):
    """All infos, or those of the tank, are those given."""

    def __init__(self, infos: Any, *, of_tank: bool) -> None:
        super().__init__(0)
        self.infos, self.of_tank = infos, of_tank

    def step(self, actions: Any) -> Any:
        *outputs, infos = super().step(actions)
        return *outputs, infos | {"tank": self.infos} if self.of_tank else self.infos


GIVEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "copies": (lambda infos: [GivenEnv(row, infos) for row in range(2)], "the infos are"),
    "vector": (GivenVector, "GivenVector.*: the infos are"),
    "team": (lambda infos: [GivenTeamEnv(infos, of_tank=False)], "counting_team_v0.*: the infos are"),
    "agent": (lambda infos: [GivenTeamEnv(infos, of_tank=True)], "counting_team_v0.*, 'tank': the infos are"),
}


@pytest.mark.parametrize("infos", [None, ["a"], "text"], ids=str)
@pytest.mark.parametrize("name", [*GIVEN, "foreign"])
def test_infos_that_are_not_a_dictionary_are_named(name: str, infos: Any):
    if name == "foreign":
        env: Any = ForeignEnv()
        env.infos, where = infos, "ForeignEnv.*: the infos are"
    else:
        make, where = GIVEN[name]
        env = wrap_env(make(infos), framework="torch")
    shown = "None" if infos is None else f"{infos!r} of type {type(infos).__name__}"
    agent = OddTeam if hasattr(env, "possible_agents") else NullAgent
    with step_trainer("torch")(env=env, agents=agent, cfg=CFG) as trainer, pytest.raises(WorkerError) as caught:
        trainer.train()
    (failure,) = caught.value.failures
    assert (failure.scope, failure.timestep, failure.phase) == (0, 1, "step")
    assert failure.kind == "workers.errors.EnvError"
    assert re.search(f"{where} {re.escape(shown)}; expected a dictionary, such as {{}}", failure.message), (
        failure.message
    )


def test_infos_that_a_teams_wrapper_adds_itself_are_refused():
    env = wrap_env([GivenTeamEnv({"alive": {"tank": 1}}, of_tank=False)], framework="torch")
    env.reset()
    actions = {name: torch.ones(1, width) for name, width in {"scout": 1, "tank": 2, "medic": 2}.items()}
    with pytest.raises(EnvError, match="the infos have 'alive', which the wrapper adds itself; rename it"):
        env.step(actions)
