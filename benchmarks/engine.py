"""The time of a conversion, compared with its generator alone on the same tissue tiles.

    python benchmarks/engine.py --slide slide.svs --folder /tmp/bench --region 0,0,2220,2967

`alone` reads the tiles before its clock starts, and then does nothing but call the generator with them. `convert` is
everything that follows its start and the loading of the model: hash, tissue, staining, assembling, checking.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from side_by_side import alternate, bars, convert, machine, mib, ratios, report, run, spread, table


def alone(arguments: list[str]) -> None:
    """The generator over the tissue tiles of `convert ARGUMENTS`, in its batches."""
    from itertools import chain

    import numpy as np

    from wsi_stain.conversion.job import Job
    from wsi_stain.conversion.survey import Survey

    survey = Survey.of(request_of(arguments))
    job, view = Job.of(survey), survey.view.open()
    with view.slide:
        inputs = [view.read(tile) for tile in sorted(chain(*survey.tissue.values()))]
    generator = survey.bundle.generator(job.device, precision=survey.precision)
    generator(np.stack(inputs[:1]))  # the first call allocates, chooses kernels, compiles
    start = time.perf_counter()
    batch = job.batch or generator.batch
    for first in range(0, len(inputs), batch):
        generator(np.stack(inputs[first : first + batch]))
    report(seconds=time.perf_counter() - start, tiles=len(inputs))


def request_of(arguments: list[str]):
    """The engine's request for the arguments of `wsi-stain convert`."""
    from wsi_stain.cli import convert as cli

    options = cli.command.make_context("convert", list(arguments)).params
    options = {key: value for key, value in options.items() if key not in ("dry_run", "as_json")}
    request, _ = cli.request_of(options.pop("slide"), **options)
    return request


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for the outputs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--picture", type=Path)
    options, more = parser.parse_known_args()
    here = machine()
    options.folder.mkdir(parents=True, exist_ok=True)
    arguments = [*more, "--workers", str(options.workers)]
    candidates = {
        "wsi-stain convert": lambda: convert(options.slide, options.folder / "engine.ome.tiff", *arguments),
        "the generator alone": lambda: run(__file__, "alone", options.slide, *arguments),
    }
    runs = alternate(candidates, options.rounds)
    whole, generator = runs.values()
    records = [done.report for done in whole]
    seconds = [record["seconds"]["all"] - record["seconds"]["load"] for record in records]
    least = [done.report["seconds"] for done in generator]
    tiles = records[0]["tiles"]
    repeated = tiles["generated_in_this_run"] / tiles["tissue"]
    rows = [
        ["convert", spread(seconds), ratios(seconds, least), f"{max(map(mib, whole)):.0f}"],
        ["its staining only", spread([s["seconds"]["stain"] for s in records]), "", ""],
        ["the generator alone", spread(least), "1", f"{max(map(mib, generator)):.0f}"],
    ]
    print(f"{here}; {records[0]['device']}, {options.workers} workers, {tiles['tissue']} tissue tiles\n")
    print(table(["", "s (least / median)", "/ generator alone", "peak MiB"], rows))
    print(f"\nDevice busy {spread([s['device_busy'] for s in records], 3)}; generated / tissue tiles {repeated:.3f}")
    if options.picture:
        times = {"wsi-stain convert": seconds, "the generator alone": least}
        bars(options.picture, f"{tiles['tissue']} tissue tiles on {records[0]['device']}", times, "s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["alone"]:
        alone(sys.argv[2:])
    else:
        main()
