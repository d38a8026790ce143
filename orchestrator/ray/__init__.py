"""Ray: each simultaneous agent in an actor, which owns its environments wherever they can be rebuilt per scope."""

from orchestrator.ray.orchestrator import RayOrchestrator

__all__ = ["RayOrchestrator"]
