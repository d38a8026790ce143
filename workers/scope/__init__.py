"""One scope: its environments, its agent and the worker that runs iterations on them.

May import agents, environments, storage and everything below them. Imported by ``workers.remote``, the orchestrators
and the trainer.
"""
