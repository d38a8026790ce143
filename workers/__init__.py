"""Components of one scope: environments, agents, frameworks and the worker that runs iterations on them.

This package does not depend on the driver. Only ``workers.remote.actor`` imports Ray.
"""
