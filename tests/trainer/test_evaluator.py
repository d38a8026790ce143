"""`Evaluator` and `EarlyStopping`: results known by hand, the training untouched, the same decisions in all modes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.base import Result
from orchestrator.ray import RayOrchestrator
from tests.support.agents import NullAgent
from tests.support.envs import CountingEnv, counting_factory, noisy_factory
from tests.support.parity import CFG, assert_same
from trainer.callbacks import Callback, EarlyStopping, Evaluator, Loop
from trainer.evaluation import Evaluated, Evaluation
from trainer.torch import StepTrainer
from workers.agents.torch import PPO
from workers.envs import EnvFactory, wrap_env
from workers.errors import ConfigError, EvaluationError
from workers.types import Scope

NAN = float("nan")
SMALL = {"rollouts": 8, "learning_epochs": 1, "mini_batches": 1, "hidden_sizes": (8,)}


class PPOFactory:
    """Factory of PPO for the environments of another factory."""

    def __init__(self, env: EnvFactory) -> None:
        single = env.build(1, 0)[0]
        self.spaces = {"observation_space": single.observation_space, "action_space": single.action_space}

    def __call__(self, scope: Scope) -> PPO:
        return PPO(**self.spaces, num_envs=scope.num_envs, cfg=SMALL)


def trainer_of(env: Any, *, timesteps: int = 40, **options: Any) -> StepTrainer[Any]:
    cfg: Any = {**CFG, "timesteps": timesteps}
    agents = [PPOFactory(counting_factory(4))] * 2 if not isinstance(env, EnvFactory) else [PPOFactory(env)] * 2
    return StepTrainer(**{"env": env, "agents": agents, "cfg": cfg, "seed": 3, "scopes": [1, 3], **options})


class Told(Callback):
    """Callback that notes when it is told which evaluation."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Evaluated]] = []

    def on_evaluation(self, loop: Loop, evaluation: Evaluated) -> None:
        self.told.append((loop.timestep, evaluation))

    @property
    def timesteps(self) -> list[tuple[int, int]]:
        return [(timestep, evaluation.timestep) for timestep, evaluation in self.told]


def test_returns_known_by_hand():
    told = Told()
    with trainer_of(counting_factory(4), timesteps=20) as trainer:
        Loop(trainer, [Evaluator(10, episodes=4), told]).run()
    # row r has episodes of 3 + r % 4 steps and rewards 1000 r + 10 episode + step / 10; scope 1 has rows 1, 2 and 3
    expected = [
        Evaluation([0.6, 30.6, 60.6, 90.6], [3, 3, 3, 3]),
        Evaluation([4001.0, 10001.5, 18002.1, 4041.0], [4, 5, 6, 4]),
    ]
    assert told.timesteps == [(10, 10), (20, 20)]
    for _, evaluation in told.told:
        for result, wanted in zip(evaluation.results, expected, strict=True):
            assert result.lengths == wanted.lengths
            assert result.returns == pytest.approx(wanted.returns)
    scalars = told.told[0][1].results[0].scalars
    assert scalars == {
        "Evaluation / Return (mean)": pytest.approx(45.6),
        "Evaluation / Return (min)": pytest.approx(0.6),
        "Evaluation / Return (max)": pytest.approx(90.6),
        "Evaluation / Length (mean)": 3.0,
    }


def test_the_training_is_untouched_and_resumed_evaluations_are_the_same(tmp_path: Path):
    class Saving(Callback):
        every = 16

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 16:
                loop.save(tmp_path / "checkpoint")

    with trainer_of(noisy_factory(4)) as trainer:
        trainer.run(40, timestep=0)
        expected = trainer.agent_files()
    told, rest = Told(), Told()
    with trainer_of(noisy_factory(4)) as trainer:
        Loop(trainer, [Evaluator(8, episodes=3), told, Saving()]).run()
        assert_same(trainer.agent_files(), expected)
    assert told.timesteps == [(n, n) for n in (8, 16, 24, 32, 40)]
    with trainer_of(noisy_factory(4)) as trainer:
        loop = Loop(trainer, [Evaluator(8, episodes=3), rest])
        loop.load(tmp_path / "checkpoint")
        loop.run()
    assert rest.told == told.told[2:]


def test_ray_evaluates_beside_the_training_and_decides_alike(ray_cluster: None):
    env, found = noisy_factory(4), []
    for orchestrator in ("local", RayOrchestrator(num_cpus=0.5, start_timeout=120)):
        told = Told()
        with trainer_of(env, orchestrator=orchestrator) as trainer:
            loop = Loop(trainer, [Evaluator(8, episodes=3), told, EarlyStopping(target=-1e9)])
            loop.run()
            found.append((loop.timestep, loop.stop_reason, [one for _, one in told.told], trainer.agent_files()))
    assert_same(found[1], found[0])
    assert found[0][0] == 16
    assert [one.timestep for one in found[0][2]] == [8, 16]


class Later:
    """The result of a function that is not known before it is waited for, or told to be."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function, self.known, self.cancelled, self.waited = function, False, False, False

    def is_known(self) -> bool:
        return self.known

    def wait(self) -> Any:
        self.waited = True
        return self.function()

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> list[Later]:
    """Make evaluations as slow as in Ray; the results in the order in which they began."""
    begun: list[Later] = []

    def beside(self: Any, function: Callable[[], Any]) -> Result[Any]:
        begun.append(Later(function))
        return begun[-1]

    monkeypatch.setattr(StepTrainer, "beside", beside)
    return begun


def test_slow_results_are_told_when_known_or_when_the_next_is_due(later: list[Later]):
    class Hurry(Callback):
        every = 1

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 12:
                later[0].known = True

    told = Told()
    with trainer_of(counting_factory(4), timesteps=35) as trainer:
        Loop(trainer, [Hurry(), Evaluator(10, episodes=2), told]).run()
    assert told.timesteps == [(12, 10), (30, 20), (35, 30)]
    assert [evaluation.known_by for _, evaluation in told.told] == [20, 30, 40]


@pytest.mark.parametrize("at", [10, 14])
def test_a_checkpoint_keeps_an_evaluation_under_way(at: int, tmp_path: Path, later: list[Later]):
    class Saving(Callback):
        every = 1

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == at:
                loop.save(tmp_path / "checkpoint")
                raise KeyboardInterrupt

    first, second = Told(), Told()
    with trainer_of(counting_factory(4), timesteps=20) as trainer, pytest.raises(KeyboardInterrupt):
        Loop(trainer, [Evaluator(10, episodes=2), first, Saving()]).run()
    # the checkpoint of timestep 10 has the agents that were evaluated; for that of timestep 14, the loop waits
    assert first.timesteps == ([(14, 10)] if at == 14 else [])
    assert later[0].waited is (at == 14)
    with trainer_of(counting_factory(4), timesteps=20) as trainer:
        loop = Loop(trainer, [Evaluator(10, episodes=2), second])
        loop.load(tmp_path / "checkpoint")
        loop.run()
    assert [evaluation.timestep for _, evaluation in first.told + second.told] == [10, 20]


def test_a_loop_that_is_stopped_waits_for_the_evaluation_under_way(later: list[Later]):
    class Stop(Callback):
        every = 23

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 23:
                loop.stop("enough")

    told = Told()
    with trainer_of(counting_factory(4)) as trainer:
        Loop(trainer, [Evaluator(10, episodes=2), told, Stop()]).run()
    assert told.timesteps == [(20, 10), (23, 20)]


def test_nobody_waits_after_an_error(later: list[Later]):
    class Broken(Callback):
        every = 12

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 12:
                raise ValueError("mine")

    with trainer_of(counting_factory(4)) as trainer, pytest.raises(ValueError, match="mine"):
        Loop(trainer, [Evaluator(10), Broken()]).run()
    assert later[0].cancelled
    assert not later[0].waited


class FailingEnv(CountingEnv):
    """Environment that fails with the seeds of an evaluation."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None and seed >= 1_000_000:
            raise OSError("no more licences")
        return super().reset(seed=seed, options=options)


def test_an_evaluation_that_fails_says_so():
    env = EnvFactory(lambda n, first: [FailingEnv(first + i) for i in range(n)], num_envs=4)
    with (
        trainer_of(env) as trainer,
        pytest.raises(EvaluationError, match=r"after 10 timesteps failed.*no more licences"),
    ):
        Loop(trainer, [Evaluator(10)]).run()


class Means(Callback):
    """Callback that tells made-up evaluations."""

    every = 10

    def __init__(self, *means: float) -> None:
        self.means = means

    def on_step(self, loop: Loop) -> None:
        if not loop.timestep % 10:
            mean = self.means[loop.timestep // 10 - 1]
            loop.tell_evaluation(Evaluated(loop.timestep, [Evaluation([mean], [1])], loop.timestep + 10))


@pytest.mark.parametrize(
    ("options", "means", "timestep", "reason"),
    [
        ({"patience": 2}, (1, 2, 2, 3, 3, 3, 9), 70, "none of the last 2 evaluations were better than 3"),
        ({"patience": 2, "min_improvement": 1}, (1, 2, 2.5, 3, 3, 4, 9), 60, "better than 2.5"),
        ({"patience": 2}, (NAN, 2, 1, NAN, 9), 50, "better than 2"),
        ({"patience": 2}, (NAN, NAN, 9), 30, "none of the last 2 evaluations had episodes that all ended"),
        ({"target": 2.5}, (1, 2, 3, 1), 40, "is 3, the target 2.5"),
        ({"target": 9, "patience": 9}, (1, 2, 3, 1, 1, 1, 1), 80, ""),
    ],
)
def test_when_a_loop_stops_early(options: Any, means: tuple[float, ...], timestep: int, reason: str):
    with trainer_of(counting_factory(4), timesteps=80) as trainer:
        loop = Loop(trainer, [Evaluator(1000), EarlyStopping(**options), Means(*means, *[0.0] * 7)])
        loop.run()
        assert loop.timestep == timestep
        assert reason in loop.stop_reason


def test_a_decision_to_stop_survives(tmp_path: Path):
    class Saving(Callback):
        every = 15

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 15:
                loop.save(tmp_path / "checkpoint")

    with trainer_of(counting_factory(4), timesteps=70) as trainer:
        Loop(trainer, [Evaluator(1000), EarlyStopping(target=1), Means(1, 1), Saving()]).run()
    with trainer_of(counting_factory(4), timesteps=70) as trainer:
        loop = Loop(trainer, [Evaluator(1000), EarlyStopping(target=1)])
        assert loop.load(tmp_path / "checkpoint") == 15
        loop.run()
        assert (loop.timestep, loop.stop_reason) == (20, "the mean return of an evaluation is 1, the target 1")


def test_no_checkpoint_has_an_evaluation_that_only_some_have_heard_of(later: list[Later], tmp_path: Path):
    class Broken(Callback):
        def on_evaluation(self, loop: Loop, evaluation: Evaluated) -> None:
            raise ValueError("mine")

    with trainer_of(counting_factory(4), timesteps=20) as trainer:
        loop = Loop(trainer, [Evaluator(10, episodes=2), Broken(), Told()])
        with pytest.raises(ValueError, match="mine"):
            loop.run()
        assert loop.timestep == 20
        assert not loop.is_settled


def test_a_decision_of_another_rule_does_not_count():
    stopping = EarlyStopping(target=1)
    stopping._decided = ("enough", 20)
    same, other = EarlyStopping(target=1), EarlyStopping(target=9)
    same.load_state_dict(stopping.state_dict())
    other.load_state_dict(stopping.state_dict())
    assert same._decided == ("enough", 20)
    assert other._decided == ()


def test_what_is_decided_stays_decided():
    with trainer_of(counting_factory(4), timesteps=70) as trainer:
        stopping = EarlyStopping(target=1)
        loop = Loop(trainer, [Evaluator(1000), stopping, Means(*[2.0] * 7)])
        loop.run()
        assert loop.timestep == 20
        assert stopping.state_dict()["decided"][1] == 20


def test_an_evaluation_that_comes_too_late_is_told(caplog: pytest.LogCaptureFixture):
    with trainer_of(counting_factory(4), timesteps=3) as trainer:
        Loop(trainer, [Evaluator(10)]).run()
        two = Loop(trainer, [Evaluator(10), Evaluator(10)])
        with pytest.raises(ConfigError, match="several Evaluators"):
            two.run()
    assert "evaluations are every 10 timesteps, but the loop ends at 3" in caplog.text


def test_refusals():
    env = counting_factory(4)
    foreign = wrap_env(env.build(4, 0), framework="torch")
    instances = [PPOFactory(env)(Scope(0, 0, 1, 0)), PPOFactory(env)]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"env": foreign}, r"Evaluator\(env=EnvFactory"),
        ({"agents": instances}, r"Evaluator\(agents="),
        ({"seed": 999_998}, "at least 4"),
    ]
    for options, message in cases:
        with trainer_of(options.pop("env", env), **options) as trainer, pytest.raises(ConfigError, match=message):
            Loop(trainer, [Evaluator(10)]).run()
    alone = pytest.raises(ConfigError, match="add an Evaluator")
    with trainer_of(env, agents=[NullAgent, NullAgent]) as trainer, alone:
        Loop(trainer, [EarlyStopping(patience=1)]).run()
    bad: list[dict[str, Any]] = [{"every": 0}, {"every": 1, "episodes": 0}, {"every": 1, "seed": -1}]
    for options in bad:
        with pytest.raises(ConfigError):
            Evaluator(**options)
    wrong: list[dict[str, Any]] = [{}, {"patience": 0}, {"patience": 1, "min_improvement": -1.0}]
    for options in wrong:
        with pytest.raises(ConfigError):
            EarlyStopping(**options)
