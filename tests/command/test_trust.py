"""Run directories of strangers: what they name or hold is not run without --trust, and is named."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from orchestrator.run_dir import RunDirectory
from orchestrator.user_key import user_key
from tests.support.agents import NullAgent
from tests.support.command import run
from tests.support.damage import Bomb
from trainer.command.evaluation import evaluate
from trainer.command.run import prepare
from trainer.command.run_config import load_config
from trainer.command.trust import check_run
from workers.errors import AgentError, ConfigError

CANARY = """
import pathlib

pathlib.Path({path!r}).touch()

import gymnasium
from tests.support.envs import CountingEnv

if "Canary-v0" not in gymnasium.registry:
    gymnasium.register(id="Canary-v0", entry_point=CountingEnv)


def build(num_envs, first_env):
    return [gymnasium.make("CartPole-v1") for _ in range(num_envs)]


from tests.command.test_trust import Pickled as make
"""


class Pickled(NullAgent):
    """Agent without a state, whose file is a pickle."""

    weight = 1.0

    def save(self, path: str) -> None:
        Path(path).write_bytes(pickle.dumps(self.weight))

    def load(self, path: str) -> None:
        self.weight = pickle.loads(Path(path).read_bytes())


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that a module of this name makes when it is imported, and a pickle when it is loaded."""
    path = tmp_path / "sang"
    modules = tmp_path / "modules"
    for name in ("canary.py", "canaries/__init__.py", "canaries/canary.py"):
        (modules / name).parent.mkdir(exist_ok=True, parents=True)
        (modules / name).write_text(CANARY.format(path=str(path)), encoding="utf-8")
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "me"))
    yield path
    for name in [name for name in sys.modules if name.split(".")[0] in ("canary", "canaries")]:
        del sys.modules[name]


Changes = dict[str, Any]
PLAIN: Changes = {"env": {"id": "CartPole-v1", "num_envs": 2}}
EVALUATION: Changes = {"evaluation": {"episodes": 1, "max_timesteps": 3}}
TRAINER: Changes = {"trainer": {"timesteps": 2, "headless": True, "disable_progressbar": True}}


def agents(*names: str) -> Changes:
    return {"agents": [{"agent": name} for name in names]}


def stored(url: str, changes: Changes, files: Sequence[tuple[str, bytes]] = ()) -> RunDirectory:
    """Write a run directory as `lockstep train` does."""
    directory = RunDirectory(url)
    directory.create(yaml.safe_dump({**PLAIN, **EVALUATION, **TRAINER, **changes}))
    directory.write("status.json", json.dumps({"state": "finished", "timestep": 2}))
    directory.write_agents(files)
    return directory


def strange(url: str, changes: Changes, files: Sequence[tuple[str, bytes]] = ()) -> RunDirectory:
    """Write a run directory as another user, and become this user again, who has a key."""
    user_key(create=True)
    mine = os.environ["XDG_DATA_HOME"]
    os.environ["XDG_DATA_HOME"] = f"{mine}-not"
    try:
        stored(url, changes, files)
    finally:
        os.environ["XDG_DATA_HOME"] = mine
    return RunDirectory(url)


PICKLED = ("agent.bin", pickle.dumps(2.0))
STRANGE = "config.yaml is not what this user's key signed for this run"

NAMED: list[tuple[Changes, str]] = [
    ({"env": {"factory": "canary:build", "num_envs": 2}}, "env.factory = 'canary:build'"),
    ({"env": {"id": "canary:Canary-v0", "num_envs": 2}}, "env.id = 'canary:Canary-v0'"),
    ({"env": {"id": "canary", "num_envs": 2}}, "env.id = 'canary'"),
    ({"env": {"id": "canaries.canary", "num_envs": 2}}, "env.id = 'canaries.canary'"),
    (agents("ppo", "canary:make"), "agents.1.agent = 'canary:make'"),
    (
        {**agents("canary:make"), "env": {"factory": "canary:build", "num_envs": 2}},
        "env.factory = 'canary:build', agents.0.agent = 'canary:make'",
    ),
    ({"env": {**PLAIN["env"], "kwargs": {"a": [{"b": "canary:build"}]}}}, "env.kwargs.a.0.b = 'canary:build'"),
    (agents("c\u0430nary:make"), "agents.0.agent = 'c\\u0430nary:make'"),  # a Cyrillic letter
    ({"env": {**PLAIN["env"], "kwargs": {"\x1b[2J": "\x1b:"}}}, "env.kwargs.\\x1b[2J = '\\x1b:'"),
]


@pytest.mark.parametrize(("changes", "named"), NAMED, ids=[named for _, named in NAMED])
def test_what_a_stranger_s_configuration_names_is_not_run(
    changes: Changes, named: str, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "foreign"
    count = len(changes.get("agents", "1"))
    strange(str(folder), changes, [PICKLED] * count)
    binaries = [f"agents/{i}/agent.bin" for i in range(count) if "canary:make" in named]
    for verb, place in (("eval", folder), ("train", folder / "config.yaml"), ("doctor", folder / "config.yaml")):
        code, lines, message = run(capsys, verb, place)
        assert (code, lines) == (2, [])
        start = f"lockstep: the run directory {str(folder)!r} is not known to be of this user ({STRANGE}"
        assert message.startswith(start)
        assert f"and these would be run or opened: {named}" in message
        assert message.endswith(". Read them, and pass --trust if you trust them\n")
        assert message.count("\n") == 1
        if binaries and verb == "eval":
            assert f", {binaries[-1]}. Read them" in message
    assert not canary.exists()


def test_with_trust_it_is_run(tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]):
    changes = {**agents("canary:make"), "env": {"factory": "canary:build", "num_envs": 2}}
    directory = strange(str(tmp_path / "foreign"), changes, [PICKLED])
    before = sorted((tmp_path / "foreign").rglob("*"))
    code, lines, message = run(capsys, "eval", directory.url, "--trust")
    assert (code, len(lines), message) == (0, 1, "")
    assert canary.exists()
    assert sorted((tmp_path / "foreign").rglob("*")) == before
    config, again = tmp_path / "foreign" / "config.yaml", tmp_path / "again"
    assert run(capsys, "train", config, "--trust", "--set", f"logging.directory={again}")[0] == 0
    assert run(capsys, "eval", again)[0] == 0  # this user wrote that one


def test_own_runs_need_no_trust(
    tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    config, mine, again = tmp_path / "mine.yaml", tmp_path / "mine", tmp_path / "again"
    changes = {**agents("canary:make", "canary:make"), "env": {"factory": "canary:build", "num_envs": 2}}
    config.write_text(yaml.safe_dump({**PLAIN, **EVALUATION, **TRAINER, **changes}))
    code, printed, _ = run(capsys, "train", config, "--set", f"logging.directory={mine}")
    assert code == 0
    assert (mine / "agents" / "1" / "agent.bin").exists()
    moved = tmp_path / "elsewhere"
    mine.rename(moved)
    assert run(capsys, "eval", moved) == (0, printed[-2:], "")
    assert run(capsys, "train", moved / "config.yaml", "--set", f"logging.directory={again}")[0] == 0
    monkeypatch.setattr("trainer.command.doctor.examine", lambda config, build: [])
    assert run(capsys, "doctor", moved / "config.yaml") == (0, [], "")


def test_without_a_key_a_run_is_evaluated_by_the_process_that_wrote_it(
    tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_DATA_HOME", "/dev/null")
    config, mine = tmp_path / "mine.yaml", tmp_path / "mine"
    config.write_text(yaml.safe_dump({**PLAIN, **EVALUATION, **TRAINER, **agents("canary:make")}))
    code, printed, _ = run(capsys, "train", config, "--set", f"logging.directory={mine}")
    assert code == 0
    assert printed[-1].startswith("scope 0: no episode ended, weights ")
    code, _, message = run(capsys, "eval", mine)
    assert code == 2
    assert "is not known to be of this user (this user has no key in /dev/null/lockstep/key)" in message
    assert run(capsys, "eval", mine, "--trust") == (0, printed[-1:], "")


def test_a_key_that_others_can_read_is_refused_by_name(
    tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
):
    directory = stored(str(tmp_path / "mine"), agents("canary:make"), [PICKLED])
    key = tmp_path / "me" / "lockstep" / "key"
    key.chmod(0o644)
    code, _, message = run(capsys, "eval", directory.url)
    assert (code, f"the key {str(key)!r} can be used by others (its mode is 644)" in message) == (2, True)
    assert not canary.exists()


@pytest.mark.parametrize("place", ["memory://lockstep-trust/run", "run"])
def test_on_a_disk_and_at_a_url(place: str, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]):
    url = place if "://" in place else str(tmp_path / place)
    try:
        stored(f"{url}/mine", agents("canary:make"), [PICKLED])
        strange(f"{url}/foreign", agents("canary:make"), [PICKLED])
        code, lines, message = run(capsys, "eval", f"{url}/foreign")
        assert (code, lines) == (2, [])
        assert "agents.0.agent = 'canary:make', agents/0/agent.bin. Read them" in message
        assert not canary.exists()
        assert run(capsys, "eval", f"{url}/mine")[0] == 0
        assert canary.exists()
    finally:
        if "://" in place:
            fsspec.filesystem("memory").rm("/lockstep-trust", recursive=True)


def test_what_the_user_sets_is_the_user_s_own(tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]):
    changes = {
        **agents("evil:agent", "evil:agent"),
        "env": {"factory": "evil:build", "num_envs": 2, "kwargs": {"a": {"b": "evil:b"}, "a.b": "evil:ab"}},
    }
    changes["agents"][1]["cfg"] = {"hook": "evil:hook", "name": "plain"}
    directory = strange(str(tmp_path / "foreign"), changes, [PICKLED, PICKLED])
    text = directory.config()

    def left(*overrides: str) -> str:
        try:
            check_run(directory, text, load_config(text, overrides), overrides)
        except ConfigError as error:
            return str(error).partition("opened: ")[2].partition(". Read")[0]
        return ""

    kwargs = ["env.kwargs.a.b = 'evil:b'", "env.kwargs.a.b = 'evil:ab'"]
    binaries = ["agents/0/agent.bin", "agents/1/agent.bin"]
    named = ["agents.0.agent = 'evil:agent'", "agents.1.agent = 'evil:agent'"]
    texts = [*kwargs, "agents.1.cfg.hook = 'evil:hook'"]
    assert left() == ", ".join(["env.factory = 'evil:build'", *named, *texts, *binaries])
    assert left("env.factory=canary:build") == ", ".join([*named, *texts, *binaries])
    # also what is written as in the file: the user has read it
    overrides = ["env.factory=evil:build", "agents.1.agent=evil:agent"]
    assert left(*overrides) == ", ".join([named[0], *texts, *binaries])
    only = ", ".join([named[1], texts[2], binaries[1]])
    assert left("env={id: CartPole-v1, num_envs: 2}", "agents.0.agent=ppo") == only
    assert left("env.factory=canary:build", "env.kwargs.a.b=1", "agents=[{}]") == kwargs[1]
    assert left("env.factory=canary:build", "env.kwargs={}", "agents=[{agent: 'canary:make'}]") == binaries[0]
    assert left("env.factory=canary:build", "env.kwargs={}", "agents=[{}]") == ""
    assert left("seed=3") == left()
    assert not canary.exists()


def test_what_train_opens_beyond_code(tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]):
    changes = {
        "orchestrator": {"kind": "ray", "options": {"address": "ray://evil:10001"}},
        "logging": {"directory": "reference://::https://evil.example/refs.json"},
    }
    folder = tmp_path / "foreign"
    directory = strange(str(folder), changes, [PICKLED])
    named = (
        "orchestrator.options.address = 'ray://evil:10001', "
        "logging.directory = 'reference://::https://evil.example/refs.json', orchestrator.kind = 'ray'"
    )
    for verb in ("train", "doctor"):
        code, lines, message = run(capsys, verb, folder / "config.yaml")
        assert (code, lines, f"opened: {named}. Read" in message) == (2, [], True)
    text = directory.config()
    check_run(directory, text, load_config(text), [])  # eval uses neither


def test_a_configuration_by_itself_is_the_user_s_choice(
    tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**PLAIN, **EVALUATION, **TRAINER, **agents("canary:make")}))
    assert run(capsys, "train", config, "--set", f"logging.directory={tmp_path / 'run'}")[0] == 0
    (tmp_path / "status.json").touch()
    code, _, message = run(capsys, "train", config, "--set", f"logging.directory={tmp_path / 'other'}")
    assert (code, "is not known to be of this user (it has no origin.json)" in message) == (2, True)


def test_what_names_no_code_needs_no_trust(
    tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from workers.agents.torch import PPO
    from workers.frameworks import load_framework
    from workers.storage.agent_file import dump_agent

    env = prepare(load_config(yaml.safe_dump(PLAIN))).env
    spaces = {name: getattr(env, name) for name in ("observation_space", "action_space")}
    file = dump_agent(PPO(**spaces, num_envs=2, cfg={}), load_framework("torch"))
    env.close()
    folder = tmp_path / "foreign"
    strange(str(folder), {}, [file])
    (folder / "origin.json").write_text("[")
    (folder / "sang.py").write_text(CANARY.format(path=str(canary)))
    # the folder of a stranger is no place to import from
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    monkeypatch.chdir(folder)
    assert run(capsys, "eval", ".")[::2] == (0, "")
    assert str(folder) not in sys.path
    assert not canary.exists()
    # where a configuration that the user chose names code, it is
    prepare(load_config(yaml.safe_dump({**PLAIN, **agents("sang:make")}))).close()
    assert canary.exists()
    del sys.modules["sang"]


SWAPS = ["config", "other scope", "other run", "garbage", "no record", "record of another run", "stranger's record"]


@pytest.mark.parametrize("swap", SWAPS)
def test_a_run_of_this_user_that_somebody_changed(
    swap: str, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
):
    files = [("agent.bin", pickle.dumps(1.0)), ("agent.bin", pickle.dumps(2.0))]
    changes = agents("canary:make", "canary:make")
    mine, other, foreign = tmp_path / "mine", tmp_path / "other", tmp_path / "foreign"
    stored(str(mine), changes, files)
    stored(str(other), changes, [("agent.bin", pickle.dumps(3.0)), ("agent.bin", pickle.dumps(4.0))])
    strange(str(foreign), changes, files)
    paths = "agents.0.agent = 'canary:make', agents.1.agent = 'canary:make'"
    files_of_all = "agents/0/agent.bin, agents/1/agent.bin"
    reason = "is not what this user's key signed for this run"
    first, record = Path("agents", "0", "agent.bin"), "origin.json"
    if swap == "config":
        (mine / "config.yaml").write_text((mine / "config.yaml").read_text() + "seed: 5\n")
        expected = paths
    elif swap == "no record":
        (mine / record).unlink()
        expected, reason = f"{paths}, {files_of_all}", "it has no origin.json"
    elif "record" in swap:
        (mine / record).write_bytes(((other if "another" in swap else foreign) / record).read_bytes())
        expected = files_of_all if "another" in swap else f"{paths}, {files_of_all}"  # both have the same config.yaml
    else:
        swapped = {"other scope": files[1][1], "other run": (other / first).read_bytes()}
        (mine / first).write_bytes(swapped.get(swap, pickle.dumps(Bomb(canary))))
        expected = str(first)
    code, lines, message = run(capsys, "eval", mine)
    assert (code, lines) == (2, [])
    assert f"opened: {expected}. Read" in message
    assert reason in message
    assert not canary.exists()


@pytest.mark.parametrize("trust", [(), ("--trust",)], ids=["", "trust"])
@pytest.mark.parametrize("agent", ["ppo", "examples.skrl_ppo:make_agent"])
def test_a_pickle_in_the_place_of_a_state_is_never_loaded(
    agent: str, trust: tuple[str, ...], tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
):
    changes = {"agents": [{"agent": agent, "cfg": {"rollouts": 16}}]}
    directory = strange(str(tmp_path / "foreign"), changes, [("agent.bin", pickle.dumps(Bomb(canary)))])
    code, lines, message = run(capsys, "eval", directory.url, *trust)
    assert (code, lines) == (2, [])
    if trust or agent == "ppo":
        assert "foreign/agents/0/agent.bin: PPO cannot load the stored state: AgentError: agent.bin can run" in message
        assert "not loaded into an agent that offers a state; expected state.safetensors" in message
    else:
        assert ("pass --trust" in message) == (agent != "ppo")  # ours never load it, and are not asked about
    assert not canary.exists()


def test_the_library_does_not_load_what_is_not_trusted(tmp_path: Path, canary: Path):
    from workers.frameworks import load_framework

    torch = load_framework("torch")
    directory = strange(str(tmp_path / "foreign"), agents(f"{__name__}:Pickled"), [("agent.bin", pickle.dumps(7.0))])
    agent = Pickled()
    with pytest.raises(AgentError, match=r"foreign/agents/0/agent.bin is not known to be of this user .* trust=True"):
        directory.load_agent(agent, 0, torch)
    config = load_config(directory.config())
    with pytest.raises(AgentError, match="is not known to be of this user"):
        evaluate(config, directory)
    assert agent.weight == 1.0
    directory.load_agent(agent, 0, torch, trust=True)
    assert agent.weight == 7.0
    assert len(evaluate(config, directory, trust=True)) == 1


@pytest.mark.parametrize("beside", ["agents", "metrics.csv", "tensorboard", "evaluation.json", "checkpoints"])
def test_whatever_a_run_writes_marks_its_folder(
    beside: str, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "config.yaml").write_text("env: {factory: 'canary:build', num_envs: 2}")
    (tmp_path / beside).write_text("")
    code, _, message = run(capsys, "train", tmp_path / "config.yaml")
    assert (code, "env.factory = 'canary:build'" in message) == (2, True)
    assert not canary.exists()


def test_what_names_code_is_told_before_texts_and_all_is_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kwargs = {f"text{index}": "a:" + "b" * 250 for index in range(1000)}
    directory = strange(
        str(tmp_path / "foreign"), {"env": {"id": "CartPole-v1", "num_envs": 2, "kwargs": kwargs}}, [PICKLED, PICKLED]
    )
    code, _, message = run(capsys, "eval", directory.url, "--set", "agents=[{agent: ppo}, {agent: 'evil:agent'}]")
    assert code == 2
    assert len(message) < 10_000
    assert "980 more texts in env.kwargs, agents.*.cfg and callbacks.*.cfg" in message
