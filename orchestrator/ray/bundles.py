"""Bundles: what each worker asks of its node."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from ray.util.placement_group import validate_placement_group

from workers.errors import ConfigError

__all__ = ["UNIT", "Amount", "Amounts", "Bundle", "Selector", "check_options", "make_bundles"]

if TYPE_CHECKING:
    Amount = float | Sequence[float]
    Amounts = Mapping[str, float] | Sequence[Mapping[str, float]]
    Selector = Mapping[str, str] | Sequence[Mapping[str, str]]
else:  # so that pydantic leaves them to `check_options`, whose messages are plainer than those for a union
    Amount = Amounts = Selector = Any

UNIT = 10_000
"""Ray counts resources in steps of 1 / 10,000."""

_MOST = 1e12
_RESERVED = {"CPU": "num_cpus", "GPU": "num_gpus"}
_UNSUPPORTED = ("memory", "object_store_memory")


class Bundle(NamedTuple):
    """What one worker asks of its node.

    Attributes:
        num_cpus: CPUs.
        num_gpus: GPUs.
        resources: Amounts of custom resources, by name.
        label_selector: What the labels of its node must be, by key, as Ray writes it.
    """

    num_cpus: float = 1
    num_gpus: float = 0
    resources: Mapping[str, float] = {}
    label_selector: Mapping[str, str] = {}

    @property
    def amounts(self) -> dict[str, float]:
        """All amounts but zeros, by Ray's names of the resources."""
        amounts = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in amounts.items() if amount}


def check_options(**options: Any) -> None:
    """Check options that are named as `Bundle`'s fields: one value, or a sequence with one for each worker.

    Raises:
        ConfigError: One of them is invalid.
    """
    checks = dict(zip(Bundle._fields, (_check_cpus, _check_gpus, _check_resources, _check_selector), strict=True))
    for name, value in options.items():
        if _is_sequence(value):
            for index, one in enumerate(value):
                checks[name](f"{name}[{index}]", one)
        else:
            checks[name](name, value)


def make_bundles(number: int, **options: Any) -> list[Bundle]:
    """Return the bundles of this number of workers, from options that `check_options` has checked.

    Raises:
        ConfigError: An option has values for another number of workers.
    """
    for name, value in options.items():
        if _is_sequence(value) and len(value) != number:
            raise ConfigError(
                f"RayOrchestrator: {name} has {len(value)} values, but there are {number} simultaneous agents; give "
                "one value for all of them, or one for each"
            )
    rows = [
        {name: value[index] if _is_sequence(value) else value for name, value in options.items()}
        for index in range(number)
    ]
    return [Bundle(**row) for row in rows]


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _refusal(place: str, value: Any, expected: str) -> ConfigError:
    each = "" if "[" in place else ", or a list with one for each simultaneous agent"
    return ConfigError(f"RayOrchestrator: {place} is {reprlib.repr(value)}; expected {expected}{each}")


def _check_cpus(place: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= _MOST:
        raise _refusal(place, value, "a number of at least 0")
    if 0 < float(value) * UNIT < 1:
        raise _refusal(place, value, f"0, or at least {1 / UNIT}, which is Ray's smallest amount")


def _check_gpus(place: str, value: Any) -> None:
    _check_cpus(place, value)
    if value > 1 and value != int(value):
        raise _refusal(place, value, "a part of one GPU, or a whole number of GPUs")


def _check_resources(place: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        raise _refusal(place, value, "a dictionary with the names and amounts of custom resources")
    for name, amount in value.items():
        if name in _RESERVED:
            raise ConfigError(f"RayOrchestrator: {place} has the key {name!r}; use {_RESERVED[name]} instead")
        if name in _UNSUPPORTED:
            raise ConfigError(f"RayOrchestrator: {place} has the key {name!r}; only custom resources are supported")
        _check_cpus(f"{place}[{name!r}]", amount)


def _check_selector(place: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for text in (*value, *value.values())):
        raise _refusal(place, value, "a dictionary with the keys of labels and texts that select their values")
    try:
        validate_placement_group(bundles=[{"CPU": 1}], bundle_label_selector=[dict(value)])
    except ValueError as error:
        raise ConfigError(f"RayOrchestrator: {place}: {error}") from error
