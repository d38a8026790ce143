"""Workers that are lost after their agent was cloned or got other hyper-parameters: both are played back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

from orchestrator.ray.recovery import _size
from orchestrator.ray.requests import Request
from tests.ray.test_recovery import MODES, Forgetful
from tests.support.parity import assert_same, copied_outputs
from tests.support.recovering import Walk, kill, trainer_of
from tests.support.schedule import full_or_short, only_long
from workers.agents.warp import PPO
from workers.envs import EnvFactory
from workers.errors import AgentError, ConfigError
from workers.types import Scope

pytestmark = pytest.mark.usefixtures("ray_cluster")


def make_ppo(scope: Scope, *, width: int = 3, **cfg: Any) -> PPO:
    """Build a small agent with the learning rate of its scope."""
    return PPO(
        observation_space=Box(-np.inf, np.inf, (width,), np.float32),
        action_space=Walk.action_space if width == 3 else Forgetful.action_space,
        num_envs=scope.num_envs,
        cfg={
            "rollouts": 4,
            "mini_batches": 1,
            "hidden_sizes": (4,),
            "learning_rate": 1e-3 * (1 + scope.index),
            "action_bounds": "none",
            **cfg,
        },
    )


def test_they_are_played_back():
    def story(trainer: Any, strike: Callable[..., None]) -> list[Any]:
        seen: list[Any] = []

        def go_on(steps: int) -> None:
            seen.extend(copied_outputs(trainer.train()) for _ in range(steps))
            seen.extend((trainer.agent_files(), trainer.hyperparameters()))

        go_on(6)
        trainer.clone(0, [1])
        strike(1)  # the next request is another clone
        trainer.clone(1, [0])
        trainer.set_hyperparameters(0, {"discount_factor": 0.5, "learning_rate": 0.125})
        strike(0)
        go_on(6)
        return seen

    with trainer_of(make_ppo, mode="local") as trainer:
        expected = story(trainer, lambda *_: None)
    assert [values["discount_factor"] for values in expected[-1]] == [0.5, 0.99]
    for mode in full_or_short(MODES, ["sharded"]):
        with trainer_of(make_ppo, mode=mode, snapshot_every=1000) as trainer:
            assert_same(story(trainer, partial(kill, trainer)), expected)
            assert [event.scopes for event in trainer.recoveries] == [(1,), (0,)]


@only_long
def test_what_was_refused_is_not_played_back():
    odd = partial(make_ppo, hidden_sizes=(5,))
    with trainer_of([make_ppo, odd], snapshot_every=1000) as trainer:
        trainer.train()
        with pytest.raises(AgentError, match=r"scope 1 cannot take over .* has shape \(4, 3\); expected \(5, 3\)"):
            trainer.clone(0, [1])
        with pytest.raises(ConfigError, match=r"PPOCfg.ratio_clip is 0.0; expected a number > 0 \[on "):
            trainer.set_hyperparameters(1, {"ratio_clip": 0.0})
        expected = trainer.agent_files(), trainer.hyperparameters()
        kill(trainer, 1)
        assert_same((trainer.agent_files(), trainer.hyperparameters()), expected)
        trainer.train()


@only_long
def test_a_worker_whose_episodes_cannot_go_on_has_them_too(caplog: pytest.LogCaptureFixture):
    env = EnvFactory(lambda n, first: [Forgetful() for _ in range(n)], num_envs=4)
    with trainer_of(partial(make_ppo, width=1), env, snapshot_every=3) as trainer:
        trainer.run(5)
        trainer.clone(0, [1])
        trainer.set_hyperparameters(1, {"discount_factor": 0.5})
        kill(trainer, 1)
        source, target = trainer.agent_files()
        assert source == target
        assert [values["discount_factor"] for values in trainer.hyperparameters()] == [0.99, 0.5]
        assert "scope 1 goes on from its snapshot" in caplog.text


def test_the_memory_that_a_request_takes_counts_one_file_for_many_workers_once():
    file = ("state.safetensors", b"1234567")
    assert _size(Request(1, "load", (), [None, file, file])) == 7
    assert _size(Request(2, "set_hyperparameters", (), [None, {"a": 1.0}])) == 0
