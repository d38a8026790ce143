"""The nesting of a state as plain data for JSON, apart from its arrays.

A node of the tree is a pair of its kind and its content:

==================================  ==========================================================================
``dict``                            pairs of a string or an integer, and a node
``items``                           pairs of two nodes: a dictionary with other keys
``list tuple set frozenset``        nodes
``deque``                           its greatest length, and nodes
``objects``                         the shape and the nodes of a NumPy array of objects
``array numpy scalar bytes``        where an array is: the framework's, NumPy's, NumPy's number, or a string of bytes
``tagged``                          a tag of `Framework.to_plain`, and where the array is
``value``                           None, a boolean, an integer, a float or a string
``complex``                         real and imaginary part
``pickle``                          an index into a list, which is kept elsewhere
==================================  ==========================================================================

An array is at a name; or, where safetensors lacks the dtype, its bytes are, with dtype and shape beside the name.
"""

from __future__ import annotations

import reprlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.errors import AgentError
from workers.frameworks import Framework
from workers.pickling import objects

__all__ = ["DTYPES", "NotPlainError", "TreeDecoder", "TreeEncoder"]

Node = list[Any]

DTYPES = {
    np.dtype("uint64"): "U64",
    np.dtype("int64"): "I64",
    np.dtype("float64"): "F64",
    np.dtype("complex64"): "C64",
    np.dtype("float32"): "F32",
    np.dtype("uint32"): "U32",
    np.dtype("int32"): "I32",
    np.dtype("float16"): "F16",
    np.dtype("uint16"): "U16",
    np.dtype("int16"): "I16",
    np.dtype("int8"): "I8",
    np.dtype("uint8"): "U8",
    np.dtype("bool"): "BOOL",
}
"""Names of dtypes that `safetensors.numpy` both writes and reads, in the order of their arrays in a file: those of the
largest elements first, for alignment. Dtypes of another byte order are none of them."""

_KINDS = "biufcSUMm"
"""Kinds of dtypes that their string describes, and whose bytes are their values."""

_COLLECTIONS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_LARGEST_CHARACTER = 0x10FFFF


class NotPlainError(AgentError):
    """A state holds a value that only pickle could keep. Its argument says which, and where."""

    def __str__(self) -> str:
        return (
            f"the state holds {self.args[0]}; expected arrays, numbers, strings, bytes, booleans or None, in "
            "dictionaries, lists, tuples, sets or deques"
        )


class TreeEncoder:
    """Takes a state apart.

    Subclasses of dictionaries, lists, tuples, sets, numbers and strings count as what they derive from.

    Attributes:
        arrays: Its arrays by their path, in dtypes of safetensors. They may share memory with the state.
    """

    def __init__(self, framework: Framework, pickled: list[Any] | None) -> None:
        """Begin.

        Args:
            framework: Framework of the arrays.
            pickled: Takes the values that are not plain; None: they are refused.
        """
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self._framework = framework
        self._pickled = pickled

    def encode(self, value: Any, path: str = "") -> Node:
        """Return the node of a value.

        Raises:
            NotPlainError: The value, or one in it, is not plain.
        """
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        for kind, collection in _COLLECTIONS.items():
            if isinstance(value, collection):
                return [kind, self._nodes(value, path)]
        if isinstance(value, deque):
            return ["deque", [value.maxlen, self._nodes(value, path)]]
        if type(value) is np.ndarray and value.dtype == object:
            return ["objects", [list(value.shape), self._nodes(value.flat, path)]]
        if self._framework.is_array(value) or isinstance(value, (np.ndarray, np.generic)):
            return self._array(value, path)
        if isinstance(value, bytes):
            return ["bytes", self._store(np.frombuffer(value, np.uint8), path)]
        if isinstance(value, complex):
            return ["complex", [value.real, value.imag]]
        if value is None or isinstance(value, (bool, int, float, str)):
            return ["value", value]
        return self._not_plain(value, f"a value of type {type(value).__qualname__}", path)

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Node:
        items = [(key, self.encode(item, f"{path}/{key}")) for key, item in value.items()]
        if all(type(key) in (str, int) for key in value):
            return ["dict", items]
        return ["items", [(self.encode(key, f"{path}/{key} (the key)"), node) for key, node in items]]

    def _nodes(self, values: Any, path: str) -> list[Node]:
        return [self.encode(item, f"{path}/{index}") for index, item in enumerate(values)]

    def _array(self, value: Any, path: str) -> Node:
        kind, array, tag = "numpy", value, ""
        try:
            if self._framework.is_array(value):
                kind, (array, tag) = "array", self._framework.to_plain(value)
            elif isinstance(value, np.generic):
                kind, array = "scalar", np.asarray(value)
        except (RuntimeError, TypeError) as error:  # a dtype or layout that NumPy lacks
            return self._not_plain(value, f"an array that NumPy cannot hold ({error})", path)
        dtype = array.dtype
        if type(array) is not np.ndarray or dtype.kind not in _KINDS or not dtype.itemsize:
            return self._not_plain(value, f"a {type(array).__qualname__} of dtype {dtype}", path)
        array = np.asarray(array, order="C")
        if dtype in DTYPES:
            place: Any = self._store(array, path)
        else:
            place = [self._store(np.frombuffer(array.tobytes(), np.uint8), path), dtype.str, list(array.shape)]
        return ["tagged", [tag, place]] if tag else [kind, place]

    def _store(self, array: npt.NDArray[Any], path: str) -> str:
        name = path.lstrip("/") or "state"
        while name in self.arrays or name == "__metadata__":  # keys may contain slashes; __metadata__ is reserved
            name += "'"
        self.arrays[name] = array
        return name

    def _not_plain(self, value: Any, told: str, path: str) -> Node:
        if self._pickled is None:
            raise NotPlainError(f"{told} at {path or '/'}")
        self._pickled.append(value)
        return ["pickle", len(self._pickled) - 1]


class TreeDecoder:
    """Puts a state together.

    Each array and each pickled value has one place: a small file with one in many places would fill the memory.
    """

    def __init__(self, framework: Framework, arrays: dict[str, npt.NDArray[Any]], pickled: Sequence[Any]) -> None:
        """Begin.

        Args:
            framework: Framework of the arrays.
            arrays: Arrays by name. Those that have a place are removed.
            pickled: The values that were not plain.
        """
        self._framework = framework
        self._arrays = arrays
        self._pickled = dict(enumerate(pickled))

    def decode(self, node: Any) -> Any:
        """Return the value of a node.

        Raises:
            Exception: The node is damaged.
        """
        kind, content = node
        if kind in ("dict", "items"):
            return self._mapping(kind, content)
        if kind in ("value", "complex"):
            return _number(kind, content)
        if kind == "pickle":
            return self._pickled.pop(content)
        if kind == "tagged":
            tag, place = content
            return self._framework.from_plain(self._taken(place), tag)
        if kind in ("array", "numpy", "scalar", "bytes"):
            return self._array(kind, content)
        if kind == "deque":
            longest, nodes = content
            return deque(map(self.decode, nodes), longest)
        if kind == "objects":
            shape, nodes = content
            return objects(tuple(shape), [self.decode(item) for item in nodes])
        if kind not in _COLLECTIONS:
            raise ValueError(f"unknown kind {reprlib.repr(kind)} of a {type(content).__name__} in a state")
        items = [self.decode(item) for item in content]
        made = _COLLECTIONS[kind](items)
        if len(made) != len(items):
            raise ValueError(f"a set has {len(made)} different values; expected {len(items)}")
        return made

    def _mapping(self, kind: str, content: Any) -> dict[Any, Any]:
        if kind == "items":
            return {self.decode(key): self.decode(item) for key, item in content}
        if wrong := [key for key, _ in content if type(key) not in (str, int)]:
            raise TypeError(f"a key is a {type(wrong[0]).__name__}; expected strings or integers")
        return {key: self.decode(item) for key, item in content}

    def _array(self, kind: str, place: Any) -> Any:
        array = self._taken(place)
        if kind == "array":
            return self._framework.from_numpy(array)
        if kind == "bytes":
            return array.tobytes()
        return array if kind == "numpy" else array[()]

    def _taken(self, place: Any) -> npt.NDArray[Any]:
        if isinstance(place, str):
            return self._arrays.pop(place)
        name, description, shape = place
        dtype = np.dtype(description)
        if not isinstance(description, str) or dtype.kind not in _KINDS:
            raise ValueError(f"{reprlib.repr(description)} is no dtype of a state")
        data = self._arrays.pop(name)
        codes = np.dtype(np.uint32).newbyteorder(dtype.byteorder)
        if dtype.kind == "U" and np.any(data.view(codes) > _LARGEST_CHARACTER):
            raise ValueError(f"a string has a character above {_LARGEST_CHARACTER}")
        return data.view(dtype).reshape(shape)


def _number(kind: str, content: Any) -> Any:
    if kind == "complex":
        real, imaginary = content
        return complex(real, imaginary)
    if isinstance(content, (dict, list)):
        raise ValueError(f"a value is a {type(content).__name__}")
    return content
