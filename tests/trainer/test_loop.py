"""`Loop` and `Callback`: when each callback is called, what stops a loop, and what a checkpoint keeps of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import NullAgent
from tests.support.envs import counting_factory, noisy_factory
from tests.support.parity import CFG, assert_same
from trainer.callbacks import Callback, Loop
from trainer.callbacks.loop import RATE
from trainer.torch import StepTrainer
from workers.agents.torch import PPO
from workers.envs import EnvFactory
from workers.errors import CheckpointError, ConfigError, LifecycleError, WorkerError
from workers.types import Scope

Call = tuple[str, str, Any]


class Recorder(Callback):
    """Callback that notes its calls in a list that it shares with others."""

    def __init__(self, name: str, calls: list[Call], every: int | None = None) -> None:
        self.name, self.calls, self.every = name, calls, every
        self.count = 0

    def on_start(self, loop: Loop) -> None:
        self.calls.append((self.name, "start", loop.timestep))

    def on_step(self, loop: Loop) -> None:
        self.count += 1
        self.calls.append((self.name, "step", (loop.timestep, bool(loop.scalars))))

    def on_checkpoint(self, loop: Loop, path: str) -> None:
        self.calls.append((self.name, "checkpoint", Path(path).name))

    def on_fault(self, loop: Loop, fault: Any) -> None:
        self.calls.append((self.name, "fault", fault))

    def on_end(self, loop: Loop) -> None:
        self.calls.append((self.name, "end", loop.error))

    def state_dict(self) -> Mapping[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


def agent(scope: Scope) -> PPO:
    env = noisy_factory(1).build(1, 0)[0]
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    cfg = {"rollouts": 8, "learning_epochs": 1, "mini_batches": 1, "hidden_sizes": (8,)}
    return PPO(**spaces, num_envs=scope.num_envs, cfg=cfg)


def noisy(timesteps: int = 40) -> StepTrainer[Any]:
    cfg: Any = {**CFG, "timesteps": timesteps}
    return StepTrainer(env=noisy_factory(4), agents=[agent, agent], cfg=cfg, seed=3)


def counting(env: Any = None, timesteps: int = 20) -> StepTrainer[Any]:
    cfg: Any = {**CFG, "timesteps": timesteps}
    return StepTrainer(env=env or counting_factory(2), agents=NullAgent, cfg=cfg, seed=3)


def steps(calls: list[Call], name: str) -> list[int]:
    return [value[0] for who, what, value in calls if (who, what) == (name, "step")]


def test_groups_end_where_a_callback_or_the_metrics_need_it():
    calls: list[Call] = []
    with counting() as trainer:
        loop = Loop(trainer, [Recorder("a", calls, every=4), Recorder("b", calls)], metrics_every=10)
        loop.run()
    assert calls[:2] == [("a", "start", 0), ("b", "start", 0)]
    assert calls[-2:] == [("b", "end", None), ("a", "end", None)]
    assert steps(calls, "a") == steps(calls, "b")
    assert {4, 8, 10, 12, 16, 20} <= set(steps(calls, "a"))
    assert [value[0] for _, what, value in calls if what == "step" and value[1]] == [10, 10, 20, 20]


def test_every_1_makes_each_iteration_a_group():
    calls: list[Call] = []
    with counting() as trainer:
        Loop(trainer, [Recorder("a", calls, every=1)]).run()
    assert steps(calls, "a") == [*range(1, 21)]


def test_the_loop_stays_in_your_hands():
    calls: list[Call] = []
    with counting() as trainer:
        bodies = []
        with Loop(trainer, [Recorder("a", calls)], timesteps=50) as loop:
            for timestep in loop:
                trainer.train(timestep=timestep)
                bodies.append(timestep)
                if timestep == 6:
                    break
    assert bodies == [0, 1, 2, 3, 4, 5, 6]
    assert calls == [("a", "start", 0), *(("a", "step", (n, True)) for n in range(1, 7)), ("a", "end", None)]


def test_a_loop_does_what_train_does():
    with noisy() as trainer:
        for timestep in range(40):
            trainer.train(timestep=timestep)
        expected = trainer.agent_files()
    for is_yours in (False, True):
        with noisy() as trainer:
            loop = Loop(trainer, [Recorder("a", [], every=7)], metrics_every=9)
            if is_yours:
                with loop:
                    for timestep in loop:
                        trainer.train(timestep=timestep)
            else:
                loop.run()
            assert_same(trainer.agent_files(), expected)


def test_scalars_are_those_of_collect_metrics_and_the_rate():
    class Metrics(Callback):
        every = 8

        def on_step(self, loop: Loop) -> None:
            found.append([dict(one) for one in loop.scalars])

        def on_end(self, loop: Loop) -> None:
            found.append([dict(one) for one in loop.rest()])

    found: list[list[dict[str, float]]] = []
    with noisy(timesteps=20) as trainer:
        Loop(trainer, [Metrics()], metrics_every=8).run()
    with noisy(timesteps=20) as trainer:
        trainer.collect_metrics()
        expected = []
        for count in (8, 8, 4):
            trainer.run(count)
            expected.append(trainer.collect_metrics())
    found = [scalars for scalars in found if scalars]
    assert all(one[RATE] > 0 for scalars in found for one in scalars)
    kept = [
        [{tag: value for tag, value in one.items() if "time (ms)" not in tag and tag != RATE} for one in scalars]
        for scalars in (found[0], found[1], found[-1])
    ]
    wanted = [
        [{tag: value for tag, value in one.items() if "time (ms)" not in tag} for one in scalars]
        for scalars in expected
    ]
    assert kept == wanted


def test_a_callback_stops_the_loop_now_or_later():
    class Stop(Callback):
        every = 5

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 5:
                loop.stop("later", at=12)
                loop.stop("much later", at=15)

    with counting() as trainer:
        loop = Loop(trainer, [Stop()])
        loop.run()
        assert (loop.timestep, loop.stop_reason) == (12, "later")


class Broken(Callback):
    """Callback that raises."""

    def __init__(self, error: Exception, at: str) -> None:
        self.error, self.at = error, at

    def on_start(self, loop: Loop) -> None:
        if self.at == "start":
            raise self.error

    def on_step(self, loop: Loop) -> None:
        if self.at == "step":
            raise self.error

    def on_end(self, loop: Loop) -> None:
        if self.at == "end":
            raise self.error


@pytest.mark.parametrize("at", ["start", "step", "end"])
def test_an_error_of_a_callback_ends_the_loop_and_all_hear_of_its_end(at: str):
    calls: list[Call] = []
    error = ValueError("mine")
    with counting() as trainer:
        callbacks = [Recorder("a", calls), Broken(error, at), Recorder("b", calls)]
        with pytest.raises(ValueError, match="mine"):
            Loop(trainer, callbacks).run()
        trainer.train()  # it is not the trainer that has failed
    ends = [call for call in calls if call[1] in ("fault", "end")]
    faults = [("a", "fault", error), ("b", "fault", error)]
    expected = {
        "start": [("a", "fault", error), ("a", "end", error)],
        "step": [*faults, ("b", "end", error), ("a", "end", error)],
        "end": [("b", "end", None), ("a", "end", error)],
    }
    assert ends == expected[at]


def test_an_error_of_the_environments_says_how_far_the_loop_came():
    env = counting_factory(2)
    envs = env.build(2, 0)
    envs[1].step = lambda action: 1 / 0 if envs[1].step_count == 3 else type(envs[1]).step(envs[1], action)
    calls: list[Call] = []
    with counting(EnvFactory(lambda n, first: envs, num_envs=2)) as trainer:
        loop = Loop(trainer, [Recorder("a", calls)])
        with pytest.raises(WorkerError):
            loop.run()
        assert isinstance(loop.error, WorkerError)
        assert loop.timestep == 3
    assert [what for _, what, _ in calls][-2:] == ["fault", "end"]


def test_a_loop_goes_on_from_a_checkpoint_with_its_callbacks(tmp_path: Path):
    calls: list[Call] = []

    class Saving(Callback):
        every = 12

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 12:
                loop.save(tmp_path / "checkpoint")

    def loop_of(trainer: StepTrainer[Any]) -> Loop:
        return Loop(trainer, [Recorder("a", calls, 1), Recorder("b", calls), Saving()], metrics_every=5)

    with noisy() as trainer:
        loop_of(trainer).run()
        expected = trainer.agent_files()
    assert ("b", "checkpoint", "checkpoint") in calls
    calls.clear()
    with noisy() as trainer:
        trainer.loop_state["mine"] = "is replaced"
        loop = loop_of(trainer)
        assert loop.load(tmp_path / "checkpoint") == 12
        a, b = loop.callbacks[:2]
        assert isinstance(a, Recorder)
        assert isinstance(b, Recorder)
        assert (a.count, b.count) == (12, 12)
        assert "mine" not in trainer.loop_state
        loop.run()
        assert_same(trainer.agent_files(), expected)
    assert calls[0] == ("a", "start", 12)
    assert [value[0] for who, what, value in calls if (who, what) == ("a", "step") and value[1]] == [
        15,
        20,
        25,
        30,
        35,
        40,
    ]


def test_what_a_loop_has_to_remember_is_plain_data(tmp_path: Path):
    with noisy() as trainer:
        trainer.loop_state = {"best": 1.5, "levels": [1, 2], "none": None, "odd": float("nan")}
        trainer.save(tmp_path / "one")
        trainer.loop_state = {1: "a number as a key"}  # type: ignore[dict-item]
        with pytest.raises(CheckpointError, match="loop_state cannot be kept"):
            trainer.save(tmp_path / "two")
        trainer.loop_state = {"trainer": trainer}
        with pytest.raises(CheckpointError, match="loop_state cannot be kept"):
            trainer.save(tmp_path / "two")
        assert not (tmp_path / "two").exists()
        trainer.load(tmp_path / "one")
        assert repr(trainer.loop_state) == "{'best': 1.5, 'levels': [1, 2], 'none': None, 'odd': nan}"


def test_refusals():
    with counting() as trainer:
        wrong: Any = print
        with pytest.raises(ConfigError, match="is not a callback"):
            Loop(trainer, [wrong])
        with pytest.raises(ConfigError, match=r"Recorder\.every is 0"):
            Loop(trainer, [Recorder("a", [], every=0)])
        with pytest.raises(ConfigError, match="metrics_every is 0"):
            Loop(trainer, metrics_every=0)


def test_a_checkpoint_is_not_written_before_all_callbacks_were_called(tmp_path: Path):
    class Early(Callback):
        def on_step(self, loop: Loop) -> None:
            assert not loop.is_settled
            with pytest.raises(LifecycleError, match="before all callbacks were called"):
                loop.save(tmp_path / "checkpoint")

    calls: list[Call] = []
    with noisy(timesteps=3) as trainer, Loop(trainer, [Early(), Recorder("a", calls)]) as loop:
        for timestep in loop:
            trainer.train(timestep=timestep)
            with pytest.raises(LifecycleError, match="before all callbacks were called"):
                loop.save(tmp_path / "checkpoint")
        assert loop.is_settled
        loop.save(tmp_path / "checkpoint")
    assert steps(calls, "a") == [1, 2, 3]


def test_an_error_in_the_body_of_your_loop_is_told_and_the_first_one_is_raised(caplog: pytest.LogCaptureFixture):
    calls: list[Call] = []
    broken = Broken(OSError("no disk"), "end")

    def yours(trainer: StepTrainer[Any]) -> None:
        with Loop(trainer, [Recorder("a", calls), broken, Recorder("b", calls)]) as loop:
            for timestep in loop:
                trainer.train(timestep=timestep)
                raise ValueError("mine")

    with counting() as trainer, pytest.raises(ValueError, match="mine"):
        yours(trainer)
    assert [(who, what) for who, what, _ in calls[2:]] == [("a", "fault"), ("b", "fault"), ("b", "end"), ("a", "end")]
    assert all(str(error) == "mine" for _, _, error in calls[2:])
    assert "on_end raised at the end: OSError: no disk" in caplog.text


def test_a_loop_has_to_be_entered():
    with counting() as trainer:
        loop = Loop(trainer)
        with pytest.raises(LifecycleError, match="with Loop"):
            next(iter(loop))
        with pytest.raises(LifecycleError, match="with Loop"):
            next(loop.groups())


def test_a_loop_begins_where_its_trainer_is():
    calls: list[Call] = []
    with counting() as trainer:
        trainer.run(15, timestep=0)
        Loop(trainer, [Recorder("a", calls, every=1)]).run()
        Loop(trainer, [Recorder("b", calls)]).run()
    assert steps(calls, "a") == [16, 17, 18, 19, 20]
    assert [what for who, what, _ in calls if who == "b"] == ["start", "end"]


def test_a_reason_to_stop_later_is_none_before():
    reasons = []

    class Stop(Callback):
        every = 5

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 5:
                loop.stop("later", at=12)
            reasons.append((loop.timestep, loop.stop_reason))

    with counting() as trainer:
        Loop(trainer, [Stop()], metrics_every=50).run()
    assert {reason for timestep, reason in reasons if timestep < 12} == {""}
    assert reasons[-1] == (12, "later")


def test_an_error_of_a_callback_says_which_and_when(caplog: pytest.LogCaptureFixture):
    with counting() as trainer, pytest.raises(ValueError, match="mine") as caught:
        Loop(trainer, [Broken(ValueError("mine"), "step")], metrics_every=1).run()
    assert caught.value.__notes__ == ["in the callback Broken.on_step, at timestep 1"]

    class Misspelt(Callback):
        def on_steps(self, loop: Loop) -> None:
            pass

        def on_my_own(self) -> None:
            pass

    assert [message.partition(".Misspelt")[2] or message for message in caplog.messages][-1].endswith(
        "on_steps is never called; did you mean on_step?"
    )
