"""How an iteration reaches the workers and comes back: in one process, or through Ray.

Imports ``workers``; ``orchestrator.ray``, which nothing here imports, uses the rest. Imported by the trainer and users.
"""

from orchestrator.local import LocalOrchestrator

__all__ = ["LocalOrchestrator"]
