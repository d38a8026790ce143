"""Agent state that outlives a worker: as bytes, as a file, and on its way back to the driver.

Imports the frameworks and the top-level modules of ``workers``. Imported by agents, scopes, remote workers,
orchestrators and the trainer.
"""
