"""A state as bytes without pickle: arrays by name in safetensors, the rest as JSON in its metadata.

Any reader of safetensors (https://github.com/huggingface/safetensors) returns the arrays by their path in the state,
such as ``models/policy.network.0.weight``. The metadata entry ``"state"`` holds their nesting, and the numbers and
strings between them; see `workers.storage.state_tree`.
"""

from __future__ import annotations

import json
import reprlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load

from workers.errors import AgentError
from workers.frameworks import Framework, load_framework
from workers.storage.state_tree import DTYPES, TreeDecoder, TreeEncoder

__all__ = [
    "LARGEST_HEADER",
    "check_start",
    "conform_state",
    "decode_state",
    "encode_pieces",
    "encode_state",
    "nonfinite_values",
]

LARGEST_HEADER = 2**22
"""Most bytes of the header of an agent's state, which has about 200 for each array."""

_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES)}

_MOST_TOLD = 300
"""Number of characters that an error tells of a damaged file."""


def encode_state(
    state: Any, framework: Framework, pickled: list[Any] | None = None, *, largest_header: int = LARGEST_HEADER
) -> bytes:
    """Encode a state as bytes; see `encode_pieces`."""
    return b"".join(encode_pieces(state, framework, pickled, largest_header=largest_header))


def encode_pieces(
    state: Any, framework: Framework, pickled: list[Any] | None = None, *, largest_header: int = LARGEST_HEADER
) -> tuple[bytes | memoryview, ...]:
    """Encode a state as pieces of bytes that follow each other: the header, and the memory of each array.

    Nothing is copied that is on the host and contiguous: the pieces change with the state.

    Subclasses come back as what they derive from, such as a named tuple as a tuple, and arrays in C order. An object in
    two places comes back as two.

    Args:
        state: Dictionaries, lists, tuples, sets, deques and NumPy arrays of arrays (the framework's or NumPy's),
            numbers, strings, bytes, booleans, None.
        framework: The framework of the arrays.
        pickled: Takes everything else, in the order of `decode_state`; None: it is refused.
        largest_header: Most bytes of the header.

    Raises:
        NotPlainError: The state contains something else; the message says where.
        AgentError: The state cannot be written for another reason.
    """
    tree = TreeEncoder(framework, pickled)
    try:
        arrays = tree.arrays
        text = json.dumps(tree.encode(state))
        names = sorted(arrays, key=lambda name: (_RANKS[arrays[name].dtype], name.encode()))
        header = _header(text, {name: arrays[name] for name in names})
    except (RecursionError, ValueError) as error:  # a state that contains itself, an integer or key without a text form
        if isinstance(error, AgentError):
            raise
        raise AgentError(f"the state cannot be written: {type(error).__name__}: {error}") from error
    if len(header) - 8 > largest_header:
        raise AgentError(
            f"the state has so many arrays or values that its header has {len(header) - 8} bytes; expected at most "
            f"{largest_header}. Join arrays into larger ones"
        )
    return header, *(arrays[name].reshape(-1).view(np.uint8).data for name in names)


def _header(state: str, arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return what precedes the arrays in a safetensors file, in the words of that package."""
    entries: dict[str, Any] = {"__metadata__": {"state": state}}
    stop = 0
    for name, array in arrays.items():
        start, stop = stop, stop + array.nbytes
        dtype = DTYPES[array.dtype]
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, stop]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def decode_state(
    data: bytes, framework: Framework, pickled: Sequence[Any] = (), *, largest_header: int = LARGEST_HEADER
) -> Any:
    """Return the state that was passed to `encode_state`, with arrays of the framework.

    Args:
        data: Result of `encode_state`.
        framework: The framework of the arrays.
        pickled: What `encode_state` put into its `pickled`.
        largest_header: Most bytes of the header.

    Raises:
        AgentError: The bytes are damaged, or are not from `encode_state`.
    """
    check_start(data[:8], largest_header)
    try:
        arrays = load(data)
        size = int.from_bytes(data[:8], "little")
        tree = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["state"])
        return TreeDecoder(framework, arrays, pickled).decode(tree)
    except Exception as error:  # there is no end to what damaged bytes make a parser raise
        told = " ".join(f"{type(error).__name__}: {error}".split())[:_MOST_TOLD]
        raise AgentError(f"the file is not a stored state, or is damaged: {told}") from error


def check_start(start: bytes, largest_header: int = LARGEST_HEADER) -> None:
    """Check the first eight bytes of a state, which are the size of its header. The time to read one grows with it.

    Args:
        start: The bytes.
        largest_header: Most bytes of the header.

    Raises:
        AgentError: The state is damaged, or has a header that is too large.
    """
    size = int.from_bytes(start, "little")
    if len(start) < 8 or not 0 < size <= largest_header:
        raise AgentError(
            f"the file is not a stored state, or is damaged: its header has {size} bytes; expected at most "
            f"{largest_header}"
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


def _nonfinite(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = list(value.flat)
    if isinstance(value, (Mapping, list, tuple, set, frozenset, deque)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _nonfinite(item, f"{path}/{key}")
    elif isinstance(value, (float, complex, np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            yield path.lstrip("/") or "state", "NaN" if np.isnan(array).any() else "infinity"
