"""A type checker on a user's script: it knows the framework's outputs, and finds mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from typing import get_type_hints

import pytest

from tests.support.processes import ROOT
from trainer.config import StepTrainerCfg, StepTrainerCfgDict

SCRIPT = """
from functools import partial
import {module}
from orchestrator import LocalOrchestrator
from trainer.{framework} import StepTrainer, StepTrainerCfg
from workers.agents.{framework} import PPO
from workers.agents.independent import IndependentAgents
from workers.envs import make_env
from workers.types import Scope

env = make_env("CartPole-v1", num_envs=8, framework="{framework}")

def agent(scope: Scope) -> PPO:
    return PPO(observation_space=env.observation_space, action_space=env.action_space, num_envs=scope.num_envs)

with StepTrainer(env=env, agents=[agent, agent], cfg={{"timesteps": 10, "headless": True}}, seed=0) as trainer:
    observations, rewards, terminated, truncated, infos = trainer.train()
    first: {array} = trainer.run(3)[0]
    for outputs in trainer.iterate(3):
        reveal_type(outputs)

def team(scope: Scope) -> IndependentAgents:
    spaces = dict(possible_agents=["a"], observation_spaces=env.observation_spaces, action_spaces=env.action_spaces)
    return IndependentAgents(partial(PPO, cfg={{"rollouts": 8}}), **spaces, num_envs=scope.num_envs)

cfg = StepTrainerCfg(timesteps=10)
teams = StepTrainer[dict[str, {array}]](env=env, agents=team, cfg=cfg, orchestrator=LocalOrchestrator(num_threads=2))
reveal_type(teams.eval()[1])
"""

SLIPS = """
from trainer.torch import StepTrainer
StepTrainer(env=None, agents=None, cfg={"timestep": 3})
StepTrainer(env=None, agents=None, cfg={"timesteps": "3"})
StepTrainer(env=None, agents=None, orchestrator="slurm")
StepTrainer(env=None, agents=None).train()[0].no_such_member
"""

ARRAYS = {
    "torch": ("torch", "torch.Tensor"),
    "jax": ("jax", "jax.Array"),
    "warp": ("warp as wp", "wp.array[float]"),
}
"""The import of a script for each framework, and the type of its arrays."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The messages of mypy about each script, by script name."""
    folder = tmp_path_factory.mktemp("scripts")
    scripts = {"slips": SLIPS}
    for name, (module, array) in ARRAYS.items():
        scripts[name] = SCRIPT.format(framework=name, module=module, array=array)
    for name, text in scripts.items():
        (folder / f"user_{name}.py").write_text(text, encoding="utf-8")
    # silent: imported modules are checked with the project's own configuration
    options = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={ROOT / '.mypy_cache' / 'users'}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *map(str, sorted(folder.glob("*.py")))],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stderr == ""
    lines = [match.groups() for match in re.finditer(r"^user_(\w+)\.py:\d+: (.*)$", done.stdout, re.MULTILINE)]
    assert lines, done.stdout
    return {name: [line for owner, line in lines if owner == name] for name in scripts}


def test_outputs_are_the_frameworks(framework: str, said: dict[str, list[str]]):
    array = ARRAYS[framework][1].rpartition(".")[2].partition("[")[0]
    short = [re.sub(r"[\w.]+\.(\w+)(\[\w+, int\])?", r"\1", line) for line in said[framework]]
    assert short == [
        f'note: Revealed type is "tuple[{array}, {array}, {array}, {array}, dict[str, Any]]"',
        f'note: Revealed type is "dict[str, {array}]"',
    ]


def test_slips_are_found(said: dict[str, list[str]]):
    wrong_cfg = 'expected "StepTrainerCfg | StepTrainerCfgDict"  [arg-type]'
    assert len(said["slips"]) == 4
    for line, end in zip(said["slips"], (wrong_cfg, wrong_cfg, "[arg-type]", "[attr-defined]"), strict=True):
        assert line.startswith("error: ")
        assert line.endswith(end)


def test_the_dictionary_has_the_fields_of_the_dataclass():
    hints = get_type_hints(StepTrainerCfg)
    assert get_type_hints(StepTrainerCfgDict) == {field.name: hints[field.name] for field in fields(StepTrainerCfg)}
    assert StepTrainerCfgDict.__required_keys__ == frozenset()
