"""What outlives a worker: an agent's state as bytes, as a file, and on its way back to the driver.

Imports the rules, the frameworks and the words. Imported by agents, scopes, remote workers, orchestrators and trainer.
"""
