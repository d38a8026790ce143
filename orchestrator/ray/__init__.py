"""Ray: one actor per simultaneous agent, with its own environments if they can be rebuilt per scope.

Imports Ray, ``orchestrator`` and ``workers``. Imported by users, and by the trainer only if it is asked for Ray.
"""

from orchestrator.ray.orchestrator import RayOrchestrator

__all__ = ["RayOrchestrator"]
