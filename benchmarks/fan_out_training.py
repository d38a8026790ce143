"""The gains of the fan-out: real environments and agents in workers, in one process, and in skrl's trainers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from barrier import Barrier
from contestants import make_ours, make_skrl
from halfcheetah import CHEETAH, NUM_ENVS, cheetah_env, skrls_agent
from measuring import CFG, Result, actors, judge, ratios, take_turns, timed, trainer
from plots import plot_phases, plot_workers
from report import spread, table

from workers.envs import make_env
from workers.types import Scope

CARTPOLE = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32), gymnasium.spaces.Discrete(2)
PHASES = {
    "act": "Stats / Inference time (ms)",
    "step": "Stats / Env stepping time (ms)",
    "record": "Stats / Recording time (ms)",
    "post-interaction": "Stats / Post-interaction time (ms)",
}


def our_agent(scope: Scope) -> Any:
    return make_ours("torch", *CARTPOLE, scope.num_envs)


def cartpole_env() -> Any:
    return make_env("CartPole-v1", num_envs=NUM_ENVS, framework="torch")


def skrls_trainer(count: int) -> Any:
    """Build skrl's StepTrainer with skrl's own wrapper."""
    import skrl
    from skrl.envs.wrappers.torch import wrap_env
    from skrl.trainers.torch import StepTrainer

    skrl.logger.setLevel("ERROR")
    env = gymnasium.make_vec("HalfCheetah-v5", num_envs=NUM_ENVS, vectorization_mode="sync")
    agents = [make_skrl("torch", *CHEETAH, NUM_ENVS // count) for _ in range(count)]
    scopes = [NUM_ENVS // count] * count
    return StepTrainer(env=wrap_env(env, wrapper="gymnasium", verbose=False), agents=agents, scopes=scopes, cfg=CFG)


def exhaust(iterate: Callable[[int], Any], steps: int) -> None:
    for _ in iterate(steps):
        pass


def rates(times: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Environment steps per second."""
    return {name: [NUM_ENVS / value * 1e6 for value in values] for name, values in times.items()}


def halfcheetah(repetitions: int) -> Result:
    """HalfCheetah-v5 with skrl's PPO under skrl's trainers and ours. A turn of 128 steps is 4 rollouts with updates."""
    from skrl_parallel import ParallelTrainerProcess

    steps = 128
    found: dict[int, dict[str, list[float]]] = {}
    for count in (1, 2, 4):
        with ExitStack() as cleanup:
            remote = cleanup.enter_context(trainer(cheetah_env(), [skrls_agent] * count, orchestrator=actors()))
            contestants = {
                "skrl's StepTrainer": timed(skrls_trainer(count).train, steps),
                "ours, train()": timed(remote.train, steps),
                "ours, run(64)": timed(partial(remote.run, 64), steps, calls=steps // 64),
                "ours, iterate(64)": timed(partial(exhaust, remote.iterate, 64), steps, calls=steps // 64),
            }
            if count == 2:
                local = cleanup.enter_context(trainer(cheetah_env(), [skrls_agent] * count))
                parallel = cleanup.enter_context(ParallelTrainerProcess("HalfCheetah-v5", NUM_ENVS, steps))
                contestants["ours, local"] = timed(local.train, steps)
                barrier = cleanup.enter_context(Barrier(count, NUM_ENVS))
                contestants["two bare processes, a byte every step"] = timed(barrier.train, steps)
                contestants["skrl's ParallelTrainer"] = parallel.measure
            found[count] = take_turns(contestants, repetitions)
        print(table(["workers", *found[count]], [[count, *map(partial(spread, digits=0), found[count].values())]]))
    two = found[2]
    names = ("train()", "run(64)", "iterate(64)")
    skrls = two["skrl's StepTrainer"]
    bars = [
        [f"{name} / skrl's StepTrainer", *judge(ratios(skrls, two[f"ours, {name}"]), least=bar)]
        for name, bar in zip(names, (1.55, 1.85, 1.75), strict=True)
    ]
    bare = two["two bare processes, a byte every step"]
    bars.append(["the bound of train(): bare processes / skrl's StepTrainer", spread(ratios(skrls, bare), 2), "", ""])
    parallel_ratio = ratios(two["skrl's ParallelTrainer"], two["ours, train()"])
    bars.append(["train() / skrl's ParallelTrainer", *judge(parallel_ratio, least=5)])
    lines = [
        [count, name, *(spread(values, 0) for values in (times[name], rates(times)[name]))]
        for count, times in found.items()
        for name in times
    ]
    text = f"""### HalfCheetah-v5

{NUM_ENVS} environments, skrl's PPO (rollouts 32, 4 epochs of 4 mini-batches) under each trainer. Ours has an actor for
each agent, except in "local". "Bare processes" are our workers, which only exchange a byte in every step: the cost of
the barrier alone. For skrl's ParallelTrainer, the iterations are timed without the start of its processes.

{table(["agents", "what", "µs a step", "env-steps/s"], lines)}

{table(["two agents: env-steps/s of", "ratio", "bar", "met"], bars)}

![throughput by number of workers](fan_out_workers.png)"""
    return Result(text, partial(plot_workers, {count: rates(times) for count, times in found.items()}))


def cartpole(repetitions: int) -> Result:
    """CartPole-v1 with our PPO: one process and two actors. A turn is 800 steps: 25 rollouts, 8 calls of `run`."""
    steps = 800
    with (
        trainer(cartpole_env(), [our_agent] * 2) as local,
        trainer(cartpole_env(), [our_agent] * 2, orchestrator=actors()) as remote,
    ):
        contestants = {
            "local": timed(local.train, steps),
            "two actors, train()": timed(remote.train, steps),
            "two actors, run(100)": timed(partial(remote.run, 100), steps, calls=steps // 100),
        }
        times = take_turns(contestants, repetitions)
    lines = [[name, spread(times[name], 0), spread(rates(times)[name], 0)] for name in times]
    bars = [
        [f"{name} / local", *judge(ratios(times["local"], times[name]), least=bar)]
        for name, bar in (("two actors, train()", 1.4), ("two actors, run(100)", 1.8))
    ]
    text = f"""### CartPole-v1

{NUM_ENVS} environments, two of our PPO agents (rollouts 32, 4 epochs of 4 mini-batches).

{table(["what", "µs a step", "env-steps/s"], lines)}

{table(["env-steps/s of", "ratio", "bar", "met"], bars)}"""
    return Result(text)


def phases(repetitions: int) -> Result:
    """CartPole-v1 in two actors: how the time of a step is spent."""
    steps = 320
    found: dict[str, list[float]] = {}
    with trainer(cartpole_env(), [our_agent] * 2, orchestrator=actors()) as ours:
        timed(ours.train, steps)()
        ours.collect_metrics()
        for _ in range(repetitions):
            whole = timed(ours.train, steps)()
            workers = [{name: each[tag] * 1e3 for name, tag in PHASES.items()} for each in ours.collect_metrics()]
            longest = max(sum(worker.values()) for worker in workers)
            for index, worker in enumerate(workers):
                for name, value in worker.items():
                    found.setdefault(f"{name}, worker {index}", []).append(value)
            found.setdefault("the rest: fan-out, and waiting for the slower", []).append(whole - longest)
            found.setdefault("the driver's step", []).append(whole)
    wholes = found["the driver's step"]
    lines = [[name, spread(values, 0), spread(ratios(values, wholes), 2)] for name, values in found.items()]
    text = f"""### Where the time of a step goes

CartPole-v1 as above, `train()` in two actors, {steps} steps in each repetition; mean µs per step, including updates,
from `collect_metrics()`. The workers' phases run in parallel. The rest is the driver's step minus the worker that
takes longer on average.

{table(["what", "µs a step", "share of the driver's step"], lines)}

![where the time of a step goes](fan_out_phases.png)"""
    medians = {name: statistics.median(values) for name, values in found.items()}
    return Result(text, partial(plot_phases, medians, list(PHASES)))
