"""The `lockstep` command: run configurations, training, evaluation and the doctor.

Uses the library as a user does. Within the library, only ``trainer.__main__`` and `trainer.policies` import it.
"""
