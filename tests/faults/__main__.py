"""`python -m tests.faults --rounds 20 [--faults SIGKILL] [--json results.json]`; exit code 1 if something is lost."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.faults.matrix import FAULTS, run


def main() -> int:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=sys.modules["tests.faults"].__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default="|".join(FAULTS), help="separated by |")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("ome.tiff", "ome.zarr"):
            for row in run(Path(folder), given.rounds, given.seed, given.faults.split("|"), ending):
                results.append({"output": ending, **vars(row), "seen": sorted(filter(None, row.seen))})
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))
    return int(any(row["lost"] for row in results))


if __name__ == "__main__":
    sys.exit(main())
