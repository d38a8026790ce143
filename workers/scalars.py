"""Scalars by tag, as tracked by agents and runners."""

from __future__ import annotations

__all__ = ["Scalars"]


class Scalars:
    """Values by tag in bounded memory: their mean, or the extreme for tags that end in (min) or (max)."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, int]] = {}

    def add(self, tag: str, value: float) -> None:
        """Record a value."""
        value = float(value)
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
