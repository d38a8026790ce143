"""Runs of teams with the command: the same lines locally and in Ray, metrics of each agent, evaluation, refusals."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.support.agents import copied
from tests.support.processes import ROOT
from trainer.command.cli import main
from trainer.command.run import prepare
from trainer.command.run_config import load_config
from workers.agents.independent import IndependentAgents
from workers.errors import ConfigError
from workers.types import Scope

TEAMS = "tests.support.multi_agent_envs"
CONFIG: dict[str, Any] = {
    "env": {"factory": f"{TEAMS}:build_game", "num_envs": 5, "states": "joint"},
    "agents": [
        {"agent": "mappo", "scope": 2, "groups": {"pair": ["anna", "cleo"]}, "cfg": {"rollouts": 16}},
        {"agent": "ippo", "scope": 3, "cfg": {"rollouts": 16, "hidden_sizes": [8]}},
    ],
    "trainer": {"timesteps": 60, "headless": True, "disable_progressbar": True, "environment_info": "moves"},
    "evaluation": {"episodes": 6},
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    return path


def returns(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("scope ")]


def test_two_teams(config, tmp_path, capsys, ray_cluster):
    lines = {}
    for kind in ("local", "ray"):
        changes = [f"logging.directory={tmp_path / kind}", f"orchestrator.kind={kind}"]
        assert main(["train", str(config), "--set", *changes]) == 0
        lines[kind] = returns(capsys)
    assert lines["local"] == lines["ray"]
    assert main(["eval", str(tmp_path / "local")]) == 0
    assert returns(capsys) == lines["local"]
    number = r"-?\d+(\.\d+)?"
    of_each = "".join(rf", {name} {number}" for name in ("anna", "bert", "cleo"))
    for index, line in enumerate(lines["local"]):
        told = rf"scope {index}: team return {number} ± {number} \(6 episodes of length {number}\)"
        assert re.fullmatch(rf"{told}{of_each}, weights [0-9a-f]{{8}}", line), line
    results = json.loads((tmp_path / "local" / "evaluation.json").read_text(encoding="utf-8"))
    # game `row` has 5 + row % 3 moves; the rewards of each move are known (see `CountingGame`)
    assert sorted(results[0]["lengths"]) == [5, 5, 5, 6, 6, 6]
    assert sorted(results[1]["lengths"]) == [5, 5, 6, 6, 7, 7]
    for result in results:
        assert result["agents"].keys() == {"anna", "bert", "cleo"}
        assert all(len(each) == 6 for each in result["agents"].values())
        assert sum(result["returns"]) == pytest.approx(sum(map(sum, result["agents"].values())))
    with (tmp_path / "ray" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        tags = {(row["scope"], row["tag"]) for row in csv.DictReader(file)}
    assert {("0", "Loss / pair / Value loss"), ("1", "Loss / anna / Value loss")} <= tags
    assert {("1", "Episode / bert / Return (mean)"), ("1", "Episode / Return (mean)")} <= tags


def test_what_the_agents_are_made_of(config):
    run = prepare(load_config(config.read_text(encoding="utf-8")))
    mappo, ippo = (factory(Scope(index, 0, 2, 7)) for index, factory in enumerate(run.agents))
    run.close()
    assert isinstance(mappo, IndependentAgents)
    assert mappo.groups == {"pair": ("anna", "cleo"), "bert": ("bert",)}
    assert mappo.members["pair"].state_space.shape == (24,)
    assert ippo.members["anna"].state_space is None
    assert copied(ippo.state_dict())["anna"]["models"]["value.0.weight"].shape == (8, 8)
    assert np.isfinite(copied(mappo.state_dict())["bert"]["models"]["value.0.weight"]).all()


def test_a_factory_of_ones_own_is_given_what_it_names(config):
    changes = [f"agents=[{{agent: '{__name__}:make_team', cfg: {{units: 4}}}}]"]
    run = prepare(load_config(config.read_text(encoding="utf-8"), changes))
    team = run.agents[0](Scope(0, 0, 5, 7))
    run.close()
    assert team.num_envs == 5
    assert team.members["anna"].cfg.hidden_sizes == (4,)


def make_team(possible_agents: Any, observation_spaces: Any, action_spaces: Any, num_envs: int, units: int) -> Any:
    from functools import partial

    from workers.agents.torch import PPO

    spaces = {"observation_spaces": observation_spaces, "action_spaces": action_spaces}
    member = partial(PPO, cfg={"hidden_sizes": (units,)})
    return IndependentAgents(member, possible_agents=possible_agents, **spaces, num_envs=num_envs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "agents.0={agent: ppo, scope: 2}",
            "agents.0.agent is 'ppo'; expected 'ippo' or 'mappo' for an environment with",
        ),
        (
            "env={id: CartPole-v1, num_envs: 5}",
            "agents.0.agent is 'mappo'; expected 'ppo' for an environment with a single",
        ),
        ("env.states=own", "agents.0.agent is 'mappo', but the environment has no states; set env.states to joint"),
        ("env.states=all", "env.states is 'all'; expected 'own', 'joint' or 'none'"),
        ("agents.0.groups={a: [dora]}", "agents.0.groups: groups contain 'dora'; expected only agents from"),
        (
            "agents.1={agent: ppo, scope: 3, groups: {a: [b]}}",
            "agents.1.groups is {'a': ['b']}; expected none for 'ppo'",
        ),
        ("agents.0.cfg.rollouts=0", "agents.0.cfg: PPOCfg.rollouts is 0; expected an integer >= 1"),
        ("env.id=nowhere.at_all_v0", "env.id is 'nowhere.at_all_v0' and env.factory"),
    ],
)
def test_what_does_not_fit_is_refused(config, override, message):
    with pytest.raises(ConfigError) as caught:
        prepare(load_config(config.read_text(encoding="utf-8"), [override])).close()
    assert message in str(caught.value)
