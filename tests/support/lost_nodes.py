"""A run on a cluster of several nodes of this machine, of which some are lost.

    python -m tests.support.lost_nodes HOW

HOW is ``killed`` (a node's raylet, and with it its workers; another node has room), ``late`` (the same, but the node
with room joins later) or ``frozen`` (a node's processes are stopped: nothing answers, and Ray does not know). It prints
what the trainer says about its recoveries, and ends with an error unless all numbers are those of local mode.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
import threading
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from orchestrator.ray import RayOrchestrator
from tests.support.parity import CFG, assert_same, copied_outputs, ppo, step_trainer
from tests.support.processes import still_alive
from workers.envs import make_env

STEPS = 30


def _run(orchestrator: Any, strike: Any) -> tuple[list[Any], Any]:
    env = make_env("CartPole-v1", num_envs=6, framework="torch")
    make = ppo("torch")
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    agents = [lambda scope: make(**spaces, num_envs=scope.num_envs, cfg={"rollouts": 8})] * 2
    trainer = step_trainer("torch")(
        env=env, agents=agents, cfg={**CFG, "timesteps": STEPS}, orchestrator=orchestrator, seed=3
    )
    with trainer:
        outputs = []
        for timestep in range(STEPS):
            if timestep == 20:
                strike(trainer)
            outputs.append(copied_outputs(trainer.train(timestep=timestep)))
        return outputs, (trainer.agent_files(), list(trainer.recoveries))


def main(how: str) -> None:
    """Run on the cluster, and in this process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    expected, (files, _) = _run("local", lambda trainer: None)
    cluster = Cluster(shutdown_at_exit=False)  # else nodes cannot be added on a thread
    cluster.add_node(num_cpus=0, include_dashboard=False)
    nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1))}
    if how != "late":
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    stopped: list[psutil.Process] = []

    def strike(trainer: Any) -> None:
        lost = trainer._session._recovery._team.crew.nodes[1]
        node = nodes.get(lost) or next(one for one in cluster.list_all_nodes() if one.node_id == lost)
        if how == "frozen":
            (raylet,) = [one.process for one in node.all_processes["raylet"]]
            stopped.extend([psutil.Process(raylet.pid), *psutil.Process(raylet.pid).children(recursive=True)])
            for process in stopped:
                process.send_signal(signal.SIGSTOP)
            return
        (pid,) = re.findall(r"pid (\d+)", trainer._session.workers[1].node)
        worker = psutil.Process(int(pid))
        cluster.remove_node(node, allow_graceful=False)
        assert still_alive([worker]) == []
        if how == "late":
            threading.Timer(5.0, cluster.add_node, kwargs={"num_cpus": 1}).start()

    try:
        outputs, (files_there, events) = _run(
            RayOrchestrator(strategy="STRICT_SPREAD", hang_timeout=4, restart_timeout=200), strike
        )
    finally:
        for process in stopped:
            process.send_signal(signal.SIGKILL)
        ray.shutdown()
        cluster.shutdown()
    assert_same(outputs, expected)
    assert files_there == files
    print("RECOVERED", [(event.scopes, event.cause) for event in events], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
