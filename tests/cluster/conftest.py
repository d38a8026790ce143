"""The tests of a real cluster run only with ``make test-cluster``: they need root and take minutes."""

import os

collect_ignore_glob = [] if os.environ.get("LOCKSTEP_TESTS") == "cluster" else ["test_*.py"]
