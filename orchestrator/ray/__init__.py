"""Ray: one actor per simultaneous agent, with its own environments if they can be rebuilt per scope."""

from orchestrator.ray.orchestrator import RayOrchestrator

__all__ = ["RayOrchestrator"]
