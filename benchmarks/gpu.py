"""Everything that is checked and measured on a GPU, in one script of less than 8 minutes.

    python benchmarks/gpu.py                       on a GPU: tests, step times, launches, waits, learning curves
    python benchmarks/gpu.py --device cpu --envs 16 --windows 1 --rollouts 1 --seeds 1    the script itself, on a CPU

It needs PyTorch, and uses JAX, Warp, skrl and rsl_rl where they are installed. The environments are those of
`tests/gpu/linear.py`. Contestants run one after the other; each figure is the median of windows of whole rollouts, with
the range.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch and JAX share the GPU

import torch
from gpu_counts import count_kernels, count_launches, floor
from gpu_peers import rsl_rl_stepper, skrl_stepper
from report import describe_machine, spread, table

from tests.gpu.linear import ACTION_SPACE, LINEAR, OBSERVATION_SPACE, make_agent
from workers.frameworks import load_framework

ROOT = Path(__file__).parents[1]
CFG: dict[str, Any] = {"timesteps": 10**6, "headless": True, "disable_progressbar": True}
LARGE = {"rollouts": 24, "learning_epochs": 5, "hidden_sizes": (256, 128, 64), "activation": "elu",
         "grad_norm_clip": 1.0, "value_clip": 0.2, "entropy_loss_scale": 0.005}  # fmt: skip
SMALL = {"rollouts": 32, "hidden_sizes": (64, 64), "activation": "tanh"}


def our_stepper(framework: str, args: Any, agents: int, cfg: dict[str, Any]) -> Any:
    """Return a trainer of ours, and a function that does one step."""
    module = importlib.import_module(f"trainer.{framework}")
    env = LINEAR[framework](args.envs, 0, args.device)
    trainer = module.StepTrainer(env=env, agents=[make_agent(framework, cfg, args.device)] * agents, cfg=CFG, seed=0)
    return trainer, trainer.train


def wait(framework: str, device: str) -> None:
    """Wait for everything that a framework has started on the device."""
    if framework == "jax":
        jax = importlib.import_module("jax")
        jax.block_until_ready(jax.numpy.zeros(()) + 1)
    elif framework == "warp":
        importlib.import_module("warp").synchronize_device(device)
    elif device != "cpu":
        torch.cuda.synchronize()


def milliseconds(step: Callable[[], Any], framework: str, args: Any, steps: int) -> list[float]:
    """Return milliseconds per call, for windows of `steps` calls after two that are not counted."""
    values = []
    for window in range(-2, args.windows):
        wait(framework, args.device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait(framework, args.device)
        if window >= 0:
            values.append((time.perf_counter() - start) / steps * 1e3)
    return values


def environment_stepper(framework: str, args: Any) -> Callable[[], Any]:
    """Return a function that steps the environments alone."""
    env = LINEAR[framework](args.envs, 0, args.device)
    state, _ = env.reset(seed=0)
    actions = state[:, :12] if framework != "warp" else env._empty(12)
    return lambda: env.step(actions)


def bare_jax_stepper(args: Any) -> Callable[[], Any]:
    """Return a function that does a whole rollout and its update in one compiled call."""
    make_iteration = importlib.import_module("bare_jax").make_iteration
    env = LINEAR["jax"](args.envs, 0, args.device)
    carry, iteration = make_iteration(env, rollouts=SMALL["rollouts"], epochs=4, mini_batches=4)
    kept = [carry]

    def step() -> None:
        kept[0] = iteration(kept[0])

    return step


def counted(agents: int) -> str:
    """Return a number of agents in words."""
    return f"{agents} agent{'s' * (agents > 1)}"


def measure(args: Any) -> list[list[str]]:
    """Return a row of the table for each contestant; one that fails says why."""
    rows: list[list[str]] = []

    def add(name: str, framework: str, make: Callable[[], Any], steps: int, per_call: int = 1) -> None:
        if framework not in args.only:
            return
        try:
            values = milliseconds(make(), framework, args, steps * args.rollouts // per_call or 1)
            rows.append([name, spread([value / per_call for value in values], 3)])
        except Exception as error:  # one contestant must not cost the results of the others
            rows.append([name, f"{type(error).__name__}: {str(error)[:200]}"])
        print(f"  {rows[-1][0]}: {rows[-1][1]} ms", flush=True)

    def ours(framework: str, agents: int, cfg: dict[str, Any]) -> None:
        held: list[Any] = []

        def make() -> Any:
            held[:] = our_stepper(framework, args, agents, cfg)
            return held[1]

        size = "-".join(map(str, cfg["hidden_sizes"]))
        add(f"ours, {framework}, {size}, {counted(agents)}", framework, make, cfg["rollouts"])
        if held:
            held[0].close()

    for framework in ("torch", "jax", "warp"):
        add(f"the environments alone, {framework}", framework, lambda f=framework: environment_stepper(f, args), 24)
    for agents in (1, 2, 8):
        ours("torch", agents, LARGE)
    for agents in (1, 8):
        add(f"skrl StepTrainer, {counted(agents)}", "torch", lambda n=agents: skrl_stepper(args, n, LARGE, CFG), 24)
    add("rsl_rl OnPolicyRunner", "torch", lambda: rsl_rl_stepper(args, LARGE), 24, 24)
    for framework in ("torch", "jax", "warp"):
        ours(framework, 1, SMALL)
    ours("jax", 2, SMALL)
    add("a bare jitted loop, JAX, 64-64", "jax", lambda: bare_jax_stepper(args), 32, 32)
    return rows


def learning(args: Any) -> list[list[str]]:
    """Return the mean reward of the last rollouts, on the device and on the CPU, over seeds."""
    rows = []
    for framework in args.only:
        module = importlib.import_module(f"trainer.{framework}")
        for device in dict.fromkeys((args.device, "cpu")):
            results = []
            for seed in range(args.seeds):
                env = LINEAR[framework](64, 0, device)
                agent = make_agent(framework, SMALL | {"learning_rate": 1e-3}, device)
                with module.StepTrainer(env=env, agents=[agent], cfg=CFG, seed=seed) as trainer:
                    trainer.collect_metrics()
                    for _ in range(args.learning_steps):
                        trainer.train()
                    [metrics] = trainer.collect_metrics()
                    results.append(metrics.get("Episode / Return (mean)", float("nan")))
            rows.append([framework, device, spread(results, 2)])
    return rows


def tests(args: Any) -> str:
    """Run the tests of a GPU; return the end of what they print."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-c", os.devnull, "--rootdir", str(ROOT),
               "--confcutdir", "tests/gpu", "-p", "no:cacheprovider", "tests/gpu"]  # fmt: skip
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+") as file:
        try:
            subprocess.run(
                command, cwd=ROOT, env=os.environ | {"LOCKSTEP_DEVICE": args.device, "PYTHONPATH": path}, stdout=file,
                stderr=subprocess.STDOUT, timeout=200,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            print("the tests took more than 200 s", flush=True)
        file.seek(0)
        return f"tests/gpu:\n{file.read()[-8000:]}"


def main() -> None:
    """Run what the command line asks for, and print a report in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="device of environments and agents")
    parser.add_argument("--envs", type=int, default=4096, help="number of environments")
    parser.add_argument("--windows", type=int, default=5, help="measured windows")
    parser.add_argument("--rollouts", type=int, default=4, help="rollouts in a window")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the learning curves")
    parser.add_argument("--learning-steps", type=int, default=480, help="timesteps of a learning curve")
    parser.add_argument("--only", nargs="+", choices=LINEAR, help="frameworks; all that are installed by default")
    parser.add_argument("--skip-tests", action="store_true", help="do not run tests/gpu")
    args = parser.parse_args()
    load_framework("torch").find_device(args.device)  # its error lists the devices that there are
    args.only = args.only or [name for name in LINEAR if importlib.util.find_spec(name)]
    faulthandler.dump_traceback_later(240, repeat=True)  # tells a compilation from a hang
    torch.set_float32_matmul_precision("highest")
    start = time.perf_counter()
    gpu = torch.cuda.get_device_name(args.device) if args.device != "cpu" else "no GPU"
    print(f"{gpu}; {describe_machine('torch')}; {args.envs} environments, {args.windows} windows")
    show(lambda: table(["what", "ms a step"], measure(args)))
    if "torch" in args.only:
        show(lambda: counts(args))
        show(lambda: floor(args, LARGE, OBSERVATION_SPACE.shape[0], ACTION_SPACE.shape[0]))
    show(lambda: table(["framework", "device", "return over seeds"], learning(args)))
    if not args.skip_tests:
        show(lambda: tests(args))
    print(f"{time.perf_counter() - start:.0f} s in all")


def show(part: Callable[[], str]) -> None:
    """Print a part of the report; one that fails must not cost the others."""
    try:
        print(f"\n{part()}\n", flush=True)
    except Exception:
        traceback.print_exc(file=sys.stdout)


def counts(args: Any) -> str:
    """Return the counts of kernels and launches of one agent."""
    trainer, step = our_stepper("torch", args, 1, LARGE)
    with trainer:
        kernels = count_kernels(trainer, step, LARGE["rollouts"])
        return f"{kernels}\n\n{count_launches(step, LARGE['rollouts'], args.device)}"


if __name__ == "__main__":
    main()
