"""An agent's state as bytes without pickle: arrays by name in safetensors, the rest as JSON in its metadata.

Any reader of safetensors (https://github.com/huggingface/safetensors) returns the arrays by their path in the state,
such as ``models/policy.network.0.weight``. The metadata entry ``"state"`` holds their nesting, and the numbers and
strings between them.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from workers.errors import AgentError
from workers.frameworks import Framework, load_framework

__all__ = ["check_start", "conform_state", "decode_state", "encode_state", "nonfinite_values"]

_LARGEST_HEADER = 2**22
"""Most bytes of a header, which has about 200 for each array."""

_DTYPES = {"bool", "float16", "float32", "float64", "complex64"}
_DTYPES |= {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
"""Dtypes that `safetensors.numpy` both writes and reads."""

_MOST_TOLD = 300
"""Number of characters that an error tells of a damaged file."""


def encode_state(state: Any, framework: Framework) -> bytes:
    """Encode a state as bytes.

    Args:
        state: Dictionaries, lists and tuples of arrays (the framework's or NumPy's), numbers, strings, booleans, None.
        framework: The agent's framework.

    Raises:
        AgentError: The state contains something else; the message says where.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    try:
        tree = _encode(state, "", framework, arrays)
        data: bytes = save(arrays, metadata={"state": json.dumps(tree)})
    except (RecursionError, ValueError) as error:  # a state that contains itself, an integer or key without a text form
        if isinstance(error, AgentError):
            raise
        raise AgentError(f"the agent's state cannot be written: {type(error).__name__}: {error}") from error
    return data


def decode_state(data: bytes, framework: Framework) -> Any:
    """Return the state that was passed to `encode_state`, with arrays of the framework.

    Raises:
        AgentError: The bytes are damaged, or are not from `encode_state`.
    """
    check_start(data[:8])
    try:
        arrays = load(data)
        size = int.from_bytes(data[:8], "little")
        tree = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["state"])
        return _decode(tree, arrays, framework)
    except Exception as error:  # there is no end to what damaged bytes make a parser raise
        told = " ".join(f"{type(error).__name__}: {error}".split())[:_MOST_TOLD]
        raise AgentError(f"the file is not an agent's state, or is damaged: {told}") from error


def check_start(start: bytes) -> None:
    """Check the first eight bytes of a state, which are the size of its header. The time to read one grows with it.

    Raises:
        AgentError: The state is damaged, or has a header that is too large.
    """
    size = int.from_bytes(start, "little")
    if len(start) < 8 or not 0 < size <= _LARGEST_HEADER:
        raise AgentError(
            f"the file is not an agent's state, or is damaged: its header has {size} bytes; expected at most "
            f"{_LARGEST_HEADER}"
        )


def nonfinite_values(data: bytes) -> dict[str, str]:
    """Return what is not finite in a state: ``"NaN"`` or ``"infinity"`` by the path of the array or number.

    Args:
        data: Result of `encode_state`.

    Raises:
        AgentError: The bytes are damaged.
    """
    return dict(_nonfinite(decode_state(data, load_framework("numpy")), ""))


def conform_state(state: Any, like: Any, framework: Framework, path: str = "state") -> Any:
    """Return `state` with NumPy arrays that have the names and shapes of `like`.

    Raises:
        ValueError: The names or shapes differ.
        TypeError: A value is not numeric.
    """
    if isinstance(like, Mapping):
        names = reprlib.repr(list(state)) if isinstance(state, Mapping) else type(state).__name__
        if not isinstance(state, Mapping) or state.keys() != like.keys():
            raise ValueError(f"{path} is {names}; expected {list(like)}")
        return {key: conform_state(state[key], like[key], framework, f"{path}[{key!r}]") for key in like}
    array = framework.to_numpy(state) if framework.is_array(state) else np.asarray(state)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{path} is {reprlib.repr(state)}; expected numbers")
    shape = getattr(like, "shape", ())
    if (array.shape or (1,)) != (tuple(shape) or (1,)):  # not every framework has arrays without dimensions
        raise ValueError(f"{path} has shape {array.shape}; expected {tuple(shape)}")
    return array.reshape(shape)


def _encode(value: Any, path: str, framework: Framework, arrays: dict[str, npt.NDArray[Any]]) -> Any:
    """Return a node of the tree for JSON: a pair of its kind and its content."""
    if isinstance(value, Mapping):
        items = [[key, _encode(item, f"{path}/{key}", framework, arrays)] for key, item in value.items()]
        if wrong := [key for key in value if not isinstance(key, (str, int))]:
            raise AgentError(f"the agent's state has key {wrong[0]!r} at {path or '/'}; expected strings or integers")
        return ["dict", items]
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [_encode(item, f"{path}/{i}", framework, arrays) for i, item in enumerate(value)]]
    if framework.is_array(value) or isinstance(value, (np.ndarray, np.generic)):
        name = path.lstrip("/") or "state"
        while name in arrays or name == "__metadata__":  # keys may contain slashes; __metadata__ is reserved
            name += "'"
        arrays[name] = _to_numpy(value, path, framework)
        if framework.is_array(value):
            return ["array", name]
        return ["scalar" if isinstance(value, np.generic) else "numpy", name]
    if value is None or isinstance(value, (bool, int, float, str)):
        return ["value", value]
    raise AgentError(
        f"the agent's state has a {type(value).__qualname__} at {path or '/'}; expected arrays, numbers, strings, "
        "booleans or None, in dictionaries, lists or tuples"
    )


def _to_numpy(value: Any, path: str, framework: Framework) -> npt.NDArray[Any]:
    try:
        array = np.array(framework.to_numpy(value) if framework.is_array(value) else value, order="C")
    except (RuntimeError, TypeError) as error:  # a dtype or layout that NumPy lacks
        raise AgentError(f"the agent's state has an array at {path or '/'} that NumPy cannot hold: {error}") from error
    if array.dtype.name not in _DTYPES:
        raise AgentError(
            f"the agent's state has an array of dtype {array.dtype} at {path or '/'}; expected one of "
            f"{', '.join(sorted(_DTYPES))}"
        )
    return array


def _nonfinite(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _nonfinite(item, f"{path}/{key}")
    elif isinstance(value, (float, np.ndarray, np.generic)) and not np.isfinite(value).all():
        yield path.lstrip("/") or "state", "NaN" if np.isnan(value).any() else "infinity"


def _decode(node: Any, arrays: dict[str, npt.NDArray[Any]], framework: Framework) -> Any:
    kind, content = node
    if kind == "dict":
        if wrong := [key for key, _ in content if type(key) not in (str, int)]:
            raise TypeError(f"a key is a {type(wrong[0]).__name__}; expected strings or integers")
        return {key: _decode(item, arrays, framework) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_decode(item, arrays, framework) for item in content]
        return items if kind == "list" else tuple(items)
    if kind in ("array", "numpy", "scalar"):
        # each has one place: a small file with one array in many places would fill the memory
        array = arrays.pop(content)
        if kind == "array":
            return framework.from_numpy(array)
        return array if kind == "numpy" else array[()]
    if kind != "value" or isinstance(content, (dict, list)):
        raise ValueError(f"unknown kind {reprlib.repr(kind)} of a {type(content).__name__} in a state")
    return content
