"""GPUs of Ray: each worker sees its own only. Ray believes what it is told, so this needs none."""

from __future__ import annotations

import json

from tests.support.processes import python

PROGRAM = """
import json, os, ray
from orchestrator.ray import RayOrchestrator
from tests.support.agents import NullAgent
from tests.support.envs import CountingEnv
from trainer.torch import StepTrainer
from workers.envs import EnvFactory

class Agent(NullAgent):
    def __init__(self, scope):
        super().__init__(scope)
        self.visible = os.environ.get("CUDA_VISIBLE_DEVICES")

ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
cfg = {"timesteps": 10, "headless": True, "disable_progressbar": True}
env = EnvFactory(lambda count, first: [CountingEnv(first + i) for i in range(count)], num_envs=3)
orchestrator = RayOrchestrator(num_gpus=[1, 0.5, 0.5])
with StepTrainer(env=env, agents=[Agent] * 3, cfg=cfg, orchestrator=orchestrator) as trainer:
    trainer.train()
    print(json.dumps([agent.visible for agent in trainer.agents]))
ray.shutdown()
"""


def test_each_worker_sees_its_own_gpu():
    done = python("-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    whole, *halves = json.loads(done.stdout.splitlines()[-1])
    assert whole in ("0", "1")
    assert halves == [str(1 - int(whole))] * 2  # they share the other one
