"""Lockstep against RLlib, TorchRL and skrl: HalfCheetah-v5 with PPO, all in one run.

Every contestant is its own process, in its own virtual environment if it pins other versions than ours. Contestants
take turns; the others wait for a line of input. `make bench-peers` sets everything up and runs this script, which
writes its section of RESULTS.md. The contestants are in `peers/`.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from measuring import ratios, take_turns
from report import describe_machine, spread, table, write_section

ROOT = Path(__file__).parents[1]
START_TIMEOUT, TURN_TIMEOUT, STOP_TIMEOUT = 180.0, 120.0, 60.0  # seconds
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NPROC": "1", "RAY_USAGE_STATS_ENABLED": "0"}
REFERENCE = "RLlib: one agent, 2 env runners"
CONTESTANTS = {
    REFERENCE: (".venv-rllib", "rllib_ppo.py"),
    "TorchRL: one agent, 2 collector processes": (".venv-torchrl", "torchrl_ppo.py"),
    "skrl: two agents, StepTrainer": (".venv", "skrl_ppo.py", "step"),
    "skrl: two agents, ParallelTrainer": (".venv", "skrl_ppo.py", "parallel"),
    "ours: two agents, one process, `train()`": (".venv", "lockstep_ppo.py", "local", "train"),
    "ours: two agents, 2 actors, `train()`": (".venv", "lockstep_ppo.py", "ray", "train"),
    "ours: two agents, 2 actors, `run(n)`": (".venv", "lockstep_ppo.py", "ray", "run"),
}
WORK = """64 HalfCheetah-v5 environments, stepped one after the other, 32 in each of two processes or all in one (skrl:
always in one); rollouts of 32 steps, 4 epochs of 4 mini-batches, 2x64 tanh units for the policy and for the value,
learning rate 3e-4, no normalisation of observations, one compute thread per process. A turn is 4 rollouts, 8,192
environment steps. A single agent does 16 optimiser steps per rollout of 2,048 rows, with 512 rows each (RLlib 17,
because of rows that it adds); each of two agents does 16 from 1,024 rows, with 256 rows each. So every contestant
learns from every row four times."""


class Contestant:
    """Process that does a repetition for each line it receives and reports how long it took."""

    def __init__(self, name: str, command: Sequence[str], directory: Path) -> None:
        """Start the process and wait until it is warm. Everything that it writes stays in `directory`."""
        directory.mkdir()
        self._name, self._log = name, directory / "stderr.txt"
        home = {variable: str(directory) for variable in ("HOME", "TMPDIR", "RAY_TMPDIR")}
        path = os.pathsep.join(filter(None, (str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH"))))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=directory,
                env={**os.environ, **ENVIRONMENT, **home, "PYTHONPATH": path},
            )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.versions: dict[str, str] = self._answer(START_TIMEOUT)
            self._tree = self._find_tree()
            self._cpu_seconds: dict[int, float] = {}
        except BaseException:
            self._end()
            raise

    def measure(self) -> float:
        """Do a repetition and return its environment steps per second."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        answer = self._answer(TURN_TIMEOUT)
        return answer["env_steps"] / answer["seconds"]

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process and of all processes that it had started when it was ready."""
        for process in self._tree:
            with suppress(psutil.NoSuchProcess):
                self._cpu_seconds[process.pid] = sum(process.cpu_times()[:2])
        return sum(self._cpu_seconds.values())

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _answer(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
            what = f"ended with exit code {self._process.wait(STOP_TIMEOUT)}" if not line else ""
        except queue.Empty:
            line, what = "", f"did not answer within {timeout} s"
        if not line:
            log = [text for text in self._log.read_text(errors="replace").splitlines() if text.strip()]
            raise RuntimeError("\n".join((f"{self._name} {what}; its last lines:", *log[-40:])))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _find_tree(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _end(self) -> None:
        """Let the process end by itself, then end what is left of its process tree."""
        tree = self._find_tree()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            print(f"{self._name} did not end within {STOP_TIMEOUT} s", file=sys.stderr)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            _, tree = psutil.wait_procs(tree, timeout=5)
            for process in tree:
                end(process)
        self._process.wait(STOP_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()


def idle_shares(contestants: Mapping[str, Contestant], turns: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Return the share of a core that each contestant uses during one turn of all others."""
    used = dict.fromkeys(contestants, 0.0)
    waited = dict.fromkeys(contestants, 0.0)
    for name, turn in turns.items():
        before = {other: contestant.cpu_seconds() for other, contestant in contestants.items() if other != name}
        start = time.perf_counter()
        turn()
        for other, seconds in before.items():
            used[other] += contestants[other].cpu_seconds() - seconds
            waited[other] += time.perf_counter() - start
    return {name: used[name] / waited[name] for name in contestants}


def run(repetitions: int) -> str:
    """Let all contestants take turns, and return the section in Markdown."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True)))
        contestants: dict[str, Contestant] = {}
        for name, (environment, script, *arguments) in CONTESTANTS.items():
            print(f"starting {name}", file=sys.stderr, flush=True)
            python, path = ROOT / environment / "bin" / "python", ROOT / "benchmarks" / "peers" / script
            command = [str(python), str(path), *arguments]
            contestant = Contestant(name, command, directory / str(len(contestants)))
            contestants[name] = stack.enter_context(contestant)
        turns = {name: contestant.measure for name, contestant in contestants.items()}
        idle = idle_shares(contestants, turns)
        rates = take_turns(turns, repetitions)
        return write(rates, idle, {name: contestant.versions for name, contestant in contestants.items()})


def write(rates: Mapping[str, Sequence[float]], idle: Mapping[str, float], versions: Mapping[str, Any]) -> str:
    rows = [
        (name, spread(values, 0), spread(ratios(values, rates[REFERENCE]), 2), f"{100 * idle[name]:.1f} %")
        for name, values in rates.items()
    ]
    columns = (
        "what",
        "env-steps/s: median (spread)",
        "env-steps/s / RLlib's, turn by turn",
        "of a core, while others run",
    )
    libraries = {name.partition(":")[0]: ", ".join(map(" ".join, found.items())) for name, found in versions.items()}
    repetitions = len(rates[REFERENCE])
    return "\n".join(
        (
            f"{describe_machine()}; `make bench-peers`, {repetitions} repetitions in turns.\n",
            f"{WORK}\n",
            f"{table(columns, rows)}\n",
            *(f"- {library}: {found}" for library, found in libraries.items()),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    text = run(parser.parse_args().repetitions)
    print(text)
    write_section("peers", text)


if __name__ == "__main__":
    main()
