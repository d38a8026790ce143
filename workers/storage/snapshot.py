"""Snapshot: the state of all scopes between two iterations, as plain data that can be sent between processes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple

from workers.errors import AgentError, CheckpointError, message_of
from workers.frameworks import Framework
from workers.storage.state_file import decode_state, encode_pieces
from workers.storage.state_tree import NotPlainError

__all__ = ["Part", "Snapshot", "decode_part", "encode_part"]

_LARGEST_HEADER = 2**26
"""Most bytes of a header. Thousands of environments may have several small arrays each."""


class Part(NamedTuple):
    """A part of a snapshot.

    Attributes:
        state: Result of `encode_state` of `workers.storage.state_file`, or of its `encode_pieces`: these may share the
            memory of what is encoded, and hold until the next iteration.
        pickled: One pickle of everything that is not plain; empty if there is nothing.
    """

    state: bytes | tuple[bytes | memoryview, ...]
    pickled: bytes = b""

    @property
    def pieces(self) -> tuple[bytes | memoryview, ...]:
        """The state, in pieces that follow each other."""
        return self.state if isinstance(self.state, tuple) else (self.state,)

    def joined(self) -> Part:
        """Return the part with its state in one piece, which nothing changes."""
        return self._replace(state=b"".join(self.pieces))


class Snapshot(NamedTuple):
    """The state of all scopes between two iterations.

    Attributes:
        agents: The agents, in scope order.
        envs: The environments by their rows ``(start, stop)``: one part for each scope, or one for all rows where the
            environments can only be stored as a whole.
    """

    agents: tuple[Part, ...]
    envs: Mapping[tuple[int, int], Part]

    @property
    def size(self) -> int:
        """Number of its bytes."""
        parts = [*self.agents, *self.envs.values()]
        return sum(len(part.pickled) + sum(map(len, part.pieces)) for part in parts)

    def joined(self) -> Snapshot:
        """Return the snapshot in pieces that can be sent; see `Part.joined`."""
        agents = tuple(part.joined() for part in self.agents)
        return Snapshot(agents, {rows: part.joined() for rows, part in self.envs.items()})


def encode_part(
    tree: Any,
    framework: Framework,
    *,
    allow_pickle: bool,
    what: str,
    pickler: type[pickle.Pickler] = pickle.Pickler,
) -> Part:
    """Encode a state, with pickle only where there is no other way.

    Args:
        tree: See `workers.storage.state_file.encode_pieces`.
        framework: The framework of its arrays.
        allow_pickle: Whether values that are not plain may be pickled.
        what: Whose state it is, for errors.
        pickler: Pickles them.

    Raises:
        CheckpointError: The state contains what cannot be stored; the message says where.
    """
    pickled: list[Any] | None = [] if allow_pickle else None
    try:
        state = encode_pieces(tree, framework, pickled, largest_header=_LARGEST_HEADER)
    except NotPlainError as error:
        raise CheckpointError(
            f"{what} holds {error.args[0]}, which only pickle can keep; pass allow_pickle=True to save(), and later to "
            "load(), or keep it as arrays, numbers and strings"
        ) from error
    except AgentError as error:
        raise CheckpointError(f"{what} cannot be stored: {error}") from error
    if not pickled:
        return Part(state)
    try:
        return Part(state, framework.dump(pickled, pickler))
    except Exception as error:  # objects decide what happens when they are pickled
        raise CheckpointError(
            f"{what} cannot be stored: it holds a value that pickle cannot keep, either: {type(error).__name__}: "
            f"{message_of(error)}"
        ) from error


def decode_part(part: Part, framework: Framework, *, what: str) -> Any:
    """Return the state that was passed to `encode_part`. Its pickle is loaded, which can run code.

    Args:
        part: Result of `encode_part`.
        framework: The framework of the arrays.
        what: Whose state it is, for errors.

    Raises:
        CheckpointError: The part is damaged, or its pickle cannot be loaded here.
    """
    pickled: Any = []
    if part.pickled:
        try:
            pickled = framework.load(part.pickled)
        except Exception as error:  # damaged pickles, and classes, raise anything
            raise CheckpointError(
                f"{what} cannot be restored: its pickle cannot be loaded: {type(error).__name__}: {message_of(error)}"
            ) from error
        if not isinstance(pickled, list):
            raise CheckpointError(f"{what} cannot be restored: its pickle holds a {type(pickled).__name__}")
    try:
        return decode_state(b"".join(part.pieces), framework, pickled, largest_header=_LARGEST_HEADER)
    except AgentError as error:
        raise CheckpointError(f"{what} cannot be restored: {error}") from error
