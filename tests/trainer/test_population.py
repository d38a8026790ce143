"""`Population`: who copies whom, known by hand, and the same in all modes and after a resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.ray import RayOrchestrator
from tests.support.envs import noisy_factory
from tests.support.parity import CFG, assert_same
from trainer.callbacks import Callback, Loop, Population
from trainer.torch import StepTrainer
from workers.agents.torch import PPO
from workers.errors import ConfigError
from workers.types import Scope

RATES = {"learning_rate": (1e-5, 1e-2)}
SMALL = {"rollouts": 8, "learning_epochs": 1, "mini_batches": 1, "hidden_sizes": (8,)}


def agent(scope: Scope) -> PPO:
    single = noisy_factory(1).build(1, 0)[0]
    spaces = {"observation_space": single.observation_space, "action_space": single.action_space}
    return PPO(**spaces, num_envs=scope.num_envs, cfg={**SMALL, "learning_rate": 1e-4 * (scope.index + 1)})


def trainer_of(num_agents: int = 4, timesteps: int = 60, **options: Any) -> StepTrainer[Any]:
    cfg: Any = {**CFG, "timesteps": timesteps}
    return StepTrainer(env=noisy_factory(2 * num_agents), agents=[agent] * num_agents, cfg=cfg, seed=3, **options)


class Returns(Callback):
    """Callback that replaces the returns of each scope by made-up ones; it comes before the population."""

    def __init__(self, *returns: float | None) -> None:
        self.returns = returns

    def on_step(self, loop: Loop) -> None:
        for scalars, value in zip(loop.scalars, self.returns, strict=False):
            scalars.pop("Episode / Return (mean)", None)
            if value is not None:
                scalars["Episode / Return (mean)"] = value


class Copies(Callback):
    """Callback that notes which scope copied which, and the learning rates; it comes after the population."""

    def __init__(self) -> None:
        self.found: list[tuple[int, dict[int, int]]] = []
        self.rates: list[float] = []

    def on_step(self, loop: Loop) -> None:
        key = "Population / Copied from scope"
        copied = {scope: int(scalars[key]) for scope, scalars in enumerate(loop.scalars) if key in scalars}
        if copied:
            self.found.append((loop.timestep, copied))
            self.rates = [values["learning_rate"] for values in loop.trainer.hyperparameters()]


@pytest.mark.parametrize(
    ("returns", "copied"),
    [
        ((1.0, 4.0, 3.0, 2.0), {0: 1}),
        ((None, 4.0, 3.0, 2.0), {3: 1}),  # without an episode there is no score
        ((None, None, None, 2.0), {}),
        ((2.0, 2.0, 2.0, 2.0), {}),  # nobody is better
    ],
)
def test_the_worst_copies_the_best(returns: tuple[float | None, ...], copied: dict[int, int]):
    copies = Copies()
    with trainer_of(timesteps=50) as trainer:
        Loop(trainer, [Returns(*returns), Population(20, RATES), copies], metrics_every=10).run()
        weights = [state["models"]["policy.network.0.weight"] for state in map(PPO.state_dict, trainer.agents)]
    assert copies.found == ([(20, copied), (40, copied)] if copied else [])
    for target, source in copied.items():
        rate = 1e-4 * (source + 1)
        assert copies.rates[target] in (pytest.approx(rate * 0.8), pytest.approx(rate * 1.25))
        assert copies.rates[source] == pytest.approx(rate)
        assert not np.array_equal(weights[target], weights[source])  # they went ways of their own again


def test_a_copy_has_the_weights_of_its_source():
    class Compare(Callback):
        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 20:
                found.extend(state["models"] for state in map(PPO.state_dict, loop.trainer.agents))
                loop.stop("compared")

    found: list[Mapping[str, Any]] = []
    with trainer_of(num_agents=2, timesteps=50) as trainer:
        Loop(trainer, [Returns(1.0, 2.0), Population(20, RATES), Compare()], metrics_every=10).run()
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[1])


def test_bounds_and_fractions():
    copies = Copies()
    with trainer_of(num_agents=8, timesteps=21) as trainer:
        bounds = {"learning_rate": (2e-3, 2e-3)}
        returns = Returns(*map(float, range(8)))
        Loop(trainer, [returns, Population(20, bounds, fraction=0.5), copies], metrics_every=20).run()
    ((_, copied),) = copies.found
    assert set(copied) == {0, 1, 2, 3}
    assert set(copied.values()) <= {4, 5, 6, 7}
    assert copies.rates[:4] == pytest.approx([2e-3] * 4)


def test_the_same_in_ray_and_after_a_resume(tmp_path: Path, ray_cluster: None):
    class Saving(Callback):
        every = 28

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 28:
                loop.save(tmp_path / "checkpoint")

    def ended(trainer: StepTrainer[Any], checkpoint: Path | None = None) -> Any:
        copies = Copies()
        loop = Loop(trainer, [Population(16, RATES), copies, Saving()], metrics_every=4)
        if checkpoint is not None:
            loop.load(checkpoint)
        loop.run()
        return copies.found, trainer.agent_files(), trainer.hyperparameters()

    with trainer_of() as trainer:
        expected = ended(trainer)
    assert [timestep for timestep, _ in expected[0]] == [16, 32, 48]
    with trainer_of(orchestrator=RayOrchestrator(num_cpus=0.5, start_timeout=120)) as trainer:
        assert_same(ended(trainer), expected)
    with trainer_of() as trainer:
        found, files, values = ended(trainer, tmp_path / "checkpoint")
    assert_same((expected[0][1:], *expected[1:]), (found, files, values))


def test_refusals():
    with trainer_of(num_agents=1) as trainer, pytest.raises(ConfigError, match="the trainer has one"):
        Loop(trainer, [Population(20, RATES)]).run()
    with trainer_of(num_agents=2) as trainer:
        with pytest.raises(ConfigError, match="no hyper-parameter 'rollouts'; it has learning_rate"):
            Loop(trainer, [Population(20, {"rollouts": (8, 16)})]).run()
        with pytest.raises(ConfigError, match="metrics are collected every 30 timesteps"):
            Loop(trainer, [Population(20, RATES)], metrics_every=30).run()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"every": 0}, "every is 0"),
        ({"fraction": 0.6}, "fraction is 0.6"),
        ({"factors": ()}, "factors are"),
        ({"factors": (0.0,)}, "factors are"),
        ({"hyperparameters": {}}, "hyperparameters is {}; expected at least one"),
        ({"hyperparameters": {"learning_rate": (1.0, 0.1)}}, "expected the least and the largest value"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            Population(**{"every": 20, "hyperparameters": RATES, **options})
