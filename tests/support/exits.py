"""A module that cannot be imported."""

import sys

sys.exit("this module exits")
