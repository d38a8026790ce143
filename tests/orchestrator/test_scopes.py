"""Scopes: contiguous rows that cover the batch, errors that show the numbers, and one seed per scope."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import SeedSequence

from orchestrator.scopes import generate_equally_spaced_scopes, resolve_scopes
from workers.errors import ScopeError
from workers.types import Scope

SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=8)


def resolve(sizes: Any, num_envs: int, agents: int, seed: int | None = None) -> tuple[Scope, ...]:
    return resolve_scopes(sizes, num_envs=num_envs, num_simultaneous_agents=agents, seed=seed)


def test_by_hand():
    assert resolve([2, 1, 4], 7, 3) == (Scope(0, 0, 2), Scope(1, 2, 3), Scope(2, 3, 7))
    assert [scope.rows for scope in resolve(None, 8, 3)] == [(0, 2), (2, 4), (4, 8)]
    assert [scope.num_envs for scope in resolve((np.int64(3), 5), 8, 2)] == [3, 5]


@given(SIZES)
@settings(deadline=None)
def test_scopes_cover_every_row_once(sizes: list[int]):
    before = list(sizes)
    scopes = resolve(sizes, sum(sizes), len(sizes))
    assert sizes == before, "the caller's list was changed"
    assert [row for scope in scopes for row in range(*scope.rows)] == list(range(sum(sizes)))
    assert [scope.num_envs for scope in scopes] == before
    assert [scope.index for scope in scopes] == list(range(len(sizes)))
    assert all(type(number) is int for scope in scopes for number in scope.rows)


@given(st.integers(1, 200), st.integers(1, 40))
@settings(deadline=None)
def test_equally_spaced_as_in_skrl(num_envs: int, agents: int):
    from skrl.trainers.torch import generate_equally_spaced_scopes as oracle

    if agents > num_envs:
        with pytest.raises(ScopeError):
            generate_equally_spaced_scopes(num_envs=num_envs, num_simultaneous_agents=agents)
        return
    sizes = generate_equally_spaced_scopes(num_envs=num_envs, num_simultaneous_agents=agents)
    assert sizes == oracle(num_envs=num_envs, num_simultaneous_agents=agents)
    assert [scope.num_envs for scope in resolve(None, num_envs, agents)] == sizes
    assert [scope.num_envs for scope in resolve([], num_envs, agents)] == sizes


@pytest.mark.parametrize(
    ("sizes", "num_envs", "agents", "words"),
    [
        ([3, 0, 4], 7, 3, ["[3, 0, 4]", "contain 0", "at least 1"]),
        ([9, -2], 7, 2, ["[9, -2]", "contain -2", "at least 1"]),
        ([3, 5], 7, 2, ["[3, 5]", "add up to 8", "7 environments"]),
        ([3, 3], 7, 2, ["[3, 3]", "add up to 6", "7 environments"]),
        ([7], 7, 2, ["[7]", "have length 1,", "2 simultaneous agents"]),
        ([1, 2, 4], 7, 2, ["[1, 2, 4]", "have length 3,", "2 simultaneous agents"]),
        ([3.0, 4.0], 7, 2, ["[3.0, 4.0]", "such as [32, 32]"]),
        ([3, "4"], 7, 2, ["[3, '4']", "such as [32, 32]"]),
        ([(0, 3), (3, 7)], 7, 2, ["[(0, 3), (3, 7)]", "such as [32, 32]"]),
        (7, 7, 1, ["scopes is 7;", "such as [32, 32]"]),
        (None, 3, 5, ["agents (5)", "environments (3)"]),
        (None, 3, 0, ["are 0 simultaneous agents", "at least 1"]),
        (None, 3, -1, ["are -1 simultaneous agents", "at least 1"]),
        (None, 0, 1, ["agents (1)", "environments (0)"]),
    ],
)
def test_errors_have_their_numbers(sizes: Any, num_envs: int, agents: int, words: list[str]):
    given_sizes = list(sizes) if isinstance(sizes, list) else sizes
    with pytest.raises(ScopeError) as caught:
        resolve(sizes, num_envs, agents)
    assert [word for word in words if word not in str(caught.value)] == []
    assert sizes == given_sizes


@given(st.integers(0, 2**70), SIZES)
@settings(deadline=None)
def test_a_scopes_seed_depends_on_seed_and_index_only(seed: int, sizes: list[int]):
    seeds = [scope.seed for scope in resolve(sizes, sum(sizes), len(sizes), seed)]
    assert seeds == [int(SeedSequence(seed, spawn_key=(1, k)).generate_state(1)[0]) for k in range(len(sizes))]
    longer = resolve([*sizes, 1], sum(sizes) + 1, len(sizes) + 1, seed)
    assert [scope.seed for scope in longer][:-1] == seeds


def test_seeds_differ_and_are_absent_without_a_seed():
    seeds = {scope.seed for seed in (0, 1) for scope in resolve(None, 32, 32, seed)}
    assert len(seeds) == 64
    assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)
    assert [scope.seed for scope in resolve(None, 4, 2)] == [None, None]
