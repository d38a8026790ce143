"""Ray that a trainer starts: shared by trainers, shut down with the last one, too small, or shut down by the user."""

from __future__ import annotations

import re

from tests.support.processes import python
from tests.support.schedule import only_long

HEAD = """
from tests.support.processes import still_alive
from tests.ray.test_ray import *
import gymnasium, psutil, ray, warnings

class Agent(NullAgent):
    def __init__(self, scope): super().__init__(); self.count = 0
    def post_interaction(self, *, timestep, timesteps): self.count += 1

class Env(CountingEnv): pass

class Registered(Env):
    def __init__(self): super().__init__(0)

gymnasium.register("Mine-v0", Registered)

def trainer(**options):
    env = EnvFactory(lambda n, first: [Env(first + i) for i in range(n)], num_envs=2)
    return trainer_of(env, **{"agents": Agent, "orchestrator": "ray", **options})

def is_gone():
    return not ray.is_initialized() and not still_alive(psutil.Process().children(recursive=True))
"""

SHARED = """
first, second = trainer(), trainer(agents=RecordingAgent())
first.train()
assert type(first.agents[0]) is Agent
print("classes of __main__:", first.agents[0].count)
first.close()
second.train()
mine = trainer_of(make_env("Mine-v0", num_envs=2, framework="warp"), NullAgent, "ray")
print("registered in __main__:", mine.train()[0].numpy()[:, 2].tolist())
mine.close()
print("after another's end:", len(second.agents[0].records()))
second.close()
print("after the last one's end:", is_gone())
"""

LOST = """
try:
    trainer_of(counting_factory(500), [NullAgent] * 500, "ray")
except ClusterError as error:
    print(error)
print("after a start that failed:", is_gone())
first = trainer()
try:  # Ray was started by another trainer, so that it does not grow
    trainer_of(counting_factory(500), [NullAgent] * 500, "ray")
except ClusterError as error:
    print(error)
ray.shutdown()
try:
    first.train()
except ClusterError as error:
    print(error)
first.close()
print("after a shutdown:", is_gone())
second = trainer()
ray.shutdown()
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="warning")
third = trainer()
second.close()
third.train()
third.close()
print("the user's own:", ray.is_initialized())
ray.shutdown()
"""


def check_prints(program: str, expected: list[str]) -> str:
    """Run a program, check how its lines begin, and return its messages."""
    done = python("-c", HEAD + program)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith(("Warp ", "  "))]  # without Warp's output
    assert len(lines) == len(expected), done.stdout
    for line, begin in zip(lines, expected, strict=True):
        assert line.startswith(begin)
    return done.stderr


def test_ray_that_was_started_here_is_shared_and_shut_down():
    """Also: ``__main__`` has classes and environments."""
    messages = check_prints(
        SHARED,
        [
            "classes of __main__: 1",
            "registered in __main__: [1.0, 1.0]",
            "after another's end: 1",
            "after the last one's end: True",
        ],
    )
    said = [line for line in messages.splitlines() if line.startswith("lockstep: ")]
    assert said[0] == "lockstep: starting Ray on this machine ..."
    ready = [line for line in said if " ready after " in line]  # a slow start also says what it waits for
    assert re.fullmatch(r"lockstep: Ray is ready after \d+\.\d s", ready[0])
    assert re.fullmatch(r"lockstep: 1 worker is ready after \d+\.\d s", ready[1])


@only_long
def test_ray_that_was_started_here_is_too_small_or_shut_down_by_the_user():
    """Too few CPUs are refused at once, a shutdown is reported, and a Ray that the user starts then stays."""
    check_prints(
        LOST,
        [
            "500 workers with 1 CPU each were requested, but Ray has",
            "after a start that failed: True",
            "500 workers with 1 CPU each were requested, but Ray has",
            "Ray was shut down while a trainer used it",
            "after a shutdown: True",
            "the user's own: True",
        ],
    )
