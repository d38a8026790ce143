"""What Ray says about actors that have died."""

from __future__ import annotations

import re
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError

from orchestrator.ray.requests import UnreachableError

__all__ = ["death", "death_of", "uncoloured"]

_NODE_DEATHS = ("because its node has died", "the actor's node was terminated")
"""Words that only Ray's errors about dead nodes have."""


def uncoloured(error: RayError) -> str:
    """Return the message of an error without the colours that Ray puts into some."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error))


def death_of(ref: Any) -> UnreachableError | None:
    """Return why an actor's endless call ended; None if, as far as Ray knows, it is still running.

    Raises:
        ActorUnavailableError: Ray has lost its own connection to the actor, and does not know.
    """
    try:
        ray.get(ref, timeout=0)
    except (GetTimeoutError, ConnectionError):  # it runs, or Ray's client cannot ask
        return None
    except ActorUnavailableError:
        raise
    except RayActorError as error:
        return death(error)
    except RayError as error:
        return UnreachableError("WorkerDied", f"the worker no longer listens: {uncoloured(error)}")
    return UnreachableError("WorkerDied", "the worker no longer listens")


def death(error: RayActorError) -> UnreachableError:
    """Return what Ray says about an actor that died or cannot be reached, or about its node."""
    text = uncoloured(error)
    if isinstance(error, ActorUnavailableError):
        return UnreachableError("ConnectionLost", f"Ray's connection to the worker was lost: {text}")
    if any(words in text for words in _NODE_DEATHS):
        return UnreachableError("NodeDied", f"the worker's node died or cannot be reached: {text}")
    return UnreachableError("WorkerDied", f"the worker's process died: {text}")
