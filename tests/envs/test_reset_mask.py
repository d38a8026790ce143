"""A vector environment that cannot reset by mask is refused before the first iteration, with a remedy that works."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import NormalizeObservation, RecordEpisodeStatistics

from tests.support.agents import NullAgent
from tests.support.envs import NoisyEnv
from tests.support.parity import CFG, assert_same, run, step_trainer
from workers.envs import EnvFactory, make_env, wrap_env
from workers.envs.copies import CheckedSyncVectorEnv
from workers.errors import EnvError, WorkerError

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]


def test_gymnasiums_own_vector_environment_is_refused_with_a_remedy_that_works(framework):
    with pytest.raises(EnvError, match="reset_mask") as caught:
        wrap_env(gymnasium.make_vec("CartPole-v1", num_envs=3), framework=framework)
    remedies = re.findall(r"(?:gymnasium\.make_vec|make_env)\(.*?\)", str(caught.value))
    assert len(remedies) == 2
    outputs = []
    for remedy in remedies:
        call = remedy.replace("num_envs=…", "num_envs=3").replace("framework=…", f"framework={framework!r}")
        env = eval(call, {"gymnasium": gymnasium, "make_env": make_env})
        env = wrap_env(env, framework=framework)
        outputs.append(run(60, framework=framework, env=env, agents=NullAgent, seed=1)[0])
    assert any("_final_obs" in infos for *_, infos in outputs[0])
    one, other = ([output[:4] for output in given] for given in outputs)
    assert_same(one, other)


class Counting(VectorEnv[Any, Any, Any]):
    """Rows ``(row, number of resets, step)``; treats the mask as `fault` says. No episode ends."""

    single_observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    single_action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, num_envs: int, first_env: int, mode: AutoresetMode, fault: str = "") -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": mode}
        self.fault = fault
        self.calls: list[str] = []
        self.batch = np.zeros((num_envs, 3), np.float32)
        self.batch[:, 0] = range(first_env, first_env + num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.calls.append("mask" if options else "reset" if seed is None else "seed")
        rows = np.ones(self.num_envs, np.bool_)
        if options and self.fault == "refuses":
            raise TypeError("unexpected options")
        if self.fault == "breaks":
            raise RuntimeError("boom")
        if options and self.fault != "ignores":
            rows = options["reset_mask"]
        self.batch[rows, 1] += 1
        self.batch[rows, 2] = 0
        return self.batch[rows] if self.fault == "only its rows" else self.batch.copy(), {}

    def step(self, actions: Any) -> Any:
        self.calls.append("step")
        self.batch[:, 2] += 1
        return self.batch.copy(), np.zeros(self.num_envs), *np.zeros((2, self.num_envs), np.bool_), {}


@pytest.mark.parametrize("fault", ["ignores", "refuses", "only its rows"])
@pytest.mark.parametrize("mode", MODES)
def test_an_environment_that_does_not_respect_the_mask_is_refused_when_the_trainer_is_built(mode, fault, framework):
    env = Counting(3, 0, mode, fault)
    with pytest.raises(EnvError, match=rf"Counting.*has autoreset mode {mode.name}, but reset\(.*SAME_STEP"):
        step_trainer(framework)(env=wrap_env(env, framework=framework), agents=NullAgent, cfg=CFG, seed=3)
    assert "step" not in env.calls


@pytest.mark.parametrize("orchestrator", ["local", "ray"])  # Ray is not started: the environments are tried before
def test_an_error_in_the_trial_names_its_place_in_every_mode(framework, orchestrator):
    env = wrap_env(Counting(3, 0, AutoresetMode.DISABLED, "breaks"), framework=framework)
    options = {"agents": [NullAgent] * 2, "orchestrator": orchestrator}
    with pytest.raises(WorkerError, match=r"all scopes .*, phase build, .*: RuntimeError: boom") as caught:
        step_trainer(framework)(env=env, cfg=CFG, seed=3, **options)
    (failure,) = caught.value.failures
    assert (failure.scope, failure.rows, failure.phase, failure.timestep) == (None, (0, 3), "build", None)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_every_row_is_tried_once_whatever_the_slices(framework):
    """The histories of the rows are the same in one batch and in slices; the seeded reset comes last."""
    made: list[Counting] = []

    def build(num_envs: int, first_env: int) -> Any:
        made.append(Counting(num_envs, first_env, AutoresetMode.DISABLED))
        return made[-1]

    outputs = [
        run(2, framework=framework, env=EnvFactory(build, num_envs=5), agents=NullAgent, seed=3)[0][-1][0].tolist()
    ]
    assert made[0].calls == ["seed", "mask", "mask", "seed", "step", "step"]
    for start, size in ((0, 1), (1, 3), (4, 1)):
        env = wrap_env(build(size, start), framework=framework)
        env.prove_reset_mask(seed=3 + start, first_env=start)
        env.reset(seed=3 + start)
    resets = [row for one in made[1:] for row in one.batch[:, 1].tolist()]
    assert resets == made[0].batch[:, 1].tolist() == [3.0] * 5
    assert outputs[0] == [[row, 3, 2] for row in range(5)]


def test_without_a_seed_nothing_is_tried(framework):
    env = Counting(3, 0, AutoresetMode.DISABLED, "ignores")
    run(2, framework=framework, env=wrap_env(env, framework=framework), agents=NullAgent)
    assert env.calls == ["reset", "step", "step"]


def test_known_environments_are_not_tried_but_their_wrappers_are(framework, monkeypatch):
    def build(wrapper: Any, mode: AutoresetMode) -> Any:
        return wrap_env(wrapper(SyncVectorEnv([NoisyEnv] * 3, autoreset_mode=mode)), framework=framework)

    def trainer(env: Any) -> Any:
        return step_trainer(framework)(env=env, agents=NullAgent, cfg=CFG, seed=3)

    for mode in MODES:
        trainer(build(RecordEpisodeStatistics, mode)).close()
    with pytest.raises(EnvError, match=r"NormalizeObservation.*normalise observations in the agent"):
        trainer(build(NormalizeObservation, AutoresetMode.NEXT_STEP))
    resets: list[Any] = []
    env = build(lambda one: one, AutoresetMode.DISABLED)
    monkeypatch.setattr(CheckedSyncVectorEnv, "reset", lambda self, **given: resets.append(given))
    trainer(env).close()
    assert resets == []


class FailingReset(NoisyEnv):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if seed is None:
            raise ValueError("no power")
        return super().reset(seed=seed)


def test_an_error_of_a_copy_is_not_taken_for_a_refusal(framework):
    env = SyncVectorEnv([FailingReset, NoisyEnv], autoreset_mode=AutoresetMode.DISABLED)
    wrapped = wrap_env(RecordEpisodeStatistics(env), framework=framework)
    with pytest.raises(ValueError, match="no power"):
        wrapped.prove_reset_mask(seed=0, first_env=0)


@pytest.mark.filterwarnings("ignore:.*(ERROR|Received).*:UserWarning")  # Gymnasium's, in colours
def test_an_error_of_a_copy_in_another_process_is_not_taken_for_a_refusal():
    env = AsyncVectorEnv([FailingReset, NoisyEnv], autoreset_mode=AutoresetMode.DISABLED, context="spawn")
    wrapped, actions = wrap_env(env, framework="numpy"), np.zeros((2, 2), np.float32)

    def step_until_an_end() -> None:
        wrapped.reset(seed=3)
        for _ in range(200):
            wrapped.step(actions)

    try:
        with pytest.raises(ValueError, match="no power") as caught:
            step_until_an_end()
        assert not isinstance(caught.value, EnvError)
    finally:
        env.close(terminate=True)
