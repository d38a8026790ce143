"""The `lockstep` command as ``python -m trainer``."""

import sys

from trainer.command.cli import main

sys.exit(main())
