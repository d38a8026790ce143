"""Orchestrators: run the iterations of all scopes in this process or through Ray.

Imports ``workers``. Imported by the trainer and users. Nothing here imports ``orchestrator.ray``, which needs Ray.
"""

from orchestrator.local import LocalOrchestrator

__all__ = ["LocalOrchestrator"]
