"""`python -m tests.fuzz --seconds 600 --seed 1 [--kinds svs,dicom] [--json results.json]`; exit code 1 on a failure."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from tests.fuzz.harness import run
from tests.fuzz.kinds import KINDS


def main() -> int:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=sys.modules["tests.fuzz"].__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=1 << 30, help="number of inputs after which to end")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--folder", type=Path, help="where failing inputs stay; a temporary folder by default")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
    tallies = run(given.kinds.split(","), given.seed, given.seconds, given.most, folder)
    print(f"{'kind':16} {'tried':>7} {'read':>7} {'refused':>8} {'failed':>7}")
    for kind, tally in tallies.items():
        print(f"{kind:16} {tally.tried:7} {tally.fine:7} {tally.refused:8} {len(tally.failures):7}")
    failed = sum(len(tally.failures) for tally in tallies.values())
    print(f"{'all':16} {sum(t.tried for t in tallies.values()):7} {'':7} {'':8} {failed:7}  failing inputs in {folder}")
    if given.json:
        content = {kind: dataclasses.asdict(tally) for kind, tally in tallies.items()}
        given.json.write_text(json.dumps({"seed": given.seed, "kinds": content}, indent=1))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
