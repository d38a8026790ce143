"""skrl's step trainer and rsl_rl's runner on the environments of `gpu.py`, with networks of the same sizes."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.gpu.linear import ACTION_SPACE, ACTIONS, LENGTH, OBSERVATION_SPACE, OBSERVATIONS, TorchLinear


def perceptron(sizes: tuple[int, ...]) -> nn.Sequential:
    """Return a perceptron with ELU."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ELU()]
    return nn.Sequential(*layers[:-1])


def skrl_stepper(args: Any, agents: int, cfg: dict[str, Any], trainer_cfg: dict[str, Any]) -> Callable[[], Any]:
    """Return a function that does one step of skrl's StepTrainer with its PPO."""
    from skrl.agents.torch.ppo import PPO, PPO_CFG
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
    from skrl.resources.preprocessors.torch import RunningStandardScaler
    from skrl.trainers.torch import StepTrainer

    spaces: dict[str, Any] = {"observation_space": OBSERVATION_SPACE, "action_space": ACTION_SPACE}

    class Policy(GaussianMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, **spaces, device=args.device)
            GaussianMixin.__init__(self)
            self.net = perceptron((OBSERVATIONS, *cfg["hidden_sizes"], ACTIONS))
            self.log_std = nn.Parameter(torch.zeros(ACTIONS))

        def compute(self, inputs: Any, role: str = "") -> Any:
            return self.net(inputs["observations"]), {"log_std": self.log_std}

    class Value(DeterministicMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, **spaces, device=args.device)
            DeterministicMixin.__init__(self)
            self.net = perceptron((OBSERVATIONS, *cfg["hidden_sizes"], 1))

        def compute(self, inputs: Any, role: str = "") -> Any:
            return self.net(inputs["observations"]), {}

    def make(num_envs: int) -> Any:
        names = ("rollouts", "learning_epochs", "grad_norm_clip", "value_clip", "entropy_loss_scale")
        options = PPO_CFG(mini_batches=4, learning_rate=3e-4, time_limit_bootstrap=True, **{n: cfg[n] for n in names})
        options.experiment.write_interval = options.experiment.checkpoint_interval = 0
        for name, size in (("observation", OBSERVATION_SPACE), ("value", 1)):
            setattr(options, f"{name}_preprocessor", RunningStandardScaler)
            setattr(options, f"{name}_preprocessor_kwargs", {"size": size, "device": args.device})
        models = {"policy": Policy().to(args.device), "value": Value().to(args.device)}
        memory = RandomMemory(memory_size=cfg["rollouts"], num_envs=num_envs, device=args.device)
        return PPO(models=models, memory=memory, **spaces, device=args.device, cfg=options)

    env: Any = TorchLinear(args.envs, 0, args.device)
    env.num_agents = 1
    sizes = [args.envs // agents] * agents
    made = [make(size) for size in sizes]
    scopes = {} if agents == 1 else {"scopes": sizes}
    options = trainer_cfg | {"close_environment_at_exit": False}
    trainer = StepTrainer(env=env, agents=made if agents > 1 else made[0], cfg=options, **scopes)
    counter = itertools.count()
    return lambda: trainer.train(timestep=next(counter))


def rsl_rl_stepper(args: Any, cfg: dict[str, Any]) -> Callable[[], Any]:
    """Return a function that does a rollout and an update of rsl_rl's OnPolicyRunner."""
    from rsl_rl.runners import OnPolicyRunner
    from tensordict import TensorDict

    class Env:
        num_envs, num_actions, max_episode_length = args.envs, ACTIONS, LENGTH
        device = torch.device(args.device)

        def __init__(self) -> None:
            self.cfg: Any = {}
            self.env = TorchLinear(args.envs, 0, args.device)
            self.state, _ = self.env.reset(seed=0)
            self.episode_length_buf = torch.zeros(args.envs, dtype=torch.long, device=args.device)

        def get_observations(self) -> Any:
            return TensorDict({"policy": self.state}, batch_size=[args.envs], device=args.device)

        def step(self, actions: Any) -> Any:
            self.state, reward, terminated, truncated, _ = self.env.step(actions)
            ended = (terminated | truncated)[:, 0].long()
            return self.get_observations(), reward[:, 0], ended, {"time_outs": truncated[:, 0].float()}

    model = {"class_name": "MLPModel", "hidden_dims": list(cfg["hidden_sizes"]), "activation": "elu",
             "obs_normalization": True}  # fmt: skip
    gaussian = {"class_name": "GaussianDistribution", "init_std": 1.0}
    algorithm = {"class_name": "PPO", "num_learning_epochs": cfg["learning_epochs"], "num_mini_batches": 4,
                 "learning_rate": 3e-4, "schedule": "fixed", "desired_kl": None, "entropy_coef": 0.005,
                 "max_grad_norm": 1.0}  # fmt: skip
    options = {"num_steps_per_env": cfg["rollouts"], "save_interval": 10**9, "check_for_nan": False,
               "obs_groups": {"actor": ["policy"], "critic": ["policy"]}, "torch_compile_mode": None,
               "actor": model | {"distribution_cfg": gaussian}, "critic": model, "algorithm": algorithm}  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        runner = OnPolicyRunner(Env(), options, log_dir=None, device=args.device)

    def learn() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            runner.learn(1)

    return learn
