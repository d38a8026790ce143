"""Scalars of `eval` have tags of their own, in every mode; an episode with steps of both kinds counts under neither."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.ray import RayOrchestrator
from tests.scope.test_tracking import FileWriter, SkrlLikeAgent
from tests.support.agents import NullAgent, RecordingTeam
from tests.support.envs import RenderedEnv, counting_factory
from tests.support.multi_agent_envs import SCRIPTS, TEAM, CountingTeamEnv, build_team, team_factory
from tests.support.parity import CFG, assert_same, step_trainer
from tests.support.schedule import FRAMEWORKS, full_or_short
from tests.support.skrl_agents import skrl_ppo
from trainer.torch import StepTrainer
from workers.agents.torch import PPO
from workers.envs import EnvFactory, make_env, wrap_env
from workers.types import Scope

ROWS, SCOPES = 5, [2, 3]
PLAN = ("train", 4), ("eval", 5), ("train", 8), ("eval", 6), ("eval", 3), ("train", 12)
"""Calls of each kind, one after the other."""

Collected = list[list[dict[str, float]]]


def collected(
    env: Any, agents: Any, framework: str = "torch", orchestrator: Any = "local", **options: Any
) -> Collected:
    """Return the scalars of each scope, after each part of the plan."""
    cfg = {**CFG, "timesteps": 40}
    with step_trainer(framework)(
        env=env, agents=agents, scopes=SCOPES, cfg=cfg, orchestrator=orchestrator, **options
    ) as trainer:
        rows = [trainer.collect_metrics()]
        for mode, count in PLAN:
            for _ in range(count):
                getattr(trainer, mode)()
            rows.append(trainer.collect_metrics())
    return rows[1:]


def episodes(parts: Collected) -> list[list[dict[str, float]]]:
    return [
        [
            {tag: value for tag, value in scope.items() if re.search(r"(Return|Length) \((mean|min|max)\)$", tag)}
            for scope in scopes
        ]
        for scopes in parts
    ]


def expected(lives: Sequence[Mapping[str, int]], reward: Any) -> list[list[dict[str, float]]]:
    """Return the scalars of the episodes after each part of the plan.

    Args:
        lives: For each row, the step of each agent's end, by name; ``""`` for a single agent.
        reward: Called with row, name, episode and step.
    """
    modes = [mode for mode, count in PLAN for _ in range(count)]
    parts = [part for part, (_, count) in enumerate(PLAN) for _ in range(count)]
    found: Any = [[defaultdict(list) for _ in SCOPES] for _ in PLAN]
    for row, ends in enumerate(lives):
        period = max(ends.values())
        for episode, begin in enumerate(range(0, len(modes), period)):
            team = 0.0
            for name, last in {**ends, "": period}.items():
                steps = range(1, last + 1)
                if name in ends:
                    returned = sum(reward(row, name, episode, step) for step in steps)
                    team += returned
                seen = set(modes[begin : begin + last])
                if len(seen) == 1 and begin + last <= len(modes):
                    group = ("Episode / " if seen == {"train"} else "Evaluation / ") + (f"{name} / " if name else "")
                    scalars = found[parts[begin + last - 1]][int(row >= SCOPES[0])]
                    scalars[f"{group}Return"].append(returned if name else team)
                    scalars[f"{group}Length"].append(last)
    return [[reduced(scope) for scope in scopes] for scopes in found]


def reduced(found: Mapping[str, list[float]]) -> dict[str, float]:
    tags = {}
    for tag, values in found.items():
        for kind in ("mean",) if tag.endswith("Length") else ("mean", "min", "max"):
            tags[f"{tag} ({kind})"] = float(getattr(np, kind)(values))
    return tags


def assert_close(given: Any, wanted: Any) -> None:
    assert [[sorted(scope) for scope in scopes] for scopes in given] == [
        [sorted(scope) for scope in scopes] for scopes in wanted
    ]
    for scopes, others in zip(given, wanted, strict=True):
        for scope, other in zip(scopes, others, strict=True):
            assert scope == pytest.approx(other)


def orchestrated(mode: str, env: EnvFactory, framework: str) -> tuple[Any, Any]:
    if mode.startswith("shared"):
        return wrap_env(env.build(ROWS, 0), framework=framework), RayOrchestrator(num_cpus=0.5)
    return env, "local" if mode == "local" else RayOrchestrator(num_cpus=0.5)


PAIRS = [*(("local", name) for name in FRAMEWORKS), ("sharded", "torch"), ("shared", "torch")]


@pytest.mark.parametrize(("mode", "framework"), full_or_short(PAIRS, PAIRS[:3]))
def test_episodes_of_a_single_agent(mode: str, framework: str, request: pytest.FixtureRequest):
    if mode != "local":
        request.getfixturevalue("ray_cluster")
    env, orchestrator = orchestrated(mode, counting_factory(ROWS), framework)
    parts = collected(env, [NullAgent] * 2, framework, orchestrator)
    lives = [{"": 3 + row % 4} for row in range(ROWS)]
    wanted = expected(lives, lambda row, _, episode, step: 1000 * row + 10 * episode + step / 10)
    assert_close(episodes(parts), wanted)
    tags = {tag for scopes in wanted for scope in scopes for tag in scope}
    assert {"Episode / Return (mean)", "Evaluation / Return (min)", "Evaluation / Length (mean)"} <= tags
    for (mode, _), scopes in zip(PLAN, parts, strict=True):  # times and infos, too
        for scope in scopes:
            others = {tag for tag in scope if not tag.startswith("Evaluation / ")}
            assert not (others if mode == "eval" else scope.keys() - others)
            prefix = "Evaluation / " if mode == "eval" else ""
            phases = {"Inference", "Env stepping", "Recording", "Post-interaction"}
            assert {f"{prefix}Stats / {phase} time (ms)" for phase in phases} | {f"{prefix}Info / r"} <= scope.keys()


@pytest.mark.parametrize(("mode", "framework"), full_or_short(PAIRS, [PAIRS[2]]))
def test_episodes_of_a_team(mode: str, framework: str, request: pytest.FixtureRequest):
    if mode != "local":
        request.getfixturevalue("ray_cluster")
    env, orchestrator = orchestrated(mode, team_factory(ROWS), framework)
    spaces = {name: CountingTeamEnv(0).action_space(name) for name in TEAM}
    parts = collected(env, [partial(RecordingTeam, spaces)] * 2, framework, orchestrator)
    lives = [{name: step for name, (step, _) in SCRIPTS[row % len(SCRIPTS)].items()} for row in range(ROWS)]
    wanted = expected(
        lives, lambda row, name, episode, step: 1000 * row + 100 * TEAM.index(name) + 10 * episode + step / 10
    )
    assert_close(episodes(parts), wanted)
    tags = {tag for scopes in wanted for scope in scopes for tag in scope}
    assert {
        "Evaluation / scout / Return (mean)",
        "Evaluation / Return (mean)",
        "Episode / tank / Length (mean)",
    } <= tags


def test_a_measurement_that_starts_midway_counts_whole_episodes_only():
    spaces = {name: CountingTeamEnv(0).action_space(name) for name in TEAM}
    for env, agent in (
        (counting_factory(1), NullAgent),
        (EnvFactory(build_team, num_envs=1), partial(RecordingTeam, spaces)),
    ):
        with StepTrainer(env=env, agents=agent, cfg=CFG) as trainer:
            lengths = []
            for calls in range(12):
                trainer.train()
                if calls:
                    lengths.append(trainer.collect_metrics()[0].get("Episode / Length (mean)"))
            # the first episode is unknown, all others are whole
            whole = 3 if agent is NullAgent else 5
            assert {length for length in lengths if length} == {whole}
            assert lengths[whole - 2] is None


def without_times(parts: Collected) -> Collected:
    return [[{tag: x for tag, x in scope.items() if "time (ms)" not in tag} for scope in scopes] for scopes in parts]


@pytest.mark.parametrize("is_shared", full_or_short([False, True], [False]))
def test_what_agents_track_in_evaluation_is_apart_in_every_mode(is_shared: bool, ray_cluster: None):
    def skrls(scope: Scope) -> Any:
        agent = skrl_ppo(scope.num_envs)
        agent.write_interval = 1000
        return agent

    def env() -> Any:
        return make_env("CartPole-v1", num_envs=ROWS, framework="torch")

    def ours(scope: Scope) -> Any:
        spaces = {"observation_space": env().observation_space, "action_space": env().action_space}
        return PPO(**spaces, num_envs=scope.num_envs, cfg={"rollouts": 4})

    local = collected(env(), [ours, skrls], seed=3)
    remote = env()
    if is_shared:
        remote.recipe = None
    other = collected(remote, [ours, skrls], orchestrator="ray", seed=3)
    assert_same(without_times(other), without_times(local))
    for (mode, _), scopes in zip(PLAN, local, strict=True):
        for scope in scopes:
            assert {tag.startswith("Evaluation / ") for tag in scope} == {mode == "eval"}
        instant = "Reward / Instantaneous reward (mean)"
        assert (f"Evaluation / {instant}" in scopes[1]) == (mode == "eval")
        assert (instant in scopes[1]) == (mode == "train")
    assert any("Loss / Policy loss" in scope for scope in local[0])


def test_collected_once_at_the_end_it_is_the_same(tmp_path: Path):
    """The change of mode itself keeps apart what is tracked."""
    agents = [lambda scope: SkrlLikeAgent(tmp_path / "never")] * 2
    cfg: Any = {**CFG, "timesteps": 40}
    with StepTrainer(env=counting_factory(ROWS), agents=agents, scopes=SCOPES, cfg=cfg) as trainer:
        trainer.collect_metrics()
        for mode, count in (("train", 3), ("eval", 4), ("train", 2)):
            for _ in range(count):
                getattr(trainer, mode)()
        scalars = trainer.collect_metrics()[0]
    # an agent reduces what it has tracked when it is read: 1, 2, 3; 4 to 7; 8, 9
    assert scalars["Loss / Mine"] == np.mean([2.0, 8.5])
    assert scalars["Evaluation / Loss / Mine"] == 5.5


def test_an_own_writer_gets_everything_as_before(tmp_path: Path):
    written: list[Any] = []
    scalars: list[dict[str, float]] = []
    for modes in (("train",) * 24, (("train",) * 3 + ("eval",) * 4) * 3 + ("train",) * 3):
        agent: Any = SkrlLikeAgent(tmp_path / f"{len(written)}", write_interval=6)
        with StepTrainer(env=counting_factory(ROWS), agents=agent, cfg=CFG) as trainer:
            trainer.collect_metrics()
            for timestep, mode in enumerate(modes):
                getattr(trainer, mode)(timestep=timestep)
            scalars.append(trainer.collect_metrics()[0])
            assert isinstance(agent.writer.own, FileWriter)
            written.append([row for row in agent.writer.own.written if "time" not in row[0]])
    assert written[0] == written[1]
    assert ("Loss / Mine", 2.5, 5) in written[0]
    assert scalars[0]["Loss / Mine"] == 11.5
    modes = (("train",) * 3 + ("eval",) * 4) * 3 + ("train",) * 3
    for mode, tag in (("train", "Loss / Mine"), ("eval", "Evaluation / Loss / Mine")):
        # reduced at each change of mode and at each write, after timesteps 5, 11, 17 and 23
        runs: dict[tuple[int, int], list[int]] = defaultdict(list)
        changes = 0
        for timestep, kind in enumerate(modes):
            changes += timestep > 0 and kind != modes[timestep - 1]
            if kind == mode:
                runs[changes, timestep // 6].append(timestep)
        assert scalars[1][tag] == pytest.approx(np.mean([np.mean(run) for run in runs.values()]))


def test_rendering_and_resetting_in_evaluation_have_tags_of_their_own():
    env = EnvFactory(lambda n, first: [RenderedEnv(first + i) for i in range(n)], num_envs=2)
    with StepTrainer(env=env, agents=NullAgent, cfg={**CFG, "headless": False}) as trainer:
        trainer.eval()
        tags = set(trainer.collect_metrics()[0])
    phases = ("Rendering", "Resetting")
    assert {f"Evaluation / Stats / {phase} time (ms)" for phase in phases} <= tags
    assert not {f"Stats / {phase} time (ms)" for phase in phases} & tags
