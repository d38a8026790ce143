"""How a driver reaches a worker in another process: requests, connections, shared memory and the Ray actor.

Imports everything else in ``workers``. Imported by ``orchestrator.ray`` only: local mode needs nothing of it. Only
``workers.remote.actor`` imports Ray.
"""
