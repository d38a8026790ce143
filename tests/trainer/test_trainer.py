"""The public contract of StepTrainer, in local mode."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np
import pytest

import workers.envs
from tests.support.agents import NullAgent, RecordingAgent, to_numpy
from tests.support.envs import counting_factory
from tests.support.foreign import ForeignEnv, trainer_of
from tests.support.parity import copied_outputs, run
from tests.support.processes import python
from tests.support.schedule import FRAMEWORKS
from trainer.config import StepTrainerCfg
from workers.envs import EnvFactory
from workers.errors import LifecycleError
from workers.frameworks import load_framework
from workers.node import node_name


def test_counter_is_incremented_first_and_left_alone_by_an_explicit_timestep(framework):
    with trainer_of(agents=RecordingAgent, framework=framework) as trainer:
        trainer.train()
        trainer.train(timestep=7)
        trainer.train(timesteps=99)
        trainer.eval()
        trainer.reset()
        trainer.eval()
        calls = trainer.agents[0].calls[1:]
    assert [call["timestep"] for name, call in calls if name == "pre"] == [1, 7, 2, 3, 1]
    for name in ("pre", "act", "record", "post"):
        assert [call["timesteps"] for kind, call in calls if kind == name] == [10, 10, 99, 10, 10]


def test_evaluation_acts_on_mean_actions_and_does_not_train(framework):
    _, (agent,) = run(3, framework=framework, env=counting_factory(2), agents=RecordingAgent, mode="eval")
    for name, arguments in agent.calls[1:]:
        if name in ("pre", "post"):
            assert arguments["training"] is False
    for timestep, record in enumerate(agent.records(), start=1):
        np.testing.assert_array_equal(record["actions"], [[-timestep], [-100 - timestep]])
        np.testing.assert_array_equal(record["next_observations"][:, 3], [-timestep, -100 - timestep])


def test_stochastic_evaluation_acts_on_sampled_actions(framework):
    with trainer_of(agents=RecordingAgent, framework=framework, cfg={"stochastic_evaluation": True}) as trainer:
        trainer.eval()
        np.testing.assert_array_equal(trainer.agents[0].records()[0]["actions"], [[1], [1]])


def test_foreign_single_environment_is_reset_explicitly_and_others_never(framework):
    for num_envs, expected in ((1, ["reset", "step", "step", "step", "reset", "step"]), (2, ["reset"] + ["step"] * 4)):
        env = ForeignEnv(num_envs, framework=framework)
        with trainer_of(env, RecordingAgent, framework) as trainer:
            observations = [to_numpy(trainer.train()[0])[0, 0] for _ in range(4)]
            acted = [call["observations"][0, 0] for name, call in trainer.agents[0].calls if name == "act"]
            states = [call["states"][0, 0] for name, call in trainer.agents[0].calls if name == "act"]
        assert env.calls == [*expected, "close"]
        assert observations == ([1, 2, 3, 1] if num_envs == 1 else [1, 2, 3, 4])
        assert acted == ([0, 1, 2, 0] if num_envs == 1 else [0, 1, 2, 3])
        assert [-state for state in states] == acted


def test_what_a_factory_builds_is_never_reset(framework):
    env = ForeignEnv(1, framework=framework)
    with trainer_of(EnvFactory(lambda n, first: env, num_envs=1), framework=framework) as trainer:
        for _ in range(5):
            trainer.train()
    assert env.calls == ["reset"] + ["step"] * 5 + ["close"]


@pytest.mark.parametrize(
    ("cfg", "renders"),
    [({"headless": True}, 0), ({"headless": False}, 6), ({"headless": False, "render_interval": 4}, 1)],
)
def test_rendering(cfg, renders):
    env = ForeignEnv()
    with trainer_of(env, cfg=cfg) as trainer:
        for _ in range(6):
            trainer.train()
    assert env.calls.count("render") == renders


class Reusing(ForeignEnv):
    """Environment that returns the same array every time, if arrays can be written: JAX's cannot."""

    array: Any = None

    def _observe(self) -> Any:
        if hasattr(self.array, "fill_"):
            self.array.fill_(float(self.time))
        else:
            self.array = super()._observe()
        return self.array


@pytest.mark.parametrize("count", [1, 2])
def test_reset_makes_the_next_iteration_reset_the_environments_even_those_that_reuse_their_arrays(count, framework):
    env = Reusing(4, framework=framework)
    with trainer_of(env, [RecordingAgent] * count, framework) as trainer:
        for _ in range(3):
            trainer.train()
        trainer.reset()
        assert env.calls.count("reset") == 1
        trainer.train()
        agent = trainer.agents[-1]
        acted = [call["observations"][0, 0] for name, call in agent.calls if name == "act"]
        recorded = [(call["observations"][0, 0], call["next_observations"][0, 0]) for call in agent.records()]
    assert env.calls.count("reset") == 2
    assert acted == [0, 1, 2, 0]
    assert recorded == [(0, 1), (1, 2), (2, 3), (0, 1)]


def given(env: Any, num_envs: int, first_env: int) -> Any:
    return env


def test_close_twice_and_environments_closed_only_if_asked_or_built_here():
    for close_environment_at_exit in (True, False):
        env, built = ForeignEnv(), ForeignEnv()
        cfg = {"close_environment_at_exit": close_environment_at_exit}
        for handed in (env, EnvFactory(partial(given, built), num_envs=2)):
            trainer = trainer_of(handed, cfg=cfg)
            trainer.close()
            trainer.close()
        assert env.calls.count("close") == int(close_environment_at_exit)
        assert built.calls.count("close") == 1


def test_calls_after_close_are_refused():
    trainer = trainer_of()
    trainer.close()
    for call in (trainer.train, trainer.eval, trainer.reset):
        with pytest.raises(LifecycleError, match=r"after close\(\); build a new StepTrainer"):
            call()


@pytest.mark.parametrize(("close", "framework"), [(False, "torch"), *((True, name) for name in FRAMEWORKS)])
def test_environment_is_closed_on_normal_program_termination(close, framework):
    program = f"""
from tests.support.agents import to_numpy
from tests.support.foreign import ForeignEnv, trainer_of
class Env(ForeignEnv):
    def close(self): print("closed", to_numpy(self.state()).tolist())
env = Env(framework={framework!r})
trainer_of(env, framework={framework!r}, cfg={{"close_environment_at_exit": {close}}}).train()
"""
    done = python("-c", program)
    assert (done.stdout.count("closed [[-1.0, -1.0], [-1.0, -1.0]]"), done.returncode) == (close, 0), done.stderr


def test_progress_bar_counts_and_ends(capsys):
    with trainer_of(cfg={"disable_progressbar": False}) as trainer:
        trainer.train(timesteps=4)
        trainer.train()
    assert "2/4" in capsys.readouterr().out
    with trainer_of(cfg={"disable_progressbar": None}) as trainer:
        trainer.train()
    assert capsys.readouterr().out == ""


def test_text_shows_agents_scopes_where_each_lives_and_threads():
    with trainer_of(ForeignEnv(7), [NullAgent, NullAgent], scopes=[3, 4]) as trainer:
        text = str(trainer)
        assert trainer.scopes == [(0, 3), (3, 7)]
        assert trainer.num_simultaneous_agents == 2
    assert text.splitlines() == [
        "trainer.torch.StepTrainer (ready): 7 environments, 2 simultaneous agents",
        f"  scope 0: environments 0:3, NullAgent, on {node_name()}, 1 compute thread",
        f"  scope 1: environments 3:7, NullAgent, on {node_name()}, 1 compute thread",
    ]


def test_outputs_are_the_environments_and_agents_get_copies(framework):
    class Vandal(NullAgent):
        def record_transition(self, **arguments: Any) -> None:
            if framework != "jax":  # JAX's arrays cannot be written
                for name in ("rewards", "next_observations", "terminated", "truncated"):
                    arguments[name].fill_(-1)
            arguments["infos"]["episode"]["r"] = None
            arguments["infos"].clear()

    for agents in (Vandal, [Vandal, Vandal]):
        env = ForeignEnv(2, {"episode": {"r": np.ones(2)}}, framework)
        with trainer_of(env, agents, framework) as trainer:
            observations, rewards, terminated, truncated, infos = copied_outputs(trainer.train())
        assert observations.tolist() == [[1] * 4] * 2
        assert rewards.tolist() == [[1], [1]]
        assert not terminated.any()
        assert not truncated.any()
        assert infos["episode"]["r"].tolist() == [1, 1]


def test_environment_info_is_tracked(framework):
    episode = {
        "r": np.array([1.0, 5.0]),
        "_r": np.array([False, True]),
        "l": np.array([7, 0]),
        "a/b": load_framework(framework).from_numpy(np.array(2.5)),
        "s": "x",
    }
    infos = {"episode": episode, "_episode": np.array([True, False])}
    with trainer_of(ForeignEnv(infos=infos, framework=framework), RecordingAgent, framework) as trainer:
        trainer.train()
        tracked = dict(trainer.agents[0].tracked)
    assert {"Stats / Inference time (ms)", "Stats / Env stepping time (ms)"} < set(tracked)
    assert tracked["Info / r"] == 5.0
    assert tracked["a/b"] == 2.5
    assert tracked["Info / l"] == 7.0
    assert "Info / s" not in tracked


def test_environment_info_may_name_numbers_themselves(framework):
    distances = load_framework(framework).from_numpy(np.array([2.0, 8.0], np.float32))
    infos = {"speed": 3, "distance": distances, "_distance": np.array([False, True]), "place": "x"}
    for key, expected in (("speed", {"Info / speed": 3.0}), ("distance", {"Info / distance": 8.0}), ("place", {})):
        env, cfg = ForeignEnv(infos=infos, framework=framework), {"environment_info": key}
        with trainer_of(env, RecordingAgent, framework, cfg=cfg) as trainer:
            trainer.train()
            tracked = dict(trainer.agents[0].tracked)
        assert {tag: value for tag, value in tracked.items() if tag.startswith("Info")} == expected


def test_agents_are_initialised_with_the_configuration_before_anything_else():
    with trainer_of() as trainer:
        assert trainer.agents[0].trainer_cfg is trainer.cfg
        assert isinstance(trainer.cfg, StepTrainerCfg)


def test_factories_get_their_scope():
    scopes = []

    def factory(scope):
        scopes.append(scope)
        return NullAgent()

    trainer_of(ForeignEnv(5), [factory, factory], scopes=[2, 3], seed=4).close()
    assert [(scope.index, scope.start, scope.stop, scope.num_envs) for scope in scopes] == [(0, 0, 2, 2), (1, 2, 5, 3)]
    assert scopes[0].seed != scopes[1].seed


def test_foreign_environment_that_is_not_seeded_is_said_once(caplog):
    trainer_of(seed=None).close()
    assert caplog.text == ""
    with trainer_of(ForeignEnv(4), [NullAgent, NullAgent], seed=1) as trainer:
        trainer.train()
    assert caplog.text.count("ForeignEnv is another library's wrapper") == 1


def test_exports(framework):
    module = importlib.import_module(f"trainer.{framework}")
    assert module.__all__ == ["StepTrainer", "StepTrainerCfg", "StepTrainerCfgDict", "generate_equally_spaced_scopes"]
    assert module.StepTrainer.framework == framework
    assert module.StepTrainerCfg is StepTrainerCfg
    assert module.generate_equally_spaced_scopes(num_envs=7, num_simultaneous_agents=2) == [3, 4]
    assert set(workers.envs.__all__) == {
        "EnvFactory", "MultiAgentEnvWrapper", "Wrapper", "check_env", "make_env", "register_state", "wrap_env",
    }  # fmt: skip


def test_error_while_closing_does_not_hide_the_one_under_way(caplog):
    class Sticky(ForeignEnv):
        def close(self) -> None:
            raise RuntimeError("does not close")

    with pytest.raises(ZeroDivisionError), trainer_of(Sticky()):
        _ = 1 / 0
    assert "does not close" in caplog.text
    with pytest.raises(RuntimeError, match="does not close"), trainer_of(Sticky()):
        pass


def test_callers_scopes_and_agents_are_not_changed():
    scopes, agents = [1, 1], [NullAgent(), NullAgent()]
    kept = list(agents)
    trainer_of(agents=agents, scopes=scopes).close()
    assert scopes == [1, 1]
    assert all(agent is other for agent, other in zip(agents, kept, strict=True))
