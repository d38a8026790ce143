"""Scalars by tag, as tracked by agents and runners."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from workers.types import Mode

__all__ = ["Scalars", "prefix_of"]


def prefix_of(mode: Mode) -> str:
    """Return what the tags of iterations of this mode begin with."""
    return "Evaluation / " if mode is Mode.EVAL else ""


class Scalars:
    """Values by tag in bounded memory: their mean, or the extreme for tags that end in (min) or (max).

    Attributes:
        prefix: What every tag begins with; see `prefix_of`.
    """

    def __init__(self) -> None:
        self.prefix = ""
        self._kept: dict[str, tuple[float, int]] = {}

    def add(self, tag: str, value: float) -> None:
        """Record a value."""
        value, tag = float(value), self.prefix + tag
        kept, count = self._kept.get(tag, (None, 0))
        if kept is None:
            self._kept[tag] = (value, 1)
        elif tag.endswith("(min)"):
            self._kept[tag] = (min(kept, value), 1)
        elif tag.endswith("(max)"):
            self._kept[tag] = (max(kept, value), 1)
        else:
            self._kept[tag] = (kept + value, count + 1)

    def drain(self) -> dict[str, float]:
        """Return the scalars recorded since the last call, by tag."""
        drained = {tag: total / count for tag, (total, count) in self._kept.items()}
        self._kept.clear()
        return drained

    def state(self) -> dict[str, Any]:
        """Return a copy of everything: the prefix, and what was recorded since the last `drain`, as plain data."""
        return {"prefix": self.prefix, "kept": dict(self._kept)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a result of `state`.

        Raises:
            ValueError: `state` is something else. Nothing changes then.
        """
        if not _is_state(state):
            raise ValueError(f"the state of scalars is {reprlib.repr(state)}; expected a result of Scalars.state()")
        self.prefix = state["prefix"]
        self._kept = {tag: (total, count) for tag, (total, count) in state["kept"].items()}


def _is_state(state: Any) -> bool:
    match state:
        case {"prefix": prefix, "kept": {**kept}} if len(state) == 2:
            return prefix in [prefix_of(mode) for mode in Mode] and all(map(_is_kept, kept.items()))
    return False


def _is_kept(item: tuple[Any, Any]) -> bool:
    """Return whether an item is a tag, with the sum of its values and their number."""
    match item:
        case (str(), (float(), count)):
            return type(count) is int and count >= 1
    return False
