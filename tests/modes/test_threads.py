"""Only `num_threads` affects results: neither the user's number of threads nor a worker's number of CPUs does."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator import LocalOrchestrator
from orchestrator.ray import RayOrchestrator
from tests.support.agents import copied
from tests.support.envs import NoisyEnv
from tests.support.parity import assert_same, ppo, run
from workers.envs import EnvFactory, wrap_env
from workers.frameworks import load_framework
from workers.threads import HeldThreads
from workers.types import Scope

NUM_ENVS = 512
WIDTH = 17


class DotEnv(NoisyEnv):
    """Environment whose rewards come from a long dot product, which BLAS divides among its threads."""

    NUMBERS = np.random.default_rng(7).standard_normal(100_003)

    def step(self, action: Any) -> Any:
        observation, _, *others = super().step(action)
        last_bits = (self.NUMBERS @ self.NUMBERS[::-1].copy()) * 1e9 % 1.0  # rewards are float32
        return observation, float(last_bits), *others


def agent(scope: Scope) -> Any:
    env = NoisyEnv(WIDTH, False)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    return ppo("torch")(**spaces, num_envs=scope.num_envs, cfg={"rollouts": 8, "hidden_sizes": (256, 256)})


def build(num_envs: int, first_env: int) -> list[NoisyEnv]:
    return [(DotEnv if first_env + i == 0 else NoisyEnv)(WIDTH, False) for i in range(num_envs)]


def trained(orchestrator: Any, *, shared: bool = False, user: int = 2) -> Any:
    """Return outputs and weights of 17 steps with two updates, in a process in which the user has `user` threads."""
    env: Any = wrap_env(build(NUM_ENVS, 0), framework="torch") if shared else EnvFactory(build, num_envs=NUM_ENVS)
    with HeldThreads(load_framework("torch"), user):
        outputs, agents = run(17, env=env, agents=[partial(agent)], orchestrator=orchestrator, seed=3)
        assert torch.get_num_threads() == user
    return outputs, [copied(one.state_dict()) for one in agents]


@pytest.fixture(scope="module")
def local() -> Any:
    return trained(LocalOrchestrator(), user=1)


def test_the_users_threads_change_nothing(local: Any):
    assert_same(trained("local", user=2), local)


def test_nor_do_the_cpus_of_a_worker(local: Any, ray_cluster: None):
    assert_same(trained(RayOrchestrator(num_cpus=2)), local)


def test_nor_do_those_of_the_driver_where_environments_are_shared(local: Any, ray_cluster: None):
    assert_same(trained(RayOrchestrator(num_cpus=2), shared=True), local)


def test_two_threads_are_equal_in_every_mode_and_differ_from_one(local: Any, ray_cluster: None):
    two = trained(LocalOrchestrator(num_threads=2), user=1)
    assert_same(trained(RayOrchestrator(num_threads=2)), two)
    with pytest.raises(AssertionError):
        assert_same(two[1], local[1])
