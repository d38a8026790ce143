"""Population: population-based training of the simultaneous agents of a trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from trainer.callbacks.loop import Callback, Loop
from trainer.callbacks.view import RETURN
from trainer.checks import checked_count, is_number
from workers.errors import ConfigError

__all__ = ["Population"]

_logger = logging.getLogger("lockstep")

_COPIED = "Population / Copied from scope"


class Population(Callback):
    """Callback for population-based training (Jaderberg et al., https://arxiv.org/abs/1711.09846).

    Every `every` timesteps, the worst agents take over what better ones have learnt (`StepTrainer.clone`), with the
    hyper-parameters of those, each multiplied by one of `factors`. It is the truncation selection of the paper: a
    replaced agent copies one of the best at random, if its score is higher. A score is the mean of an agent's
    ``Episode / Return (mean)`` over the collections of metrics since the last time. An agent without one is neither
    copied nor replaced.

    The random choices depend on `seed` and the timestep alone, and the scores are kept in checkpoints. So the results
    are the same in all modes, and in a run that was resumed.

    Attributes:
        every: Number of timesteps between two times.
    """

    every: int

    def __init__(
        self,
        every: int,
        hyperparameters: Mapping[str, tuple[float, float]],
        *,
        fraction: float = 0.25,
        factors: tuple[float, ...] = (0.8, 1.25),
        seed: int = 0,
    ) -> None:
        """Set what changes, and how.

        Args:
            every: Number of timesteps between two times, at least 1: several updates of the agents.
            hyperparameters: The least and the largest value of each that may change, by name; see
                `StepTrainer.hyperparameters`. In a team, the name is that for all its groups.
            fraction: Part of the agents that are replaced, and of those that are copied, from 0 to 0.5; at least one.
            factors: Factors of a hyper-parameter, one of which is chosen.
            seed: Seed of the choices, at least 0.

        Raises:
            ConfigError: A value is out of range.
        """
        self.every = checked_count("every", every, least=1)
        self._seed = checked_count("seed", seed, least=0)
        if not is_number(fraction) or not 0 < fraction <= 0.5:
            raise ConfigError(f"fraction is {fraction!r}; expected more than 0 and at most 0.5")
        if not factors or not all(is_number(factor) and factor > 0 for factor in factors):
            raise ConfigError(f"factors are {factors!r}; expected at least one, and all more than 0")
        if not isinstance(hyperparameters, Mapping) or not hyperparameters:
            raise ConfigError(
                f"hyperparameters is {hyperparameters!r}; expected at least one with its bounds, such as "
                "{'learning_rate': (1e-5, 1e-2)}"
            )
        for name, bounds in hyperparameters.items():
            pair = bounds if isinstance(bounds, (tuple, list)) and len(bounds) == 2 else ()
            if not pair or not all(map(is_number, pair)) or pair[0] > pair[1]:
                raise ConfigError(f"hyperparameters[{name!r}] is {bounds!r}; expected the least and the largest value")
        self._bounds = {name: (float(low), float(high)) for name, (low, high) in hyperparameters.items()}
        self._fraction, self._factors = fraction, tuple(factors)
        self._sums: list[float] = []
        self._counts: list[int] = []

    def check(self, num_agents: int, metrics_every: int) -> None:
        """Check that a loop suits it, as far as that is known before there is one.

        Args:
            num_agents: Number of simultaneous agents.
            metrics_every: See `Loop`.

        Raises:
            ConfigError: There is only one agent, or metrics are collected too seldom.
        """
        if num_agents < 2:
            raise ConfigError("a population has several simultaneous agents; the trainer has one")
        if metrics_every > self.every:
            raise ConfigError(
                f"metrics are collected every {metrics_every} timesteps (logging.interval in a run) and the population "
                f"changes every {self.every}; expected metrics at least as often: returns are the scores"
            )

    def on_start(self, loop: Loop) -> None:
        """Check that the agents have these hyper-parameters.

        Raises:
            ConfigError: See `check`; or a hyper-parameter is missing.
            AgentError: Agents have no hyper-parameters that may change.
        """
        count = len(loop.trainer.scopes)
        self.check(count, loop.metrics_every)
        for scope, values in enumerate(loop.trainer.hyperparameters()):
            if missing := [name for name in self._bounds if not _matching(name, values)]:
                known = ", ".join(dict.fromkeys(name.rpartition("/")[2] for name in values))
                raise ConfigError(f"the agent of scope {scope} has no hyper-parameter {missing[0]!r}; it has {known}")
        if not self._counts:
            self._forget(count)

    def on_step(self, loop: Loop) -> None:
        """Note the returns; if it is time, let the worst agents copy the best."""
        for scope, scalars in enumerate(loop.scalars):
            if RETURN in scalars:
                self._sums[scope] += scalars[RETURN]
                self._counts[scope] += 1
        if loop.timestep % self.every:
            return
        scores = {scope: self._sums[scope] / n for scope, n in enumerate(self._counts) if n}
        self._forget(len(self._counts))
        generator = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(loop.timestep,)))
        ranked = sorted(scores, key=lambda scope: (-scores[scope], scope))
        count = min(max(1, int(len(self._counts) * self._fraction)), len(ranked) // 2)
        for target in ranked[len(ranked) - count :]:
            source = ranked[int(generator.integers(count))]
            if scores[source] > scores[target]:
                self._replace(loop, source, target, scores, generator)

    def _replace(
        self, loop: Loop, source: int, target: int, scores: Mapping[int, float], generator: np.random.Generator
    ) -> None:
        trainer = loop.trainer
        trainer.clone(source, [target])
        values = trainer.hyperparameters()[source]
        changed = {
            name: float(np.clip(values[name] * generator.choice(self._factors), low, high))
            for each, (low, high) in self._bounds.items()
            for name in _matching(each, values)
        }
        trainer.set_hyperparameters(target, changed)
        told = ", ".join(f"{name} {value:.3g}" for name, value in changed.items())
        _logger.info(
            "timestep %d: scope %d (return %.4g) continues from scope %d (return %.4g), with %s",
            *(loop.timestep, target, scores[target], source, scores[source], told),
        )
        if loop.scalars:
            loop.scalars[target][_COPIED] = float(source)

    def _forget(self, count: int) -> None:
        self._sums, self._counts = [0.0] * count, [0] * count

    def state_dict(self) -> Mapping[str, Any]:
        """Return the scores since the last time."""
        return {"sums": self._sums, "counts": self._counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` returned."""
        self._sums, self._counts = list(state["sums"]), list(state["counts"])


def _matching(name: str, values: Mapping[str, float]) -> list[str]:
    """Return the hyper-parameters of an agent that a name stands for: those of all groups of a team."""
    return [each for each in values if each.rpartition("/")[2] == name]
