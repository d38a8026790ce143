"""The overhead of the fan-out: with workers that do nothing, that sleep, and that return large outputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np
from bare import ActorCalls, SocketPeers
from measuring import Result, actors, judge, ratios, take_turns, timed, trainer
from no_op import NoOpEnv, SleepingEnv, no_op_agent
from plots import plot_payload, plot_scaling
from report import spread, table

from trainer.torch import StepTrainer
from workers.envs import EnvFactory, Wrapper

NUM_ENVS = 64
SLEEP = 0.02
NOT_AT_ALL = 2**62  # a threshold that no output reaches


def build_no_op(num_envs: int, _first_env: int) -> NoOpEnv:
    return NoOpEnv(num_envs)


def build_sleeping(num_envs: int, _first_env: int) -> SleepingEnv:
    return SleepingEnv(num_envs, SLEEP)


class WideEnv(NoOpEnv, Wrapper):
    """No-op environment whose arrays agents get without a copy: no agent here writes to them."""

    framework = "torch"
    gives_arrays_away = True
    num_envs = 0
    observation_space = None


def build_wide(columns: int, num_envs: int, _first_env: int) -> WideEnv:
    return WideEnv(num_envs, columns)


def no_op(repetitions: int) -> Result:
    """Workers that do nothing: our two transports, bare actor calls and bare sockets."""
    lines, bars = [], []
    for count in (1, 2, 4):
        env = EnvFactory(build_no_op, num_envs=NUM_ENVS)
        with (
            trainer(env, [no_op_agent] * count, orchestrator=actors()) as connection,
            trainer(env, [no_op_agent] * count, orchestrator=actors(transport="ray")) as calls,
            ActorCalls(count, NUM_ENVS) as bare_calls,
            SocketPeers(count, NUM_ENVS) as bare_sockets,
        ):
            contestants = {
                "ours, connection": timed(connection.train, 1000),
                "ours, actor calls": timed(calls.train, 150),
                "bare actor calls": timed(bare_calls.train, 150),
                "bare TCP sockets": timed(bare_sockets.train, 1000),
            }
            times = take_turns(contestants, repetitions)
        ours = times["ours, connection"]
        lines.append([count, *map(spread, times.values())])
        for name, bar in (("bare actor calls", 0.2), ("bare TCP sockets", 1.3)):
            bars.append([count, f"connection / {name}", *judge(ratios(ours, times[name]), most=bar)])
        print(table(["workers", *times], lines[-1:]), flush=True)
    text = f"""### Workers that do nothing

{NUM_ENVS} no-op environments in total; µs per `train()`. The bare contestants do the same phases and produce the same
four new torch tensors of the full batch, but have no errors, infos, sequence numbers or authentication.

{table(["workers", *times], lines)}

{table(["workers", "time", "ratio", "bar", "met"], bars)}"""
    return Result(text)


def step_and_cpu(ours: StepTrainer, steps: int) -> tuple[float, float]:
    """Milliseconds per step, and microseconds of this process's CPU time per worker and step."""
    before = time.process_time()
    elapsed = timed(ours.train, steps)() / 1e3
    return elapsed, (time.process_time() - before) / steps / ours.num_simultaneous_agents * 1e6


def scaling(repetitions: int) -> Result:
    """Environments that sleep: the time of a step by number of workers."""
    counts = (1, 2, 4, 8, 16, 32, 64)
    least = {16: 0.9, 64: 0.7}
    times: dict[int, list[float]] = {}
    lines = []
    for count in counts:
        env = EnvFactory(build_sleeping, num_envs=count)
        with trainer(env, [no_op_agent] * count, orchestrator=actors()) as ours:
            pairs = [step_and_cpu(ours, 20) for _ in range(repetitions + 1)]
        times[count], cpu = ([pair[i] for pair in pairs[1:]] for i in (0, 1))  # the first turn is not counted
        efficiency = [statistics.median(times[1]) / value for value in times[count]]
        cells = judge(efficiency, least=least[count]) if count in least else (spread(efficiency, 2), "", "")
        lines.append([count, spread(times[count], 2), *cells, spread(cpu)])
        print(table(["workers", "ms a step", "efficiency", "bar", "met", "µs of CPU"], lines[-1:]), flush=True)
    columns = ["workers", "ms a step", "efficiency", "bar", "met", "driver's CPU, µs a worker and step"]
    text = f"""### Number of workers

Environments that sleep {SLEEP * 1e3:g} ms in every step, one per worker. Efficiency is the time with one worker divided
by the time. The workers share the cores with the driver, even if there are more workers than cores.

{table(columns, lines)}

![time of a step by number of workers](fan_out_scaling.png)"""
    return Result(text, partial(plot_scaling, times, SLEEP * 1e3))


def train_with(threshold: int, ours: StepTrainer, steps: int) -> float:
    """Microseconds per step if outputs of `threshold` bytes or more go through shared memory."""
    from orchestrator.ray import shm

    shm.THRESHOLD = threshold
    return timed(ours.train, steps)()


def payload(repetitions: int) -> Result:
    """Outputs of 1 KB to 16 MB per step: with and without shared memory, and a bare copy of those bytes."""
    from orchestrator.ray import shm

    threshold = shm.THRESHOLD
    limits = {"ours": threshold, "always shared memory": 0, "never shared memory": NOT_AT_ALL}
    lines, bars = [], []
    times: dict[int, dict[str, list[float]]] = {}
    for kilobytes in (1, 16, 64, 256, 1024, 4096, 16384):
        columns = kilobytes * 1024 // 4 // NUM_ENVS
        steps = 10 if kilobytes >= 4096 else 100
        env = EnvFactory(partial(build_wide, columns), num_envs=NUM_ENVS)
        batch = np.ones((NUM_ENVS, columns), np.float32)
        with ExitStack() as cleanup:
            cleanup.callback(setattr, shm, "THRESHOLD", threshold)
            contestants: dict[str, Callable[[], float]] = {}
            # a trainer for each: shared memory that exists is used, whatever the threshold is then
            for name, limit in limits.items():
                ours = cleanup.enter_context(trainer(env, [no_op_agent] * 2, orchestrator=actors()))
                contestants[name] = partial(train_with, limit, ours, steps)
            contestants["bare copy"] = timed(batch.copy, steps)
            times[kilobytes] = take_turns(contestants, repetitions)
        took, copy = times[kilobytes]["ours"], times[kilobytes]["bare copy"]
        lines.append([f"{kilobytes:,} KB", *map(spread, times[kilobytes].values())])
        if kilobytes == 16384:
            bars.append(["16 MB: ours / bare copy", *judge(ratios(took, copy), most=3)])
        if kilobytes == 1024:
            beyond = [one - 3 * other for one, other in zip(took, copy, strict=True)]
            bars.append(["1 MB: ours less 3 bare copies, µs", *judge(beyond, most=150, digits=0)])
        print(table(["observations", *contestants], lines[-1:]), flush=True)
    text = f"""### Size of the outputs

Two workers that do nothing, {NUM_ENVS} environments, observations of the given total size per step; µs per `train()`.
The bare copy is `array.copy()` of the full batch's observations. A worker's outputs go through shared memory if they
have {threshold:,} bytes or more.

{table(["observations", *contestants], lines)}

{table(["what", "value", "bar", "met"], bars)}

![time of a step by size of the outputs](fan_out_payload.png)"""
    return Result(text, partial(plot_payload, times, threshold))
