"""What one scope is made of: environments, agents, frameworks and the worker that runs an iteration on them.

Nothing in here knows a driver, and nothing but ``workers.remote.actor`` knows Ray.
"""
