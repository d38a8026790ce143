"""The parts of an agent as plain data and back: what snapshots consist of."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from workers.errors import AgentError
from workers.frameworks import Framework
from workers.scalars import Scalars

__all__ = ["check_names", "fitting", "from_plain", "to_plain"]


def to_plain(value: Any, framework: Framework) -> Any:
    """Return a copy of nested dictionaries as plain data.

    Args:
        value: Dictionaries of arrays (the framework's or NumPy's), NumPy generators, `Scalars` and plain values.
        framework: The agent's framework.

    Returns:
        The same with NumPy arrays in place of the framework's, and with the states of generators and scalars.
    """
    if isinstance(value, Mapping):
        return {key: to_plain(item, framework) for key, item in value.items()}
    if framework.is_array(value) or isinstance(value, np.ndarray):
        return np.array(framework.to_numpy(value) if framework.is_array(value) else value)
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    return value.state() if isinstance(value, Scalars) else value


def from_plain(data: Any, like: Any, framework: Framework, path: str = "snapshot") -> Any:
    """Return what `to_plain` was given, with arrays of NumPy, new generators and new scalars.

    Args:
        data: Result of `to_plain`; its arrays may be the framework's.
        like: What names, types, shapes and dtypes must be equal to: another such value before `to_plain`.
        framework: The agent's framework.
        path: Where `data` is found, for errors.

    Raises:
        ValueError: The names, shapes or dtypes differ, or `data` is no state of a generator or of scalars.
        TypeError: A value is of another type.
    """
    if isinstance(like, Mapping):
        check_names(data, like, path)
        return {key: from_plain(data[key], like[key], framework, f"{path}[{key!r}]") for key in like}
    if isinstance(like, np.random.Generator):
        generator = copy.deepcopy(like)
        state = from_plain(data, like.bit_generator.state, framework, path)
        try:
            generator.bit_generator.state = state
        except (OverflowError, ValueError) as error:
            raise ValueError(f"{path} is no state of a {state['bit_generator']} generator: {error}") from error
        return generator
    if isinstance(like, Scalars):
        scalars = Scalars()
        scalars.load(data)
        return scalars
    if framework.is_array(like):
        like = framework.to_numpy(like)
    if framework.is_array(data):
        data = framework.to_numpy(data)
    if type(data) is not type(like):
        raise TypeError(f"{path} is {reprlib.repr(data)}; expected one of type {type(like).__name__}")
    if isinstance(like, np.ndarray) and (data.shape, data.dtype) != (like.shape, like.dtype):
        raise ValueError(
            f"{path} has shape {data.shape} and dtype {data.dtype}; expected {like.shape} and {like.dtype}"
        )
    return data


def check_names(data: Any, names: Mapping[Any, Any], path: str) -> None:
    """Check that `data` is a dictionary with exactly these names.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(data, Mapping) or data.keys() != names.keys():
        given = reprlib.repr(list(data)) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"{path} is {given}; expected {list(names)}")


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Turn the errors of checks into one that says that `what` does not fit.

    Raises:
        AgentError: A check failed.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise AgentError(f"the {what} does not fit this agent: {error}") from error
