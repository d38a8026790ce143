"""`lockstep sweep`: its agents are those of a run with as many, and its table says which configuration is best."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.command import run
from trainer.command.run_config import AgentConfig, CallbackConfig, load_config
from trainer.command.sweep import expand, results_table
from trainer.evaluation import Evaluation
from workers.errors import ConfigError

AGENT: dict[str, Any] = {"agent": "ppo", "cfg": {"rollouts": 8, "hidden_sizes": [8]}}
CONFIG: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 2},
    "agents": [AGENT],
    "trainer": {"timesteps": 24, "headless": True, "disable_progressbar": True},
    "evaluation": {"episodes": 2},
}


def config_of(**changes: Any) -> Any:
    return load_config(yaml.safe_dump(CONFIG | changes))


def test_all_combinations_of_values_with_all_seeds():
    config = expand(config_of(), seeds=3, vary=["cfg.learning_rate=1e-3, 1e-4", "cfg.hidden_sizes=[8],[16, 16]"])
    assert config.env.num_envs == 24
    assert {agent.scope for agent in config.agents} == {2}
    assert [(agent.cfg["learning_rate"], agent.cfg["hidden_sizes"]) for agent in config.agents] == [
        *[(1e-3, [8])] * 3,
        *[(1e-3, [16, 16])] * 3,
        *[(1e-4, [8])] * 3,
        *[(1e-4, [16, 16])] * 3,
    ]
    assert all(agent.cfg["rollouts"] == 8 for agent in config.agents)
    equal = expand(config_of(agents=[AGENT, AGENT]), seeds=1, vary=[])
    assert (equal.env.num_envs, len(equal.agents)) == (1, 1)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ("cfg.learning_rate", "expected key=value,value"),
        ("cfg.learning_rate=", "expected key=value,value"),
        ("agent.name=1", "an agent has no 'agent' with keys of its own"),
        ("rollout=1", "unknown key; allowed keys: agent, scope"),
    ],
)
def test_refusals(vary: str, message: str):
    with pytest.raises(ConfigError, match=message):
        expand(config_of(), seeds=1, vary=[vary])
    with pytest.raises(ConfigError, match="--seeds is 0"):
        expand(config_of(), seeds=0, vary=[])
    other = {**AGENT, "cfg": {}}
    with pytest.raises(ConfigError, match="agents differ"):
        expand(config_of(agents=[AGENT, other]), seeds=1, vary=[])


def test_the_table():
    agents = [AgentConfig(cfg={"rollouts": n}) for n in (8, 8, 16, 16)]
    results = [Evaluation([mean, mean], [1, 1]) for mean in (1.0, 3.0, 10.0, 20.0)]
    run_config = config_of()

    def table(agents: list[AgentConfig], results: list[Evaluation], **changes: Any) -> list[str]:
        return list(results_table(replace(run_config, agents=agents, **changes), results))

    assert table(agents, results) == [
        "configuration    agents  return  worst         best          scopes",
        "cfg.rollouts=16  2       15 ± 5  10 (scope 2)  20 (scope 3)  2 to 3",
        "cfg.rollouts=8   2       2 ± 1   1 (scope 0)   3 (scope 1)   0 to 1",
    ]
    assert len(table(agents[1:3], results[1:3])) == 3
    assert table(agents, results, callbacks=[CallbackConfig(callback="population")]) == []
    assert table(agents[:2], results[:2]) == []
    secret = [AgentConfig(cfg={"api_key": f"SECRET{n}", "size": n}) for n in (8, 16, 32)]
    assert not any("SECRET" in line for line in table(secret, results[:3]))
    (_, only) = table(agents[:1] * 3, results[:3])
    assert only.split()[:6] == ["all", "agents", "3", "4.667", "±", "3.859"]


def test_a_sweep_is_a_run_with_its_agents(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, one, other = tmp_path / "one.yaml", tmp_path / "one", tmp_path / "other"
    path.write_text(yaml.safe_dump(CONFIG))
    arguments = ("--seeds", 2, "--vary", "cfg.learning_rate=1e-3,1e-5", "--set", f"logging.directory={one}")
    code, swept, _ = run(capsys, "sweep", path, *arguments)
    assert code == 0
    agents = [
        {**AGENT, "scope": 2, "cfg": {**AGENT["cfg"], "learning_rate": rate}} for rate in (1e-3, 1e-3, 1e-5, 1e-5)
    ]
    path.write_text(yaml.safe_dump({**CONFIG, "agents": agents, "env": {"id": "CartPole-v1", "num_envs": 8}}))
    code, trained, _ = run(capsys, "train", path, "--set", f"logging.directory={other}")
    assert code == 0
    results = [
        [line for line in lines if re.match(r"scope \d: return|cfg|configuration", line)] for lines in (swept, trained)
    ]
    assert results[0] == results[1]
    assert len(results[0]) == 7
    assert (
        len({line.rpartition(" ")[2] for line in results[0][:4]}) == 4
    )  # four agents with random streams of their own
    code, again, _ = run(capsys, "eval", one)
    assert again == results[0]
