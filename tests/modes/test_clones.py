"""Agents that are cloned and get other hyper-parameters have the same numbers in every mode."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.support.parity import assert_same, copied_outputs
from tests.support.resumed import MODES, PPO_CFG, build_trainer
from tests.support.schedule import FRAMEWORKS, IS_LONG

LONG = [(framework, case, MODES[1:]) for framework, case in product(FRAMEWORKS, ["CartPole", "Pendulum", "team"])]
SHORT = [("warp", "CartPole", ["shared"])]  # workers that own their environments are in tests/ray


def story(trainer: Any, group: str, changes: dict[str, float]) -> list[Any]:
    """Clone in the middle of a rollout and before the first one ends, both ways, and learn in between."""
    seen: list[Any] = []

    def go_on(steps: int) -> None:
        seen.extend(copied_outputs(trainer.train()) for _ in range(steps))
        seen.append(trainer.agent_files())

    trainer.clone(1, [0])
    go_on(PPO_CFG["rollouts"] + 3)
    trainer.clone(0, [1])
    trainer.set_hyperparameters(1, {f"{group}{name}": value for name, value in changes.items()})
    seen.append(trainer.hyperparameters())
    go_on(PPO_CFG["rollouts"])
    trainer.clone(1, [0])
    go_on(PPO_CFG["rollouts"] + 1)
    return seen


@pytest.mark.parametrize(("framework", "case", "modes"), LONG if IS_LONG else SHORT)
def test_a_population_is_the_same_in_every_mode(ray_cluster, framework, case, modes):
    group = "archers/" if case == "team" else ""
    changes = {"learning_rate": 0.0625}
    if framework != "jax":  # which would compile again
        changes |= {"entropy_loss_scale": 0.125, "discount_factor": 0.5, "grad_norm_clip": 0.25}
    with build_trainer(case, framework, "local") as trainer:
        expected = story(trainer, group, changes)
    values = next(one for one in expected if isinstance(one, list) and isinstance(one[0], dict))
    for name, value in changes.items():
        assert values[0][group + name] != values[1][group + name] == value
    for mode in modes:
        with build_trainer(case, framework, mode) as trainer:
            assert_same(story(trainer, group, changes), expected)
