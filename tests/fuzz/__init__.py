"""Mutated files of every kind that wsi-stain reads: `python -m tests.fuzz --seconds 600 --seed 1`, from the checkout.

Every input is used in a worker process with limits. Allowed are success and one of our errors, in one line; anything
else is kept in `tests/fuzz/crashers` and is a failure.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # builders
