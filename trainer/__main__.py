"""``python -m trainer`` is the `lockstep` command."""

import sys

from trainer.cli import main

sys.exit(main())
