"""`save` and `load` of one trainer: what they keep, what they refuse, and what they leave unchanged."""

from __future__ import annotations

import logging
import pickle
import random
import threading
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv

from tests.support.agents import NoisyAgent, NullAgent, RecordingAgent
from tests.support.foreign import ForeignEnv, trainer_of
from tests.support.parity import CFG, assert_same, copied_outputs
from tests.support.skrl_agents import skrl_ppo, skrl_sac
from trainer.torch import StepTrainer
from trainer.versions import versions
from workers.agents.torch import PPO
from workers.envs import EnvFactory, make_env
from workers.errors import CheckpointError, LifecycleError, WorkerError
from workers.scope.agent_runner import AgentRunner
from workers.types import Scope

PPO_CFG = {"rollouts": 8, "learning_epochs": 1, "mini_batches": 1, "hidden_sizes": (8,)}


def make_ppo(scope: Scope, **cfg: Any) -> PPO:
    env = gymnasium.make("CartPole-v1")
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    return PPO(**spaces, num_envs=scope.num_envs, cfg={**PPO_CFG, **cfg})


def cartpole(agents: Any = make_ppo, *, num_envs: int = 2, shows_progress: bool = False, **options: Any) -> Any:
    env = make_env("CartPole-v1", num_envs=num_envs, framework="torch")
    cfg: Any = {**CFG, "timesteps": 100, "disable_progressbar": not shows_progress}
    return StepTrainer(env=env, agents=agents, cfg=cfg, **{"seed": 3, **options})


def rest(trainer: Any, steps: int = 20) -> list[Any]:
    outputs = [copied_outputs(trainer.train()) for _ in range(steps)]
    return [outputs, trainer.agent_files()]


def held(trainer: Any) -> Any:
    """Return the whole state of a trainer, to compare."""
    return trainer._session.snapshot(allow_pickle=True), trainer._about()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of `cartpole()` after 13 iterations."""
    with cartpole() as trainer:
        trainer.run(13)
        trainer.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_counter_and_progress_bar_go_on(saved, capsys):
    with cartpole(shows_progress=True) as trainer:
        assert trainer.load(str(saved)) == 14
        trainer.train()
        assert trainer._timestep == 14
        assert trainer._progress.n == 14


def test_the_first_timestep_is_given_for_a_trainer_that_has_done_nothing(tmp_path):
    with cartpole() as trainer:
        trainer.save(tmp_path / "checkpoint")
        expected = rest(trainer)
    with cartpole() as trainer:
        trainer.run(5)  # a checkpoint of the start brings any trainer back to the start
        assert trainer.load(tmp_path / "checkpoint") == 0
        assert_same(rest(trainer), expected)


def test_a_trainer_goes_back(saved):
    with cartpole() as trainer:
        trainer.load(saved)
        expected = rest(trainer)
        trainer.load(saved)
        assert_same(rest(trainer), expected)


def test_a_reset_that_is_due_stays_due(tmp_path):
    results = []
    with cartpole() as trainer:
        trainer.run(13)
        trainer.reset()
        trainer.save(tmp_path / "checkpoint")
        results.append(rest(trainer))
    with cartpole() as trainer:
        assert trainer.load(tmp_path / "checkpoint") == 14
        assert trainer._timestep == 0
        results.append(rest(trainer))
    assert_same(results[1], results[0])


def test_episodes_and_metrics_go_on(tmp_path):
    results = []
    with cartpole() as trainer:
        trainer.collect_metrics()
        trainer.run(7)
        trainer.eval()
        trainer.run(6)
        trainer.save(tmp_path / "checkpoint")
        trainer.run(30)
        results.append(trainer.collect_metrics())
    with cartpole() as trainer:
        trainer.load(tmp_path / "checkpoint")
        trainer.run(30)
        results.append(trainer.collect_metrics())
    first, second = ({tag: value for tag, value in each.items() if "time" not in tag} for (each,) in results)
    assert "Episode / Return (mean)" in first
    assert first == second


def test_without_a_seed_the_global_generators_are_kept(tmp_path):
    """A build draws entropy, so both trainers are restored from the checkpoint."""
    results = []
    for seed in (1, 2, 3):
        for module in (random, np.random):
            module.seed(seed)
        torch.manual_seed(seed)
        with cartpole(seed=None) as trainer:
            trainer.run(11)
            if seed == 1:
                random.gauss(0, 1)
                np.random.standard_normal()
                trainer.save(tmp_path / "checkpoint")
            trainer.load(tmp_path / "checkpoint")
            results.append([rest(trainer), random.gauss(0, 1), np.random.standard_normal(2).tolist()])
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_other_versions_are_told(saved, caplog, monkeypatch):
    now = versions()
    monkeypatch.setattr("trainer.worker_state.versions", lambda: now | {"torch": "99"})
    with cartpole() as trainer:
        trainer.load(saved)
    assert f"was saved with torch {now['torch']} (now 99): numbers may differ" in caplog.text


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "scopes": ({"agents": [make_ppo, make_ppo]}, r"has scopes \[\[0, 2\]\]; expected \[\[0, 1\], \[1, 2\]\]"),
    "rows": ({"num_envs": 3}, r"has scopes \[\[0, 2\]\]; expected \[\[0, 3\]\]"),
    "seed": ({"seed": 4}, "has seed 3; expected 4"),
    "no seed": ({"seed": None}, "has seed 3; expected None"),
    "agent": ({"agents": partial(NoisyAgent, "torch")}, r"has agents \['PPO'\]; expected \['NoisyAgent'\]"),
    "networks": ({"agents": partial(make_ppo, hidden_sizes=(4,))}, "does not fit the agent of scope 0, PPO: "),
    "rollout": ({"agents": partial(make_ppo, rollouts=16)}, "does not fit the agent of scope 0, PPO: "),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_checkpoint_of_another_trainer_is_refused_and_changes_nothing(saved, change):
    options, message = CHANGES[change]
    with cartpole(**options) as trainer:
        if change != "agent":
            trainer.run(3)
        before = held(trainer)
        with pytest.raises(CheckpointError, match=message):
            trainer.load(saved, allow_pickle=True)
        assert_same(held(trainer), before)


def test_other_spaces_are_refused_and_change_nothing(saved):
    env = gymnasium.make("CartPole-v1")
    space = gymnasium.spaces.Box(-9, 9, (4,), np.float32)

    def build(num_envs: int, first_env: int) -> Any:
        return [
            gymnasium.wrappers.TransformObservation(gymnasium.make("CartPole-v1"), lambda x: x, space)
            for _ in range(num_envs)
        ]

    def agent(scope: Scope) -> PPO:
        return PPO(observation_space=space, action_space=env.action_space, num_envs=scope.num_envs, cfg=PPO_CFG)

    with StepTrainer(env=EnvFactory(build, num_envs=2), agents=agent, cfg=CFG, seed=3) as trainer:
        trainer.train()
        before = held(trainer)
        with pytest.raises(CheckpointError, match=r"the environments of the rows 0:2: .*it is for the spaces"):
            trainer.load(saved)
        assert_same(held(trainer), before)


def test_calls_in_the_wrong_state(saved, tmp_path):
    trainer = cartpole()
    for call in (partial(trainer.save, tmp_path / "other"), partial(trainer.load, saved)):
        steps = trainer.iterate(3)
        next(steps)
        with pytest.raises(LifecycleError, match="inside a loop over iterate"):
            call()
        steps.close()
    trainer.close()
    with pytest.raises(LifecycleError, match=r"load\(\) after close\(\)"):
        trainer.load(saved)
    assert not (tmp_path / "other").exists()


def test_an_agent_that_only_pickle_can_hold_asks_for_it(tmp_path):
    results = []
    agent = partial(NoisyAgent, "torch")
    with trainer_of(ForeignEnv(2), agent, seed=1) as trainer:
        trainer.run(3)
        with pytest.raises(
            CheckpointError, match=r"the agent of scope 0, NoisyAgent, has no snapshot\(\).*allow_pickle=True"
        ):
            trainer.save(tmp_path / "checkpoint")
        assert not (tmp_path / "checkpoint").exists()
        trainer.save(tmp_path / "checkpoint", allow_pickle=True)
        trainer.train()
        results.append(trainer.agents[0].drawn)
    instance = NoisyAgent("torch")
    with trainer_of(ForeignEnv(2), instance, seed=1) as trainer:
        with pytest.raises(CheckpointError, match="allow_pickle=True"):
            trainer.load(tmp_path / "checkpoint")
        trainer.load(tmp_path / "checkpoint", allow_pickle=True)
        trainer.train()
        results.append(instance.drawn)  # the user's own object
    assert_same(results[1], results[0])


class Locked(NullAgent):
    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self.lock = threading.Lock()


def test_an_agent_that_nothing_can_hold_is_named_at_the_start(tmp_path, caplog):
    with trainer_of(agents=Locked) as trainer:
        assert "the state of Locked cannot be saved" in caplog.text
        assert "cannot pickle '_thread.lock' object" in caplog.text
        with pytest.raises(CheckpointError, match=r"the agent of scope 0, Locked, .*pickle cannot keep"):
            trainer.save(tmp_path / "checkpoint", allow_pickle=True)
        assert list(tmp_path.iterdir()) == []
        trainer.train()


@pytest.mark.parametrize(("make", "mode"), [(skrl_ppo, "local"), (skrl_sac, "local"), (skrl_sac, "ray")])
def test_skrls_agents_go_on_with_pickle(ray_cluster, make, mode, tmp_path):
    id = "CartPole-v1" if make is skrl_ppo else "Pendulum-v1"
    results = []

    def agent(scope: Scope) -> Any:
        if make is skrl_ppo:
            return skrl_ppo(scope.num_envs)
        env = gymnasium.make(id)  # SAC samples its action space at random until after the checkpoint
        return skrl_sac(scope.num_envs, env.observation_space, env.action_space, random_timesteps=25)

    def trainer() -> Any:
        env = make_env(id, num_envs=2, framework="torch")
        cfg: Any = {**CFG, "timesteps": 100}
        return StepTrainer(env=env, agents=agent, cfg=cfg, seed=3, orchestrator=mode)

    with trainer() as one:
        one.run(21)
        one.save(tmp_path / "checkpoint", allow_pickle=True)
        results.append(rest(one, 40))
    with trainer() as other:
        other.load(tmp_path / "checkpoint", allow_pickle=True)
        results.append(rest(other, 40))
    assert_same(results[1], results[0])


class Told(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        return *self.env.step(action)[:4], {"lock": [threading.Lock()], "number": 7}


def test_infos_that_are_not_plain_are_left_out_with_a_word(tmp_path, caplog):
    env = EnvFactory(lambda num_envs, _: [Told(gymnasium.make("CartPole-v1")) for _ in range(num_envs)], num_envs=2)
    with StepTrainer(env=env, agents=make_ppo, cfg=CFG, seed=3) as trainer:
        trainer.run(3)
        trainer.save(tmp_path / "checkpoint")
        trainer.load(tmp_path / "checkpoint")
        session: Any = trainer._session
        assert list(session._runners[0]._infos) == ["number", "_number"]
    assert "a snapshot leaves out what the infos hold at ['lock']" in caplog.text


def test_what_cannot_be_kept_at_all_is_truncated_with_its_last_observation(tmp_path, caplog):
    make = partial(gymnasium.make, "CartPole-v1")

    def trainer() -> Any:
        env = EnvFactory(lambda num_envs, _: AsyncVectorEnv([make] * num_envs), num_envs=2)
        return StepTrainer(env=env, agents=make_ppo, cfg=CFG, seed=3)

    with trainer() as one:
        last = [copied_outputs(one.train()) for _ in range(5)][-1][0]
        with caplog.at_level(logging.WARNING, logger="lockstep"):
            one.save(tmp_path / "checkpoint")
        assert "AsyncVectorEnv" in caplog.text
    results = []
    for again in (False, True):
        with trainer() as other:
            other.load(tmp_path / "checkpoint")
            if again:  # what was lost stays lost
                other.save(tmp_path / "checkpoint")
                other.load(tmp_path / "checkpoint")
            observations, rewards, terminated, truncated, infos = copied_outputs(other.train())
            assert_same(infos["final_obs"], last)
            assert infos["_final_obs"].all()
            assert truncated.all()
            assert not terminated.any()
            assert not rewards.any()
            assert (np.abs(observations) <= 0.05).all()  # CartPole's first observations
            results.append([observations, rest(other)])
    assert_same(results[1], results[0])


class LockedEnv(ForeignEnv):
    """One whose episodes nothing can keep."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.lock = threading.Lock()


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_foreign_wrapper_is_truncated(tmp_path, num_envs):
    """With one environment, the trainer itself resets it after the end, as after any other."""
    with trainer_of(LockedEnv(num_envs), RecordingAgent, seed=1) as trainer:
        trainer.run(2)
        trainer.save(tmp_path / "checkpoint", allow_pickle=True)
    env = LockedEnv(num_envs)
    with trainer_of(env, RecordingAgent, seed=1) as trainer:
        trainer.load(tmp_path / "checkpoint", allow_pickle=True)
        observations, rewards, terminated, truncated, _ = copied_outputs(trainer.train())
        assert (observations == (2 if num_envs == 1 else 0)).all()
        assert truncated.all()
        assert not terminated.any()
        assert not rewards.any()
        trainer.train()
        last, first = trainer.agents[0].records()[-2:]
        assert (last["observations"] == 2).all()
        assert (last["next_observations"] == 2).all()
        assert (first["observations"] == 0).all()
        assert (first["next_observations"] == 1).all()
    assert env.calls == ["reset", "step", "close"]


def test_an_interrupt_while_an_agent_is_put_back_ends_the_trainer(saved, tmp_path, monkeypatch):
    load, loads = AgentRunner._load, []

    def interrupted(self: AgentRunner, state: Any, **options: Any) -> None:
        loads.append(state)
        if len(loads) == 2:
            raise KeyboardInterrupt
        load(self, state, **options)

    with cartpole() as trainer:
        monkeypatch.setattr(AgentRunner, "_load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.load(saved)
        assert len(loads) == 2
        with pytest.raises(LifecycleError):
            trainer.save(tmp_path / "half")


def test_a_worker_that_fails_while_it_is_restored_ends_the_trainer(saved, monkeypatch):
    with cartpole() as trainer:
        monkeypatch.setattr(AgentRunner, "restore", lambda _: pickle.loads(b"nonsense"))
        with pytest.raises(WorkerError):
            trainer.load(saved)
        with pytest.raises(LifecycleError):
            trainer.train()
