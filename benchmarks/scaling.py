"""Time and peak memory of `convert --model identity` over slide sizes and workers.

    python benchmarks/scaling.py --folder /tmp/bench --gigapixels 0.1 1

Slides are phantoms, written once into the folder and kept (ten gigapixels take a quarter of an hour and 1.7 GB). Memory
is given above what the same imports take in a process that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from side_by_side import convert, machine, mib, phantom_slide, report, run, table


def start_up() -> None:
    """Imports and threads of a conversion, without a slide."""
    import importlib

    from wsi_stain.cluster.workers import Workers

    for module in ("wsi_stain.conversion.engine", "wsi_stain.slide.readers.tiff"):
        importlib.import_module(module)
    sums: list[int] = []
    with Workers(2) as workers:
        workers.run(abs, range(10), sums.append)
    report(sum=sum(sums))


def picture(path: Path, curves: dict[int, list[tuple[float, float, float]]]) -> None:
    """Plot peak memory and time over gigapixels, one line per number of workers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    memory, speed = figure.subplots(1, 2)
    for workers, lines in curves.items():
        gigapixels, seconds, over = zip(*lines, strict=True)
        memory.plot(gigapixels, over, "o-", label=f"workers: {workers}")
        speed.plot(gigapixels, seconds, "o-", label=f"workers: {workers}")
    highest = max(over for lines in curves.values() for *_, over in lines)
    memory.set(xscale="log", ylim=(0, 1.15 * highest), xlabel="gigapixels", title="peak over start-up, MiB")
    speed.set(xscale="log", yscale="log", xlabel="gigapixels", title="seconds")
    for axes in (memory, speed):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gigapixels", type=float, nargs="+", default=[0.1, 0.3, 1, 3, 10])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    here = machine()
    base = mib(run(__file__, "start-up"))
    rows, curves = [], {workers: [] for workers in options.workers}
    for gigapixels in options.gigapixels:
        slide = phantom_slide(options.folder, gigapixels)
        for workers in options.workers:
            arguments = ["--model", "identity", "--mask", "none", "--workers", workers]
            done = convert(slide, options.folder / "scaling.ome.tiff", *arguments)
            pixels = done.report["size_px"][0] * done.report["size_px"][1]
            over = mib(done) - base
            curves[workers].append((pixels / 1e9, done.seconds, over))
            speed = f"{pixels / done.seconds / 1e6:.0f}"
            rows.append(
                [f"{pixels / 1e9:.2f}", workers, f"{done.seconds:.1f}", speed, f"{done.cpu_s:.1f}", f"{over:.0f}"]
            )
            print(f"{gigapixels:g} gigapixels, {workers} workers: {done.seconds:.1f} s", file=sys.stderr, flush=True)
    print(f"{here}; start-up {base:.0f} MiB\n")
    print(table(["gigapixels", "workers", "s", "Mpx/s", "CPU s", "peak over start-up, MiB"], rows))
    if options.picture:
        picture(options.picture, curves)


if __name__ == "__main__":
    if sys.argv[1:] == ["start-up"]:
        start_up()
    else:
        main()
