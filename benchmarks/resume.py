"""What interruptions cost: a conversion killed several times against one that never was.

    python benchmarks/resume.py --slide slide.svs --folder /tmp/bench

Each kill is `SIGKILL`, after equal shares of the blocks. What a kill costs: the start of another process (imports,
hash, tissue, model), the blocks that were in work, and the tiles between blocks that the dead process had kept. The
outputs must be the same bytes. With `--stop term` the process is asked to end, as by a cluster or Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from side_by_side import ROOT, bars, machine, ratios, spread, table

WATCH_EVERY_S = 0.02
NUMBERS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}


def start(slide: Path, output: Path, arguments: list[str]) -> subprocess.Popen:
    """Start a conversion as a process."""
    command = [sys.executable, "-m", "wsi_stain", "convert", str(slide), "-o", str(output), "--json", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)


def finish(process: subprocess.Popen) -> dict:
    """Wait for the end of the process; return its run record."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the conversion failed with {process.returncode}: run it by hand to see the message")
    return json.loads(output)


def stop_after(process: subprocess.Popen, spool: Path, blocks: int, number: signal.Signals) -> None:
    """Stop the process as soon as this many blocks are painted."""
    while process.poll() is None and len(list(spool.glob("b_*.zip"))) < blocks:
        time.sleep(WATCH_EVERY_S)
    if process.poll() is not None:
        raise SystemExit(f"the conversion ended before {blocks} blocks were painted: use a larger slide")
    process.send_signal(number)
    process.communicate()


def broken(slide: Path, output: Path, arguments: list[str], stops: list[int], number: signal.Signals) -> float:
    """Seconds of a conversion that is stopped at these numbers of painted blocks and resumed."""
    spool, begin = output.with_name(output.name + ".spool"), time.perf_counter()
    for blocks in stops:
        stop_after(start(slide, output, arguments), spool, blocks, number)
    finish(start(slide, output, arguments))
    return time.perf_counter() - begin


def remove(output: Path) -> str:
    """The hash of the output, which is deleted together with its record."""
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    for path in output.parent.glob(output.name.removesuffix(".ome.tiff") + ".*"):
        path.unlink()
    return digest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for the outputs")
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--stop", choices=NUMBERS, default="kill")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--picture", type=Path)
    options, arguments = parser.parse_known_args()
    here, output = machine(), options.folder / "resume.ome.tiff"
    options.folder.mkdir(parents=True, exist_ok=True)
    unbroken, stopped, digests = [], [], set()
    for number in range(options.rounds):
        begin = time.perf_counter()
        report = finish(start(options.slide, output, arguments))
        unbroken.append(time.perf_counter() - begin)
        digests.add(remove(output))
        blocks = report["blocks"]["all"]
        stops = [max(1, blocks * (i + 1) // (options.stops + 1)) for i in range(options.stops)]
        stopped.append(broken(options.slide, output, arguments, stops, NUMBERS[options.stop]))
        digests.add(remove(output))
        print(f"round {number + 1}: {unbroken[-1]:.1f} s, {stopped[-1]:.1f} s", file=sys.stderr, flush=True)
    each = [(b - a) / options.stops for a, b in zip(unbroken, stopped, strict=True)]
    print(f"{here}; {blocks} blocks, {report['tiles']['tissue']} tissue tiles, {options.stops} × {options.stop}\n")
    rows = [
        ["unbroken", spread(unbroken), "1", ""],
        ["stopped", spread(stopped), ratios(stopped, unbroken), spread(each)],
    ]
    print(table(["", "s (least / median)", "/ unbroken", "s per interruption"], rows))
    print(f"\nSame bytes: {'yes' if len(digests) == 1 else 'NO'}")
    if options.picture:
        times = {"wsi-stain, unbroken": unbroken, f"stopped {options.stops} times": stopped}
        bars(options.picture, f"{options.stops} interruptions", times, "s")


if __name__ == "__main__":
    main()
