"""The processes that descend from this one."""

from __future__ import annotations

import psutil

__all__ = ["descendants"]


def descendants(word: str = "") -> list[psutil.Process]:
    """Living descendants of this process with `word` in their command line."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # gone, or a zombie that its parent is about to collect
            continue
    return found
