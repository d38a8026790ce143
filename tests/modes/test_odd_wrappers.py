"""Whatever the wrapper of another library gives is checked: agents, types, shapes, dtypes and finite numbers."""

from __future__ import annotations

import importlib
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium import make_vec
from gymnasium.spaces import Box
from pettingzoo import ParallelEnv

from tests.support.agents import NullAgent, copied, to_numpy
from tests.support.foreign import ForeignEnv, trainer_of
from tests.support.odd_envs import (
    NUM_ENVS,
    ODD_ROW,
    Change,
    NullTeam,
    OddForeign,
    OddForeignTeam,
    assert_refused,
    at,
    cast,
    failure_of,
    filled,
    nothing,
    of_bert,
)
from tests.support.parity import CFG, assert_same, copied_outputs, ppo, run, step_trainer
from workers.envs import MultiAgentEnvWrapper, Wrapper
from workers.frameworks import load_framework

TO_NAN, TO_TWO = partial(filled, value=np.nan), partial(filled, value=2)
TO_INT, TO_BYTES, TO_FLOAT, TO_COMPLEX = (
    partial(cast, dtype=dtype) for dtype in (np.int32, np.uint8, np.float32, np.complex64)
)
FLAGS = r"expected flags \(bool or 0 and 1\)"

FAULTS: dict[str, tuple[Change, int | None, str]] = {
    "NaN in an observation": (at(0, TO_NAN), ODD_ROW, "observations are nan in column 3; expected finite numbers. "),
    "infinity as a reward": (at(1, lambda r: filled(r, -np.inf)), ODD_ROW, "are -inf; expected .* that fit float32"),
    "NumPy's observations": (at(0, to_numpy), None, "observations have type numpy.ndarray; expected a {} array"),
    "NumPy's rewards": (at(1, to_numpy), None, "rewards have type numpy.ndarray; expected a {} array"),
    "flat rewards": (at(1, lambda r: r.reshape((5,))), None, r"rewards have shape \(5,\); expected .*\(5, 1\)"),
    "a row of flags": (at(2, lambda f: f.reshape((1, 5))), None, r"terminated have shape \(1, 5\); expected a"),
    "more rows": (at(0, lambda o: o.reshape((10, 2))), None, r"observations have shape \(10, 2\); expected .*\(5, 4\)"),
    "four outputs": (lambda given: (*given[:3], given[4]), None, r"step\(\) returned 4 values; expected five"),
    "None as infos": (at(4, nothing), None, "^environment OddForeign: the infos are None; expected a dict"),
    "None as observations": (at(0, nothing), None, r"observations have type NoneType; expected a {} array .*\(5, 4\)"),
    "None as rewards": (at(1, nothing), None, r"rewards have type NoneType; expected a {} array of shape \(5, 1\)"),
    "None as a flag": (at(2, nothing), None, r"terminated have type NoneType; expected a {} array of shape \(5, 1\)"),
    "a dictionary": (at(0, lambda o: {"a": o}), None, "observations have type dict; expected a {} array"),
    "rewards by agent": (at(1, lambda r: {"a": r}), None, "rewards have type dict; expected a {} array"),
    "integers for a Box": (at(0, TO_INT), None, r"observations have dtype \S*int32; expected floats, as in Box\(-1.0"),
    "floats as flags": (at(3, TO_FLOAT), None, rf"truncated have dtype \S*float32; {FLAGS}"),
    "two as a flag": (at(2, lambda f: filled(TO_BYTES(f), 2)), ODD_ROW, f"terminated are 2; {FLAGS}"),
    "minus one as a flag": (at(3, lambda f: filled(cast(f, np.int8), -1)), ODD_ROW, f"truncated are -1; {FLAGS}"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_odd_wrapper_of_another_library_is_refused(fault, framework):
    change, row, message = FAULTS[fault]
    assert_refused(failure_of(OddForeign(framework, change), framework), row, message.format(framework))


ALL = r"\['anna', 'bert'\]"
TEAM_FAULTS: dict[str, tuple[Change, int | None, str]] = {
    "NaN in an observation": (of_bert(0, TO_NAN), ODD_ROW, "observations of 'bert' are nan in column 3; expected"),
    "None as a reward": (of_bert(1, nothing), None, r"rewards of 'bert' have type NoneType; expected a {} .*\(5, 1\)"),
    "None as an observation": (of_bert(0, nothing), None, "observations of 'bert' have type NoneType; expected a {}"),
    "None as a flag": (of_bert(3, nothing), None, "truncated of 'bert' have type NoneType; expected a {} array"),
    "None for all": (at(1, nothing), None, f"rewards have type NoneType; expected a dictionary of the agents {ALL}"),
    "an array": (at(0, lambda o: o["anna"]), None, f"observations have type .*; expected a dictionary of the .* {ALL}"),
    "no observation": (of_bert(0, str), None, f"observations of 'bert' are missing; expected those of {ALL}"),
    "no reward": (of_bert(1, str), None, f"rewards of 'bert' are missing; expected those of {ALL}"),
    "no flag": (of_bert(2, str), None, "terminated of 'bert' are missing"),
    "another agent": (at(1, lambda r: r | {"cleo": r["anna"]}), None, f"have the unknown agent 'cleo'; .*{ALL}"),
    "a flag of another": (at(3, lambda f: f | {"cleo": f["anna"]}), None, "truncated have the unknown agent 'cleo'"),
    "floats as flags": (of_bert(2, TO_FLOAT), None, rf"terminated of 'bert' have dtype \S*float32; {FLAGS}"),
    "two as a flag": (of_bert(2, lambda f: filled(TO_BYTES(f), 2)), ODD_ROW, f"terminated of 'bert' are 2; {FLAGS}"),
    "integers for a Box": (of_bert(0, TO_INT), None, r"observations of 'bert' have dtype \S*int32; expected floats"),
    "flat rewards": (of_bert(1, lambda r: r.reshape((5,))), None, r"rewards of 'bert' have shape \(5,\); expected"),
}


@pytest.mark.parametrize("fault", TEAM_FAULTS)
def test_odd_team_of_another_library_is_refused(fault, framework):
    change, row, message = TEAM_FAULTS[fault]
    failure = failure_of(OddForeignTeam(framework, change), framework, agent=NullTeam)
    assert_refused(failure, row, message.format(framework))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (OddForeign, nothing, r"states have type NoneType; expected a {} array of shape \(5, 2\)"),
        (OddForeign, TO_NAN, "states are nan in column 1"),
        (OddForeignTeam, nothing, "states have type NoneType; expected a dictionary of the agents"),
        (OddForeignTeam, lambda s: s | {"bert": None}, "states of 'bert' have type NoneType; expected a {} array"),
        (OddForeignTeam, lambda s: {"anna": s["anna"]}, "states of 'bert' are missing"),
    ],
)
def test_states_do_not_vanish(kind, change, message, framework):
    env = kind(framework, lambda given: given, change_states=change)
    agent = NullTeam if kind is OddForeignTeam else NullAgent
    row = ODD_ROW if "nan" in message else None
    assert_refused(failure_of(env, framework, agent=agent), row, message.format(framework))


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_complex_numbers_are_refused(index, name):
    expected = ("floats, as in Box", "real numbers", "flags")[index]
    failure = failure_of(OddForeign(name, at(index, TO_COMPLEX)), name)
    assert_refused(failure, None, rf"have dtype \S*complex64; expected {expected}")


def test_vectors_of_warp_are_refused():
    import warp as wp

    failure = failure_of(OddForeign("warp", at(1, lambda r: wp.zeros(r.shape, dtype=wp.vec3))), "warp")
    assert_refused(failure, None, "rewards have dtype vec3f; expected real numbers")


class Ending(ForeignEnv):
    """Row 0 ends in the third step: truncated, with flags of a dtype."""

    def __init__(self, framework: str, dtype: Any) -> None:
        super().__init__(framework=framework)
        self.dtype = dtype

    def step(self, actions: Any) -> Any:
        observations, rewards, *flags, infos = super().step(actions)
        return observations, rewards, *(cast(flag, self.dtype) for flag in reversed(flags)), infos


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int32])
def test_flags_may_be_integers(dtype, framework):
    """skrl's wrappers for JAX and Warp give int8."""
    with trainer_of(Ending(framework, dtype), framework=framework) as trainer:
        trainer.collect_metrics()
        outputs = [copied_outputs(trainer.train()) for _ in range(4)]
        metrics = trainer.collect_metrics()[0]
    assert [output[3].tolist() for output in outputs[1:3]] == [[[0], [0]], [[1], [0]]]
    assert (metrics["Episode / Length (mean)"], metrics["Episode / Return (mean)"]) == (3, 3.0)


def test_ppo_for_torch_takes_integers_as_flags():
    """PPO for JAX and Warp casts them anyway."""

    def agent(scope: Any) -> Any:
        spaces = {"observation_space": ForeignEnv.observation_space, "action_space": ForeignEnv.action_space}
        return ppo("torch")(**spaces, num_envs=scope.num_envs, cfg={"rollouts": 4, "mini_batches": 1})

    def weights(dtype: Any) -> Any:
        _, (trained,) = run(8, env=Ending("torch", dtype), agents=agent, seed=1)
        return copied(trained.state_dict())

    assert_same(weights(np.int8), weights(np.bool_))


def test_flags_of_skrls_wrappers_may_be_floats(framework):
    """Those of its wrapper of MuJoCo Playground are."""
    kind = type("PlaygroundWrapper", (OddForeign,), {"__module__": "skrl.envs.wrappers.torch.playground_envs"})
    run(3, framework=framework, env=kind(framework, at(2, TO_FLOAT)), agents=NullAgent)
    half = at(2, lambda flags: filled(TO_FLOAT(flags), 0.5))
    assert_refused(failure_of(kind(framework, half), framework), ODD_ROW, f"terminated are 0.5; {FLAGS}")


class OneDies(ParallelEnv):
    """As PettingZoo asks for, an agent is left out after the step in which it dies: bert in the second one."""

    metadata: dict[str, Any] = {"name": "one_dies_v0"}  # noqa: RUF012
    agents: list[str] = []  # noqa: RUF012
    possible_agents = ["anna", "bert"]  # noqa: RUF012
    observation_spaces = dict.fromkeys(possible_agents, Box(-np.inf, np.inf, (2,)))
    action_spaces = dict.fromkeys(possible_agents, Box(-1, 1, (1,)))

    def reset(self, seed: Any = None, options: Any = None) -> Any:
        self.agents, self.time = list(self.possible_agents), 0
        return {name: self.observe(name) for name in self.agents}, {}

    def observe(self, name: str) -> Any:
        return np.array([self.possible_agents.index(name), self.time], np.float32)

    def step(self, actions: Any) -> Any:
        self.time += 1
        shown = self.agents
        ended = {name: (name, self.time) in (("bert", 2), ("anna", 4)) for name in shown}
        self.agents = [name for name in shown if not ended[name]]
        return (
            {name: self.observe(name) for name in shown},
            {name: 10.0 * self.possible_agents.index(name) + self.time for name in shown},
            ended,
            dict.fromkeys(shown, False),
            {},
        )


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_skrls_wrapper_may_leave_out_dead_agents(name):
    wrap = importlib.import_module(f"skrl.envs.wrappers.{name}").wrap_env
    env = wrap(OneDies(), wrapper="pettingzoo", verbose=False)
    env.state = lambda: dict.fromkeys(env.possible_agents)
    with step_trainer(name)(env=env, agents=NullTeam, cfg={**CFG, "timesteps": 8}) as trainer:
        trainer.collect_metrics()
        outputs = [copied_outputs(trainer.train()) for _ in range(8)]
        scalars = trainer.collect_metrics()[0]
    assert [sorted(output[0]) for output in outputs[:4]] == [["anna", "bert"]] * 2 + [["anna"]] * 2
    assert [output[0]["anna"][0].tolist() for output in outputs[:5]] == [[0, 1], [0, 2], [0, 3], [0, 4], [0, 1]]
    assert (scalars["Episode / anna / Return (mean)"], scalars["Episode / bert / Return (mean)"]) == (10.0, 23.0)


def test_skrls_wrapper_may_give_a_category_as_one_number(framework):
    wrap = importlib.import_module(f"skrl.envs.wrappers.{framework}").wrap_env
    env = wrap(make_vec("FrozenLake-v1", num_envs=3, vectorization_mode="sync"), verbose=False)
    outputs, _ = run(2, framework=framework, env=env, agents=NullAgent)
    assert outputs[1][0].shape == (3, 1)


def same(given: Any) -> Any:
    return given


def ours(env: Any, framework: str, **members: Any) -> Any:
    """Return a wrapper by our contract with the members of a wrapper of another library."""
    base: Any = MultiAgentEnvWrapper if isinstance(env, OddForeignTeam) else Wrapper
    spaces = (f"{kind}_space{plural}" for kind in ("observation", "action", "state") for plural in ("", "s"))
    others = ("num_envs", "possible_agents", "state", *spaces)
    names = base.__abstractmethods__ | {name for name in others if hasattr(env, name)}
    return type("Ours", (base,), {name: getattr(env, name) for name in names} | {"framework": framework} | members)()


ALL_ROWS = np.ones(NUM_ENVS, np.bool_)


def final(change: Change, mask: Any = ALL_ROWS) -> Change:
    """Return a change that gives changed observations as true final ones of the rows of a mask."""
    return lambda given: (*given[:4], {"final_obs": change(given[0]), "_final_obs": mask})


def ended(infos: Any) -> Change:
    """Return a change that ends a row, with these infos."""
    return lambda given: (*given[:2], cast(filled(given[2], 1), np.bool_), given[3], infos(given[0]))


FINAL = "final observations have"
OUR_FAULTS: dict[str, tuple[Change, int | None, str]] = {
    "None as rewards": (at(1, nothing), None, r"environment Ours: rewards have type NoneType; expected .*\(5, 1\)"),
    "None as final": (final(nothing), None, rf"{FINAL} type NoneType; expected a {{}} array of shape \(5, 4\)"),
    "NumPy's final": (final(to_numpy), None, f"{FINAL} type numpy.ndarray; expected a {{}} array"),
    "NumPy's at an end": (lambda g: at(0, to_numpy)(final(same)(g)), None, "observations have type numpy.nd"),
    "a matrix as final": (final(lambda o: o.reshape((10, 2))), None, rf"{FINAL} shape \(10, 2\)"),
    "integers as final": (final(TO_INT), None, rf"{FINAL} dtype \S*int32; expected floats, as in Box"),
    "integers as a mask": (
        final(same, np.ones(NUM_ENVS, int)),
        None,
        r"'_final_obs'\] has dtype int64; expected a bool",
    ),
    "a mask of three": (
        final(same, np.ones(3, np.bool_)),
        None,
        r"has shape \(3,\); expected a bool array of shape \(5,",
    ),
    "a list as a mask": (final(same, [True] * NUM_ENVS), None, "has type list; expected a bool array"),
    "no final": (
        ended(lambda given: {}),
        ODD_ROW,
        r"it has ended, but infos\['final_obs'\] and infos\['_final_obs'\] do",
    ),
    "final without a mask": (ended(lambda given: {"final_obs": given}), ODD_ROW, "it has ended, but infos"),
    "NaN as final": (final(TO_NAN), ODD_ROW, "final observations are nan in column 3"),
}


@pytest.mark.parametrize("fault", OUR_FAULTS)
def test_odd_wrapper_of_our_contract_is_refused(fault, framework):
    change, row, message = OUR_FAULTS[fault]
    env = ours(OddForeign(framework, change), framework)
    assert_refused(failure_of(env, framework), row, message.format(framework))


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_a_team_of_our_contract_has_every_agent(index, framework):
    """Dead ones, too."""
    env = ours(OddForeignTeam(framework, of_bert(index, str)), framework, agents=["anna"])
    failure = failure_of(env, framework, agent=NullTeam)
    what = ("observations", "rewards", "terminated", "truncated")[index]
    assert_refused(failure, None, f"environment Ours: {what} of 'bert' are missing; expected those of {ALL}")


def test_only_other_libraries_may_give_floats_for_a_box_of_integers(framework, monkeypatch):
    """skrl's wrappers do."""
    space, foreign = Box(0, 255, (4,), np.uint8), OddForeign(framework, lambda given: given)
    failure = failure_of(ours(foreign, framework, observation_space=space), framework, timestep=1)
    assert re.search(r"observations have dtype \S*float32; expected integers, as in Box\(0, 255", failure.message)
    monkeypatch.setattr(foreign, "observation_space", space)
    run(3, framework=framework, env=foreign, agents=NullAgent)


def test_only_other_libraries_may_have_no_states_in_spite_of_a_space(framework, monkeypatch):
    """skrl's wrappers do."""
    monkeypatch.setattr(OddForeign, "state", nothing)
    foreign = OddForeign(framework, lambda given: given)
    failure = failure_of(ours(foreign, framework), framework, timestep=1)
    assert re.search(r"states have type NoneType; expected a .* array of shape \(5, 2\)", failure.message)
    run(3, framework=framework, env=foreign, agents=NullAgent)


@pytest.mark.parametrize("is_on_host", [True, False])
def test_rows_of_dead_agents_may_hold_anything(is_on_host, framework, monkeypatch):
    adapter = load_framework(framework)
    monkeypatch.setattr(adapter, "is_on_host", lambda array: is_on_host, raising=False)

    def told(change: Change) -> Any:
        env = OddForeignTeam(framework, change)
        env.infos = {"alive": {"bert": adapter.from_numpy(np.arange(NUM_ENVS)[:, None] != ODD_ROW)}}
        return env

    for change in (of_bert(0, TO_NAN), of_bert(1, TO_NAN)):
        run(40, framework=framework, env=told(change), agents=NullTeam)
    living = of_bert(1, partial(filled, value=np.nan, row=ODD_ROW - 1))
    if is_on_host:
        assert_refused(failure_of(told(living), framework, agent=NullTeam), ODD_ROW - 1, "rewards of 'bert' are nan")
    else:
        failure = failure_of(told(living), framework, timestep=31, agent=NullTeam)
        assert "are not finite since timestep 2" in failure.message


def test_masks_of_living_agents_may_be_written_again(framework):
    """The reward of the step in which an agent dies counts."""
    alive = np.ones((NUM_ENVS, 1), np.bool_)

    def dies(given: Any) -> Any:
        alive[ODD_ROW] = False
        return of_bert(1, TO_NAN)(given)

    env = OddForeignTeam(framework, dies)
    env.infos = {"alive": {"bert": alive}}
    assert_refused(failure_of(env, framework, agent=NullTeam), ODD_ROW, "rewards of 'bert' are nan")


@pytest.mark.parametrize(
    ("alive", "message"),
    [
        (np.ones((NUM_ENVS, 1)), "dtype float64"),
        (np.ones((2, 1), np.bool_), r"shape \(2, 1\)"),
        ([True] * NUM_ENVS, "type list"),
    ],
)
def test_odd_masks_of_living_agents_are_refused(alive, message, framework):
    env = OddForeignTeam(framework, lambda given: (*given[:4], {"alive": {"bert": alive}}))
    failure = failure_of(env, framework, agent=NullTeam)
    assert_refused(failure, None, rf"infos\['alive'\]\['bert'\] has {message}; expected a bool array of shape \(5,\)")


def test_a_bad_step_on_a_device_is_told_later_with_its_number(framework, monkeypatch):
    """The number is read every 16 checks, the first reset included; its copy was started 16 checks before."""
    monkeypatch.setattr(load_framework(framework), "is_on_host", lambda array: False, raising=False)
    failure = failure_of(OddForeign(framework, at(0, TO_NAN)), framework, timestep=31)
    assert "observations, states or rewards are not finite since timestep 2" in failure.message
