"""``python -m trainer`` is the `lockstep` command."""

import sys

from trainer.command.cli import main

sys.exit(main())
