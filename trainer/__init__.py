"""The public API: ``from trainer.torch import StepTrainer, StepTrainerCfg``."""

from trainer._shadowing import check_packages

check_packages()
