"""The library: import ``StepTrainer`` and ``StepTrainerCfg`` from `trainer.torch`, `trainer.jax` or `trainer.warp`.

Imports ``orchestrator`` and ``workers``. Imported by ``trainer.command`` (the `lockstep` command) and by users.
"""

from trainer._console import show_messages
from trainer._shadowing import check_packages

__version__ = "0.1.0"

check_packages()
show_messages()


def __getattr__(name: str) -> object:
    if name in ("StepTrainer", "StepTrainerCfg", "StepTrainerCfgDict", "generate_equally_spaced_scopes"):
        # not an AttributeError, whose text the import statement replaces by its own
        raise ImportError(
            f"choose a framework: from trainer.torch import {name}, or import it from trainer.jax or trainer.warp"
        )
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
