"""Run configurations: an error names the key, what was given and what is allowed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.schedule import examples
from trainer.command.cli import main
from trainer.command.config_file import dump_yaml, load_yaml
from trainer.command.run import prepare
from trainer.command.run_config import dump_config, load_config
from workers.errors import ConfigError

GOOD: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 4},
    "agents": [
        {"agent": "ppo", "scope": 1, "cfg": {"rollouts": 8}},
        {"agent": "examples.custom_agent:Greedy", "scope": 3},
    ],
    "trainer": {"timesteps": 3, "headless": True, "disable_progressbar": True},
    "orchestrator": {"kind": "local"},
    "evaluation": {"episodes": 0},
}


def error_of(data: Any, *overrides: str) -> str:
    text = data if isinstance(data, str) else yaml.safe_dump(data)
    with pytest.raises(ConfigError) as caught:
        prepare(load_config(text, overrides)).close()
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # types
        ("env.num_envs=many", "env.num_envs is 'many'; expected a valid integer"),
        ("env.num_envs=true", "env.num_envs is True; expected a valid integer"),
        ("env.id=3", "env.id is 3; expected a valid string"),
        ("env.kwargs=[1]", "env.kwargs is [1]; expected a mapping of keys to values"),
        ("env=CartPole-v1", "env is 'CartPole-v1'; expected a mapping of keys to values"),
        ("agents=ppo", "agents is 'ppo'; expected a list"),
        ("agents.0=ppo", "agents.0 is 'ppo'; expected a mapping of keys to values"),
        ("agents.1.scope=1.5", "agents.1.scope is 1.5; expected a valid integer"),
        ("agents.0.cfg.learning_rate=fast", "agents.0.cfg.learning_rate is 'fast'; expected a valid number"),
        ("trainer.headless=1", "trainer.headless is 1; expected a valid boolean"),
        ("seed=0.5", "seed is 0.5; expected a valid integer"),
        # choices
        ("framework=tensorflow", "framework is 'tensorflow'; expected 'torch'"),
        ("orchestrator.kind=slurm", "orchestrator.kind is 'slurm'; expected 'local' or 'ray'"),
        # devices
        (
            "device=cuda",
            "agents.1 is for the device 'cuda', but examples.custom_agent:Greedy has no parameter 'device'",
        ),
        ("agents.1.device=cpu", "agents.1 is for the device 'cpu', but examples.custom_agent:Greedy has no parameter"),
        ("agents.0.device=3", "agents.0.device is 3; expected a valid string"),
        # numbers and texts
        ("trainer.timesteps=1e4", "trainer.timesteps is 10000.0; expected a valid integer: write 10000"),
        ("trainer.timesteps=1e-4", "trainer.timesteps is 0.0001; expected a valid integer"),
        # ranges
        ("env.num_envs=0", "env.num_envs is 0; expected an integer of at least 1"),
        ("trainer.timesteps=-1", "trainer: cfg: timesteps is -1; expected an integer of at least 0"),
        ("agents.0.cfg.rollouts=0", "agents.0.cfg: PPOCfg.rollouts is 0; expected an integer >= 1"),
        ("seed=-1", "seed is -1; expected an integer of at least 0, or null"),
        ("logging.interval=0", "logging.interval is 0; expected an integer of at least 1, or null"),
        ("evaluation.episodes=-1", "evaluation.episodes is -1; expected an integer of at least 0"),
        ("evaluation.seed=3", "evaluation.seed is 3; expected a number at least 4 (env.num_envs) away from seed"),
        ("evaluation.max_timesteps=0", "evaluation.max_timesteps is 0; expected an integer of at least 1"),
        # unknown and missing keys
        ("env.nun_envs=4", "env.nun_envs: unknown key; did you mean 'num_envs'? Allowed keys: id, factory, num_envs"),
        ("trainer.lr=1", "trainer.lr: unknown key; allowed keys: timesteps, headless"),
        ("agents.0.cfg.rolouts=1", "agents.0.cfg.rolouts: unknown key; did you mean 'rollouts'? Allowed keys:"),
        ("seeed=1", "seeed: unknown key; did you mean 'seed'? Allowed keys: framework, env"),
        # values that depend on each other
        ("env.factory=a:b", "env.id is 'CartPole-v1' and env.factory is 'a:b'; expected one of them, and null"),
        ("agents=[]", "agents is []; expected at least one agent"),
        ("agents.0.scope=null", "agents.*.scope is [None, 3]; expected a number for every agent, or for none"),
        ("agents.0.scope=2", "agents.*.scope: scopes [2, 3] add up to 5, but there are 4 environments"),
        ("agents.0.scope=0", "agents.*.scope: scopes [0, 3] contain 0; every agent needs at least 1 environment"),
        (
            "orchestrator.options={num_cpus: 1}",
            "orchestrator.options.num_cpus: unknown key; allowed keys: num_thr",
        ),
        (
            "orchestrator.options={num_threads: 0}",
            "orchestrator.options: num_threads is 0; expected an integer of",
        ),
        ("orchestrator={kind: ray, options: {cpus: 1}}", "orchestrator.options.cpus: unknown key; did you mean 'nu"),
        ("orchestrator={kind: ray, options: {num_cpus: -1}}", "orchestrator.options: RayOrchestrator: num_cpus is -1"),
        # objects that cannot be imported or built
        (
            "agents.0.agent=pppo",
            "agents.0.agent is 'pppo'; expected one of 'ppo', 'ippo', 'mappo', or an import path such as "
            "'package.module:name'; did you mean 'ppo'?",
        ),
        ("agents.1.agent=nowhere:Agent", "agents.1.agent is 'nowhere:Agent', which cannot be imported: ModuleNotFound"),
        ("agents.1.agent=examples.no_such:Agent", "; the module search path includes /"),
        ("agents.1.agent=tests.support.exits:Agent", "which cannot be imported: SystemExit: this module exits"),
        ("agents.1.agent=os:nothing", "agents.1.agent is 'os:nothing', which cannot be imported: AttributeError"),
        ("agents.1.agent=os:getcmd", "AttributeError: module 'os' has no attribute 'getcmd'; did you mean 'getcwd'?"),
        ("agents.1.agent=os:path", "agents.1.agent is 'os:path', which is a module; expected a class or a function"),
        ("agents.1.cfg={speed: 1}", "agents.1.cfg: examples.custom_agent:Greedy cannot be called with scope"),
        ("env.id=Nothing-v0", "env.id: gymnasium cannot make 'Nothing-v0'"),
        ("env.id=nowhere:Nothing-v0", "env.id: nowhere:Nothing-v0 cannot be built with env.kwargs {}: ModuleNotFoundE"),
        ("env.kwargs={gravity: 1}", "env.id: CartPole-v1 cannot be built with env.kwargs {'gravity': 1}: TypeError"),
        ("env={factory: nowhere:build}", "env.factory is 'nowhere:build', which cannot be imported"),
        ("env={factory: os}", "env.factory is 'os'; expected an import path such as 'package.module:name'"),
        ("env={factory: 'os:'}", "env.factory is 'os:'; expected an import path such as 'package.module:name'"),
        ("env={factory: os:getcwd}", "env.factory: getcwd cannot be called as build(num_envs, first_env)"),
        ("env={factory: builtins:range}", "env.factory: builtins.range cannot be wrapped; expected"),
    ],
)
def test_an_error_names_the_key_what_was_given_and_what_is_allowed(override: str, message: str):
    if override.startswith("env={"):
        override = override.replace("}", ", num_envs: 4}")
    assert message in error_of(GOOD, override)


def test_all_errors_are_told_at_once():
    message = error_of({"env": {"id": 1, "num_envs": "a"}, "agents": [{"scope": "b"}], "sed": 1})
    assert [line.split(" ")[0] for line in message.splitlines()] == [
        "env.id",
        "env.num_envs",
        "agents.0.scope",
        "sed:",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "env is missing"),
        ("[1, 2]", "the config is [1, 2]; expected a mapping of keys to values"),
        ("env: {", "the config is not valid YAML"),
        ("env: &a {id: x, kwargs: *a}", "line 1, column 25: an anchor contains itself"),
        ("seed: 1\nseed: 2", "duplicate key 'seed'"),
        ("env: {id: CartPole-v1, kwargs: {? [1] : 2}}", "the config is not valid YAML"),
        ("env: !!python/object:os.system {}", "the config is not valid YAML"),
        ("1: 2", "1: unknown key; allowed keys: framework"),
    ],
)
def test_a_text_that_is_no_configuration(text: str, message: str):
    assert message in error_of(text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.timesteps", "expected key=value, such as trainer.timesteps=1000"),
        ("=1", "expected key=value"),
        ("trainer..timesteps=1", "expected key=value"),
        ("agents.2.scope=1", "the key contains '2'; expected an index below 2"),
        ("agents.one.scope=1", "the key contains 'one'; expected an index below 2"),
        ("seed.value=1", "the key contains 'value'; expected no key below a plain value"),
        ("seed={", "the value is not valid YAML"),
    ],
)
def test_an_override_that_cannot_be(override: str, message: str):
    assert message in error_of({**GOOD, "seed": 1}, override)


def test_overrides_are_yaml_and_come_last():
    config = load_config(
        yaml.safe_dump(GOOD),
        ["trainer.timesteps=5", "trainer.timesteps=7", "agents.0.cfg.learning_rate=1e-4", "logging.directory=a/b",
         "env.kwargs.render_mode=rgb_array", "agents.1={scope: 3}", "seed=null"],
    )  # fmt: skip
    assert config.trainer.timesteps == 7
    assert config.agents[0].cfg == {"rollouts": 8, "learning_rate": 1e-4}
    assert config.logging.directory == "a/b"
    assert config.env.kwargs == {"render_mode": "rgb_array"}
    assert (config.agents[1].agent, config.agents[1].scope, config.seed) == ("ppo", 3, None)


def test_an_override_changes_one_place_of_a_repeated_anchor():
    text = "env: {id: CartPole-v1}\nagents: [&agent {cfg: {rollouts: 8}}, *agent]"
    config = load_config(text, ["agents.0.cfg.rollouts=4"])
    assert [agent.cfg["rollouts"] for agent in config.agents] == [4, 8]
    config = load_config("env: {id: CartPole-v1}", ["agents.0.cfg.rollouts=4"])  # the default agent
    assert [agent.cfg for agent in config.agents] == [{"rollouts": 4}]


def test_the_stored_configuration_is_whole_and_gives_the_same_again():
    run = prepare(load_config(yaml.safe_dump(GOOD)))
    run.close()
    text = dump_config(run.config)
    assert yaml.safe_load(text)["agents"][0]["cfg"]["discount_factor"] == 0.99  # a default
    again = prepare(load_config(text))
    again.close()
    assert dump_config(again.config) == text


def test_a_callable_agent_gets_what_its_arguments_name():
    config = load_config(yaml.safe_dump({**GOOD, "agents": [{"agent": f"{__name__}:make", "cfg": {"gain": 2}}]}))
    run = prepare(config)
    with run.trainer(seed=5) as trainer:
        assert trainer.agents[0].arguments == (4, "Discrete(2)", 2)
    assert trainer.scopes == [(0, 4)]


def make(num_envs: int, *, action_space: Any, gain: int) -> Any:
    from tests.support.agents import NullAgent

    agent: Any = NullAgent()
    agent.arguments = (num_envs, str(action_space), gain)
    return agent


# Any YAML value in place of any part of a good configuration.

# no large numbers: a large number of timesteps or environments is valid, but slow
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 5) | st.floats() | st.text(max_size=8) | st.dates()
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to every value of a configuration."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


@st.composite
def malformed(draw: st.DrawFn) -> Any:
    """A good configuration with one to three places replaced, removed, or given an unknown key."""
    data = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(data)))
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if not path:
            return draw(JUNK)
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        if change == "replace":
            parent[path[-1]] = draw(JUNK)
        elif change == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.text(min_size=1, max_size=8))] = draw(JUNK)
        if not isinstance(data, (dict, list)) or not data:
            break
    return data


@given(malformed())
@settings(max_examples=examples(60, long=500), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_malformed_configuration_never_ends_in_a_bare_traceback(data: Any):
    import contextlib
    import io
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        config, run_dir = Path(folder) / "config.yaml", Path(folder) / "run"
        config.write_text(yaml.safe_dump(data), encoding="utf-8")
        out, err = io.StringIO(), io.StringIO()
        bounds = [f"logging.directory={run_dir}"] if isinstance(data, dict) else []
        for section, key, value in (("trainer", "timesteps", 3), ("evaluation", "episodes", 0)):
            part = data.get(section, {}) if isinstance(data, dict) else None
            if isinstance(part, dict) and key not in part:
                bounds.append(f"{section}.{key}={value}")  # without the key it may be valid, and run for long
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["train", str(config), "--set", *bounds] if bounds else ["train", str(config)])
        assert code in (0, 2), (code, err.getvalue())  # a change may leave it valid
        assert "Traceback" not in err.getvalue()
        if code == 2:
            assert err.getvalue().startswith("lockstep: ")
            assert not run_dir.exists()


@pytest.mark.parametrize(("text", "value"), [("12:30", "12:30"), ("1:2.5", "1:2.5"), ("10_000", 10_000), ("1e4", 1e4)])
def test_a_time_is_a_text_and_a_number_may_have_underscores(text: str, value: Any):
    assert load_yaml(f"name: {text}", [f"env.kwargs.start={text}"]) == {
        "name": value,
        "env": {"kwargs": {"start": value}},
    }
    assert load_yaml(dump_yaml({"name": value})) == {"name": value}


def test_devices_of_all_agents_and_of_each():
    data = copy.deepcopy(GOOD)
    data |= {"device": "cuda", "agents": [{"device": "cpu"}, {}, {"agent": "workers.agents.torch:PPO"}]}
    run = prepare(load_config(yaml.safe_dump(data)))
    try:
        assert [factory.config.device for factory in run.agents] == ["cpu", "cuda", "cuda"]
        assert [agent.device for agent in run.config.agents] == [None if i else "cpu" for i in range(3)]
        told = r"agents\.1\.device: device is 'cuda'; expected None for torch's default device, or a device of"
        with pytest.raises(ConfigError, match=told):
            run.trainer()
    finally:
        run.close()
