"""Runs that are saved at some timestep and go on in a fresh process: the cases, and what that process runs.

    python -m tests.support.resumed CASE FRAMEWORK MODES RAY_ADDRESS FOLDER

loads ``FOLDER/checkpoint`` in each mode, does the rest of the iterations, and pickles what it saw.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.support.parity import CFG, copied_outputs, ppo, step_trainer
from tests.support.processes import PATIENCE, ROOT
from workers.agents.independent import IndependentAgents
from workers.envs import EnvFactory
from workers.envs.making import build_rows
from workers.envs.registry import make_multi_agent
from workers.types import Scope

SCOPES = (2, 3)
MODES = ("local", "sharded", "shared")
PPO_CFG: dict[str, Any] = {
    "rollouts": 16,
    "learning_epochs": 2,
    "mini_batches": 2,
    "hidden_sizes": (16,),
    "learning_rate": 1e-3,
}


class Case(NamedTuple):
    """Environments, and whether they can be loaded with other slices than those with which they were saved.

    Attributes:
        build: Builds rows for a framework: ``build(framework, num_envs, first_env)``.
        by_row: Whether each row is stored by itself.
        steps: Number of iterations.
    """

    build: Callable[[str, int, int], Any]
    by_row: bool = True
    steps: int = 60


def _copies(id: str, kwargs: dict[str, Any], framework: str, num_envs: int, first_env: int) -> Any:
    return [gymnasium.make(id, **kwargs) for _ in range(num_envs)]


def _team(framework: str, num_envs: int, first_env: int) -> Any:
    kwargs = {"max_cycles": 60, "spawn_delay": 1, "max_zombies": 20, "line_death": True}
    return [make_multi_agent("butterfly/knights_archers_zombies_v11", kwargs) for _ in range(num_envs)]


def _next_step(framework: str, num_envs: int, first_env: int) -> Any:
    make = partial(gymnasium.make, "CartPole-v1", max_episode_steps=15)
    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


def _device(framework: str, num_envs: int, first_env: int) -> Any:
    from tests.support.device_envs import ENVS

    return ENVS[framework](num_envs, first_env)


CASES: dict[str, Case] = {
    "CartPole": Case(partial(_copies, "CartPole-v1", {})),
    "Pendulum": Case(partial(_copies, "Pendulum-v1", {"max_episode_steps": 19})),
    "HalfCheetah": Case(partial(_copies, "HalfCheetah-v5", {"max_episode_steps": 19})),
    "team": Case(_team, steps=130),
    "NEXT_STEP": Case(_next_step),
    "device": Case(_device, by_row=False),
}


def make_agent(framework: str, spaces: dict[str, Any], scope: Scope) -> Any:
    """Build the agent of a scope. It imports no environment, which might draw random numbers of the agent."""
    make = partial(ppo(framework), cfg=PPO_CFG)
    if "possible_agents" in spaces:
        groups = {"archers": ["archer_0", "archer_1"], "knights": ["knight_0", "knight_1"]}
        return IndependentAgents(make, **spaces, num_envs=scope.num_envs, groups=groups)
    return make(**spaces, num_envs=scope.num_envs)


def spaces_of(env: Any) -> dict[str, Any]:
    """Return what an agent must know of wrapped environments."""
    names = ("possible_agents", "observation_spaces", "action_spaces")
    return {
        name: getattr(env, name)
        for name in (names if hasattr(env, "possible_agents") else ("observation_space", "action_space"))
    }


def build_trainer(case: str, framework: str, mode: str, address: str | None = None) -> Any:
    """Build a trainer, with its environments in this process or in Ray."""
    num_envs, env = sum(SCOPES), EnvFactory(partial(CASES[case].build, framework), num_envs=sum(SCOPES))
    orchestrator: Any = "local"
    if mode != "local":
        from orchestrator.ray import RayOrchestrator

        orchestrator = RayOrchestrator(address=address)
    spaces = spaces_of(build_rows(env, 1, 0, framework=framework, seed=None))
    return step_trainer(framework)(
        env=build_rows(env, num_envs, 0, framework=framework, seed=None) if mode == "shared" else env,
        agents=[partial(make_agent, framework, spaces)] * len(SCOPES),
        scopes=list(SCOPES),
        cfg={**CFG, "timesteps": CASES[case].steps},
        orchestrator=orchestrator,
        seed=3,
    )


def iterations(trainer: Any, start: int, stop: int) -> Iterator[Any]:
    """Yield the outputs of iterations, one in eleven of them an evaluation."""
    for timestep in range(start, stop):
        step = trainer.eval if timestep % 11 == 10 else trainer.train
        yield copied_outputs(step(timestep=timestep))


def ending(trainer: Any, start: int, stop: int) -> tuple[list[Any], list[Any], list[dict[str, float]]]:
    """Do the rest of the iterations; return their outputs, the agents' files, and the metrics, with times of 0."""
    outputs = list(iterations(trainer, start, stop))
    metrics = [
        {tag: 0.0 if "time" in tag else value for tag, value in each.items()} for each in trainer.collect_metrics()
    ]
    return outputs, trainer.agent_files(), metrics


def in_a_fresh_process(case: str, framework: str, modes: list[str], address: str, folder: Path) -> dict[str, Any]:
    """Return the `ending` of each mode from ``folder/checkpoint``."""
    arguments = [case, framework, ",".join(modes), address, str(folder)]
    subprocess.run(
        [sys.executable, "-m", "tests.support.resumed", *arguments], cwd=ROOT, check=True, timeout=5 * PATIENCE
    )
    endings: dict[str, Any] = pickle.loads((folder / "endings").read_bytes())
    return endings


def main(case: str, framework: str, modes: str, address: str, folder: str) -> None:
    """Load the checkpoint in each mode, and do the rest of the iterations."""
    endings = {}
    for mode in modes.split(","):
        with build_trainer(case, framework, mode, address) as trainer:
            endings[mode] = ending(trainer, trainer.load(f"{folder}/checkpoint"), CASES[case].steps)
    Path(folder, "endings").write_bytes(pickle.dumps(endings))


if __name__ == "__main__":
    main(*sys.argv[1:])
