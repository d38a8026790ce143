"""Policies of run directories: loaded in two lines, and exported, without the environment that trained them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Text
from onnxruntime import InferenceSession

from orchestrator.run_dir import RunDirectory
from tests.support.agents import copied
from tests.support.command import run
from tests.support.ppo import BOUNDED, CLOCK, flat, learned, seed_everything, to_framework
from tests.support.processes import python
from tests.support.schedule import FRAMEWORKS
from trainer.command.run import AgentFactory
from trainer.command.run_config import dump_config, load_config
from trainer.command.stored_spaces import write_spaces
from trainer.policies import export_onnx, load_agent
from workers.errors import AgentError, ConfigError
from workers.frameworks import load_framework
from workers.storage.agent_file import dump_agent
from workers.types import Scope

SPACES = {"observation_space": Box(-np.inf, np.inf, (2, 2)), "action_space": BOUNDED, "state_space": None}
GAME = Dict({"action_mask": MultiBinary(3), "board": Box(-1, 1, (2,))})
NAMES = ["anna", "bert", "cleo"]
TEAM = {
    "possible_agents": NAMES,
    "observation_spaces": {"anna": GAME, "bert": Box(-1, 1, (3,)), "cleo": GAME},
    "action_spaces": {"anna": Discrete(3, start=1), "bert": BOUNDED, "cleo": Discrete(3, start=1)},
    "state_spaces": dict.fromkeys(NAMES, Box(-1, 1, (4,))),
}
SINGLE: dict[str, Any] = {"agent": "ppo", "cfg": {"hidden_sizes": [8], "activation": "elu"}}
MAPPO: dict[str, Any] = {"agent": "mappo", "groups": {"pair": ["anna", "cleo"]}, "cfg": {"hidden_sizes": [8]}}
NOWHERE = {"factory": "no_such_module:build", "num_envs": 4}
CARTPOLE = {"id": "CartPole-v1", "num_envs": 4}
BATCH = np.random.default_rng(1).normal(size=(5, 2, 2)).astype(np.float32)


def store(
    folder: Path, agent: dict[str, Any], spaces: dict[str, Any], *, env: dict[str, Any] = NOWHERE, **config: Any
) -> Any:
    """Make a run directory as a run does, but for the spaces, and return its agent."""
    text = dump_config(load_config(yaml.safe_dump({"env": env, "agents": [agent]} | config)))
    read, directory = load_config(text), RunDirectory(str(folder))
    directory.create(text)
    seed_everything(read.framework, 0)
    made = AgentFactory(read.agents[0], read.framework, spaces)(Scope(0, 0, 2))
    for member in getattr(made, "members", {"": made}).values():
        member.load_state_dict(learned(member))
    directory.write_agents([dump_agent(made, load_framework(read.framework))])
    directory.write("status.json", json.dumps({"state": "finished", "timestep": 70}))
    return made


def stored(folder: Path, agent: dict[str, Any], spaces: dict[str, Any], **config: Any) -> Any:
    """Make a run directory as a run does, and return its agent."""
    made = store(folder, agent, spaces, **config)
    write_spaces(RunDirectory(str(folder)), spaces)
    return made


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_two_lines_are_a_policy(framework: str, tmp_path: Path):
    trained = stored(tmp_path, SINGLE, SPACES, framework=framework)
    agent = load_agent(str(tmp_path))
    actions = agent.predict(BATCH)
    assert agent.framework == framework
    np.testing.assert_array_equal(actions, trained.predict(BATCH))
    assert BOUNDED.contains(agent.predict(BATCH[0]))
    rows = to_framework(framework, BATCH.reshape(5, 4))
    np.testing.assert_array_equal(copied(agent.act(rows, None, **CLOCK)[1]["mean_actions"]), actions)
    [path] = export_onnx(str(tmp_path), tmp_path / "policy.onnx")
    [given] = InferenceSession(path).run(["actions"], {"observations": BATCH.reshape(5, 4)})
    np.testing.assert_allclose(given, actions, rtol=1e-5, atol=1e-5)


def test_teams(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trained = stored(tmp_path, MAPPO, TEAM)
    rng = np.random.default_rng(2)
    game = {"action_mask": np.array([0, 1, 1], np.int8), "board": rng.uniform(-1, 1, 2).astype(np.float32)}
    seen = {"bert": rng.uniform(-1, 1, 3).astype(np.float32), "cleo": game}
    agent = load_agent(str(tmp_path))
    actions = agent.predict(seen)
    assert actions["cleo"] == trained.predict({"cleo": game})["cleo"] != 1
    code, lines, _ = run(capsys, "export", tmp_path, tmp_path / "models")
    assert (code, lines) == (0, [f"wrote {tmp_path / 'models' / name}.onnx" for name in ("pair", "bert")])
    for name, file, space in (("cleo", "pair", GAME), ("bert", "bert", TEAM["observation_spaces"]["bert"])):  # type: ignore[index]
        path = tmp_path / "models" / f"{file}.onnx"
        rows = flat(space, [seen[name]])
        [given] = InferenceSession(path).run(["actions"], {"observations": rows})
        np.testing.assert_allclose(given[0], np.ravel(actions[name]), rtol=1e-5, atol=1e-5)
    told = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props if entry.key != "framework"}
    assert (told["timestep"], told["agents"]) == (70, ["bert"])
    code, _, messages = run(capsys, "export", tmp_path, tmp_path / "team.onnx")
    assert code == 2
    assert "is given for a team; expected a folder, for pair, bert" in messages
    assert not (tmp_path / "team.onnx").exists()


def test_the_model_tells_where_it_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stored(tmp_path, SINGLE, SPACES)
    path = tmp_path / "policy.onnx"
    assert run(capsys, "export", tmp_path, path) == (0, [f"wrote {path}"], "")
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert told.keys() == {"framework", "timestep", "observation_space", "action_space"}
    assert (told["framework"], told["timestep"]) == ("torch", "70")
    assert json.loads(told["observation_space"])["low"] == "-inf"
    assert json.loads(told["action_space"])["low"] == [10.0, -0.5]


def test_exporting_needs_no_framework(tmp_path: Path):
    stored(tmp_path, SINGLE, SPACES, framework="jax")
    program = f"from trainer.policies import export_onnx\nexport_onnx({str(tmp_path)!r}, {str(tmp_path / 'p.onnx')!r})"
    done = python(
        "-c", f"{program}\nimport sys\nprint([name for name in ('jax', 'torch', 'warp') if name in sys.modules])"
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_without_stored_spaces_the_environment_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spaces = {"observation_space": Box(-1, 1, (4,)), "action_space": Discrete(2), "state_space": None}
    trained = store(tmp_path, SINGLE, spaces, env=CARTPOLE)
    observation = np.array([0.1, 0.5, -0.2, 0.3], np.float32)
    assert load_agent(str(tmp_path)).predict(observation) == trained.predict(observation)
    assert "no_such_module" not in sys.modules


def test_what_a_stranger_names_is_not_run(tmp_path: Path):
    store(tmp_path, SINGLE, SPACES)
    (tmp_path / "origin.json").unlink()
    for function in (load_agent, lambda run_dir: export_onnx(run_dir, tmp_path / "policy.onnx")):
        with pytest.raises(ConfigError, match=r"env\.factory = 'no_such_module:build'\. Read them, and pass --trust"):
            function(str(tmp_path))
    with pytest.raises(ConfigError, match="No module named 'no_such_module'"):
        load_agent(str(tmp_path), trust=True)
    write_spaces(RunDirectory(str(tmp_path)), SPACES)
    assert load_agent(str(tmp_path)).predict(BATCH).shape == (5, 2)


def test_normalising_wrappers_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    agent = stored(tmp_path, SINGLE, SPACES)
    held = {"mean": np.zeros(4), "var": np.ones(4), "count": np.array(2.0)}
    file = [dump_agent(agent, load_framework("torch"))]
    RunDirectory(str(tmp_path)).write_agents(file, [[{"NormalizeReward.return_rms": held}]])
    load_agent(str(tmp_path))
    assert caplog.messages == []
    RunDirectory(str(tmp_path)).write_agents(file, [[{}, {"NormalizeObservation.obs_rms": held}]])
    load_agent(str(tmp_path))
    export_onnx(str(tmp_path), tmp_path / "policy.onnx")
    assert len(caplog.messages) == 2
    assert "the policy takes what they gave, not raw observations" in caplog.messages[0]
    told = {entry.key: entry.value for entry in onnx.load(tmp_path / "policy.onnx").metadata_props}
    assert json.loads(told["wrapper_statistics"]) == ["NormalizeObservation.obs_rms"]


def test_refusals(tmp_path: Path):
    with pytest.raises(ConfigError, match="is not a run directory"):
        load_agent(str(tmp_path))
    stored(tmp_path, SINGLE, SPACES)
    with pytest.raises(ConfigError, match="scope is 1; expected 0 to 0"):
        load_agent(str(tmp_path), scope=1)
    for spaces, told in (
        (TEAM, "expected 'ippo' or 'mappo'"),
        ({"observation_space": 3}, "not those of an environment"),
        ({"possible_agents": NAMES}, "not those of an environment"),
        ({**TEAM, "possible_agents": [*NAMES, "dora"]}, "not those of an environment"),
        ({**SPACES, "action_space": Text(3)}, r"the space Text\(1, 3"),
        ({**SPACES, "action_space": Box(-1, 1, (3,))}, "cannot load the stored state"),
        ({**SPACES, "action_space": Discrete(10**15)}, "the agent of scope 0 in '.*' cannot be built: RuntimeError: "),
        ({**SPACES, "action_space": None}, "action_space is None"),
    ):
        write_spaces(RunDirectory(str(tmp_path)), spaces)
        with pytest.raises((ConfigError, AgentError), match=told):
            load_agent(str(tmp_path))
    with pytest.raises((ConfigError, AgentError), match="action_space is None"):
        export_onnx(str(tmp_path), tmp_path / "policy.onnx")
    (tmp_path / "spaces.json").write_text("{")
    with pytest.raises(ConfigError, match=f"^{str(tmp_path)!r} is damaged: it has no readable spaces.json"):
        load_agent(str(tmp_path))


def test_an_agent_of_somebody_else_is_refused(tmp_path: Path):
    directory = RunDirectory(str(tmp_path))
    agent = {"agent": "examples.skrl_ppo:make_agent"}
    directory.create(dump_config(load_config(yaml.safe_dump({"env": NOWHERE, "agents": [agent]}))))
    with pytest.raises(ConfigError, match=r"is 'examples\.skrl_ppo:make_agent'; expected one of Lockstep's own, ppo"):
        load_agent(str(tmp_path))


@pytest.mark.parametrize("group", ["a/b", "..\\a", "a\nb"])
def test_a_group_cannot_name_another_folder(group: str, tmp_path: Path):
    stored(tmp_path, {**MAPPO, "groups": {group: ["anna", "cleo"]}}, TEAM)
    with pytest.raises(ConfigError, match="cannot be the name of a file"):
        export_onnx(str(tmp_path), tmp_path / "models")
