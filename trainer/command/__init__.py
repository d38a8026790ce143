"""The `lockstep` command: run configurations, training, evaluation and the doctor.

Uses the library as anybody does. Nothing imports it but ``trainer.__main__``.
"""
