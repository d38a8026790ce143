"""Remote workers: requests, connections, shared memory and the Ray actor.

May import everything else in ``workers``. Imported only by ``orchestrator.ray``; local mode does not need it. Only
``workers.remote.actor`` imports Ray.
"""
