"""A run whose Ray loses its head process.

    python -m tests.support.lost_head FOLDER

trains, kills Ray's head process (GCS), and saves a checkpoint to FOLDER when the trainer says that it is gone.
"""

from __future__ import annotations

import sys
from time import monotonic

import psutil
import ray

from orchestrator.ray import RayOrchestrator, head
from tests.support.agents import RecordingAgent
from tests.support.envs import counting_factory
from tests.support.parity import CFG, step_trainer
from tests.support.processes import PATIENCE
from workers.errors import ClusterError


def main(folder: str) -> None:
    """Lose the head."""
    vars(head).update(_INTERVAL=0.5, _SUSPECTED=2.0, _GIVEN_UP=4.0)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    env, cfg = counting_factory(4), {**CFG, "timesteps": 10}
    with step_trainer("warp")(env=env, agents=[RecordingAgent] * 2, cfg=cfg, orchestrator=RayOrchestrator()) as trainer:
        trainer.run(3)
        (gcs,) = [one for one in psutil.Process().children(recursive=True) if one.name() == "gcs_server"]
        gcs.kill()
        start, timestep = monotonic(), 3
        while True:
            try:
                trainer.train()  # the workers still answer
                timestep += 1
            except ClusterError as error:
                print(f"ClusterError: {error}")
                break
            assert monotonic() - start < PATIENCE
        trainer.save(folder, allow_pickle=True)
        print(f"saved after {timestep} timesteps", flush=True)
    print("closed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
