"""Components of one scope: environments, agents, frameworks and the worker that runs iterations on them.

At the top are plain data and names, and rules for random numbers, infos, teams and threads. Imported by
``orchestrator``, ``trainer`` and users; imports neither of them. Only ``workers.remote.actor`` imports Ray.
"""
