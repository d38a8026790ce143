"""One scope at work: its environments, its agent and the worker that takes them through an iteration.

Imports agents, environments, storage and all that is below them. Imported by ``workers.remote``, the orchestrators and
the trainer.
"""
