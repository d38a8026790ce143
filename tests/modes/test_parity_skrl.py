"""skrl's agents and environments give the same numbers under skrl's StepTrainer and under ours."""

from __future__ import annotations

import copy

import gymnasium
import pytest
import skrl.trainers.torch.step as skrl_step

from tests.support.parity import CFG, assert_same, copied_outputs
from tests.support.skrl_agents import (
    ROLLOUTS,
    FixedPolicy,
    Policy,
    seed_everything,
    skrl_cartpole,
    skrl_ppo,
    skrl_wrap_env,
    weights,
)
from trainer.torch import StepTrainer

STEPS = 320
assert STEPS // ROLLOUTS >= 3


def outputs_and_weights(kind, *, scopes, policy, env=None, mode="train"):
    seed_everything(7)
    env = env or skrl_cartpole(sum(scopes))
    agents = [skrl_ppo(size, policy) for size in scopes]
    before = [weights(agent) for agent in agents]
    cfg = {**CFG, "timesteps": STEPS}
    trainer = kind(env=env, agents=agents, scopes=list(scopes), cfg=cfg)
    outputs = [copied_outputs(getattr(trainer, mode)()) for _ in range(STEPS)]
    if kind is StepTrainer:
        trainer.close()
    after = [weights(agent) for agent in agents]
    changed = any((before[0][name] != after[0][name]).any() for name in before[0])
    assert changed == (mode == "train")
    return outputs, after


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("scopes", "policy"), [((5,), Policy), ((2, 3), FixedPolicy), ((2, 3), Policy)])
def test_same_numbers_as_skrl(scopes, policy, mode):
    theirs = outputs_and_weights(skrl_step.StepTrainer, scopes=scopes, policy=policy, mode=mode)
    ours = outputs_and_weights(StepTrainer, scopes=scopes, policy=policy, mode=mode)
    ended = sum((output[2] | output[3]).sum() for output in theirs[0])
    assert ended > 10
    assert_same(ours, theirs)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_single_environment_is_reset_explicitly_as_by_skrl(mode):
    def env():
        return skrl_wrap_env(gymnasium.make("CartPole-v1"), wrapper="gymnasium", verbose=False)

    theirs = outputs_and_weights(skrl_step.StepTrainer, scopes=(1,), policy=Policy, env=env(), mode=mode)
    ours = outputs_and_weights(StepTrainer, scopes=(1,), policy=Policy, env=env(), mode=mode)
    assert sum((output[2] | output[3]).sum() for output in theirs[0]) > 3
    assert_same(ours, theirs)


def test_comparison_sees_a_single_bit():
    outputs, _ = outputs_and_weights(StepTrainer, scopes=(5,), policy=Policy)
    other = copy.deepcopy(outputs)
    other[100][0].view("int32")[0, 0] ^= 1
    with pytest.raises(AssertionError):
        assert_same(outputs, other)
