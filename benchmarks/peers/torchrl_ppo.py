"""TorchRL's PPO, with two collector processes that each have a Gymnasium vector environment.

A vector environment that steps its copies one after the other is TorchRL's fastest option here: `SerialEnv` takes about
twice as long, and a process for each of 64 copies is of no use on a few cores.
"""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium
import torch
from protocol import (
    ENV_ID,
    EPOCHS,
    GAMMA,
    GRAD_CLIP,
    LAMBDA,
    LEARNING_RATE,
    MINI_BATCHES,
    NUM_ENVS,
    RATIO_CLIP,
    ROLLOUTS,
    STEPS,
    WORKERS,
    serve,
)
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import nn
from torchrl.collectors import MultiSyncCollector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.envs import DoubleToFloat, EnvBase, GymWrapper, TransformedEnv
from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

BATCH = NUM_ENVS * STEPS


def make_env() -> EnvBase:
    mode = gymnasium.vector.AutoresetMode.DISABLED  # TorchRL does the resets
    env = gymnasium.make_vec(
        ENV_ID, num_envs=NUM_ENVS // WORKERS, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}
    )
    return TransformedEnv(GymWrapper(env), DoubleToFloat(in_keys=["observation"]))


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    hidden = (nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    return nn.Sequential(*hidden, nn.Linear(64, outputs))


def make_networks() -> tuple[ProbabilisticActor, ValueOperator]:
    env = gymnasium.make(ENV_ID)
    inputs, outputs = env.observation_space.shape[0], env.action_space.shape[0]
    env.close()
    net = nn.Sequential(perceptron(inputs, outputs), AddStateIndependentNormalScale(outputs))
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    return actor, ValueOperator(perceptron(inputs, 1), in_keys=["observation"])


class Learner:
    """Learner that does one update after another, each on the collector's next batch."""

    def __init__(self, collector: MultiSyncCollector, actor: ProbabilisticActor, value: ValueOperator) -> None:
        self._collector = collector
        self._batches: Iterator = iter(collector)
        self._advantages = GAE(gamma=GAMMA, lmbda=LAMBDA, value_network=value)
        self._loss = ClipPPOLoss(
            actor,
            value,
            clip_epsilon=RATIO_CLIP,
            entropy_bonus=False,
            critic_coeff=1.0,
            loss_critic_type="l2",
            normalize_advantage=True,
        )
        self._optimizer = torch.optim.Adam(self._loss.parameters(), lr=LEARNING_RATE)
        self._buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(BATCH), sampler=SamplerWithoutReplacement(), batch_size=BATCH // MINI_BATCHES
        )

    def repeat(self) -> int:
        """Do a repetition."""
        return sum(self._iterate() for _ in range(ROLLOUTS))

    def _iterate(self) -> int:
        batch = next(self._batches)
        with torch.no_grad():
            self._advantages(batch)
        self._buffer.extend(batch.reshape(-1))
        updates = 0
        for _ in range(EPOCHS):
            for mini_batch in self._buffer:
                self._update(mini_batch)
                updates += 1
        self._collector.update_policy_weights_()
        assert updates == EPOCHS * MINI_BATCHES, updates
        return batch.numel()

    def _update(self, mini_batch: torch.Tensor) -> None:
        losses = self._loss(mini_batch)
        (losses["loss_objective"] + losses["loss_critic"]).backward()
        nn.utils.clip_grad_norm_(self._loss.parameters(), GRAD_CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()


def main() -> None:
    torch.set_num_threads(1)
    actor, value = make_networks()
    collector = MultiSyncCollector(
        [make_env] * WORKERS, actor, frames_per_batch=BATCH, total_frames=-1, cat_results=0, num_threads=1
    )
    try:
        learner = Learner(collector, actor, value)
        serve(learner.repeat, "torchrl", "tensordict", "torch", "gymnasium", "mujoco")
    finally:
        collector.shutdown()


if __name__ == "__main__":
    main()
