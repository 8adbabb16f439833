"""`wsi-stain pairs`: make paired training tiles from two slides, check them, and warp one slide."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_stain.cli.convert import RegionType
from wsi_stain.cli.progress import LINE_EVERY_S, counted

if TYPE_CHECKING:
    from wsi_stain.pairing.request import PairsRequest


@click.group("pairs")
def command() -> None:
    """Make paired tiles from two slides, and check them before training."""


EXIT_CODES = {"register": 0, "poor": 3, "refuse": 4, "failed": 1}
"""Exit code of each verdict on a registration, and of a case of a sheet that failed, the worst last; 2 is that of an
invalid call."""


@command.command()
@click.argument("he", metavar="HE", type=click.Path(path_type=Path))
@click.argument("ihc", metavar="[IHC]", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the case, or of all cases."
)
@click.option("--he-mpp", type=float, help="Pixel size of HE in µm, if the file has none or a wrong one.")
@click.option("--ihc-mpp", type=float, help="Pixel size of IHC in µm, likewise.")
@click.option("--mpp", default=1.0, show_default=True, help="Pixel size of the tiles in µm.")
@click.option("--tile", default=512, show_default=True, help="Side of the tiles in px.")
@click.option("--case", default="", help="Name of the case. [default: that of the folder]")
@click.option("--patient", default="", help="Patient, for the column patient_id.")
@click.option(
    "--split",
    type=click.Choice(["columns", "train", "val", "test", "slide", "patient"]),
    default="columns",
    show_default=True,
    help="Columns of the slide with buffers between; the split of all tiles; of a sheet, also by slide or patient.",
)
@click.option("--one-affine", is_flag=True, help="One affine map for all fragments, even if they have moved.")
@click.option(
    "--most-misaligned-um", default=16.0, show_default=True, help="Leave out tiles that are off by more, estimated."
)
@click.option(
    "--least-confidence", default=0.3, show_default=True, help="Leave out tiles around which fewer windows hold, 0-1."
)
@click.option(
    "--strata",
    type=click.Path(path_type=Path),
    help="GeoJSON of annotated areas of HE; their classes fill the column stratum.",
)
@click.option("--workers", type=int, help="Number of threads. [default: one per processor]")
@click.option("--cluster", type=click.Path(path_type=Path), help="YAML file of the cluster that makes a sheet's cases.")
@click.option("--scheduler", metavar="ADDRESS", help="Address of a running Dask scheduler, likewise.")
def make(
    he: Path, ihc: Path | None, output: Path, split: str, cluster: Path | None, scheduler: str | None, **options: Any
) -> int:
    """Register two slides of one block, and cut paired tiles.

    HE is the H&E slide, IHC the other stain. The exit code is 0 if they correspond, 3 if only parts of them do, and 4
    if they do not: then no tile is cut. OUTPUT/report.html shows why. The same command finishes an interrupted run.

    With a CSV of cases (columns case, he, ihc and, if known, patient_id, split, he_mpp, ihc_mpp, strata) instead of
    both slides, each case gets a folder in OUTPUT, and OUTPUT/pairs.csv lists all pairs. One case does not stop
    another. The exit code is 1 if a case failed, and otherwise that of the worst.
    """
    from wsi_stain.cohort.listing import SLIDE_ENDINGS
    from wsi_stain.errors import ConfigError, TrainingError
    from wsi_stain.pairing import sheet
    from wsi_stain.pairing.make import HTML
    from wsi_stain.pairing.make import make as make_pairs
    from wsi_stain.pairing.request import PairsRequest

    own: Any = "columns" if split in ("slide", "patient") else split
    request = PairsRequest(he, ihc or he, output, split=own, **options)
    if ihc is None:
        if he.suffix.lower()[1:] in SLIDE_ENDINGS:
            raise ConfigError(f"{he} is a slide without its partner; pass both slides, or a CSV of cases")
        by: Any = split if split in ("slide", "patient") else "columns"
        return _make_all(sheet.requests(he, request, by), output, cluster, scheduler)
    if cluster or scheduler:
        raise ConfigError("--cluster and --scheduler need a sheet of cases; one case is made on this machine")
    if own != split:
        raise ConfigError(f"--split {split} needs a sheet of cases; pass columns, train, val or test for one case")
    result = make_pairs(request, _shown())
    for reason in result.content["registration"]["reasons"]:
        click.echo(f"{result.verdict}: {reason}")
    click.echo(f"{result.content['tiles']} tiles; {output / HTML}")
    if result.emptiness:
        raise TrainingError(result.emptiness)
    return EXIT_CODES[result.verdict]


def _make_all(cases: Sequence[PairsRequest], output: Path, cluster: Path | None, scheduler: str | None) -> int:
    """Make all cases of a sheet; prints how each ended, and returns the exit code of the worst."""
    from wsi_stain.cluster import ClusterConfig
    from wsi_stain.config.loader import load
    from wsi_stain.errors import ConfigError
    from wsi_stain.pairing.many import make_all

    if cluster and scheduler:
        raise ConfigError("--cluster and --scheduler exclude each other; pass one of them")
    config = ClusterConfig(scheduler=scheduler) if scheduler else load(ClusterConfig, cluster) if cluster else None
    outcomes = make_all(cases, output, lambda case: _shown(f"{case}: "), config)
    for outcome in outcomes:
        click.echo(f"{outcome.case}: {outcome.verdict}, {outcome.tiles} tiles: {outcome.message}")
    counts = [(verdict, [o.case for o in outcomes if o.verdict == verdict]) for verdict in EXIT_CODES]
    click.echo(
        "; ".join(f"{len(names)} {verdict} ({', '.join(names)})" for verdict, names in counts if names), err=True
    )
    return max((EXIT_CODES[verdict] for verdict, names in counts if names), key=list(EXIT_CODES.values()).index)


def _shown(prefix: str = "") -> Callable[[str, int, int], None]:
    """A function that prints the stages, and every few seconds how much is done."""
    shown, last = "", 0.0

    def show(stage: str, done: int, total: int) -> None:
        nonlocal shown, last
        if stage != shown or done == total or time.monotonic() - last > LINE_EVERY_S:
            shown, last = stage, time.monotonic()
            click.echo(f"{prefix}{stage}: {done}/{total}" if total else prefix + stage, err=True)

    return show


@command.command()
@click.argument("case", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="New file, NAME.ome.tiff.")
@click.option("--he", type=click.Path(path_type=Path), help="The H&E slide, if it is not where it was.")
@click.option("--ihc", type=click.Path(path_type=Path), help="The IHC slide, if it is not where it was.")
@click.option("--mpp", type=float, help="Pixel size of the output in µm. [default: that of the case's tiles]")
@click.option("--lossless", is_flag=True, help="Compress without loss instead of as JPEG.")
@click.option("--workers", type=int, help="Number of threads. [default: one per processor]")
def warp(case: Path, output: Path, lossless: bool, **options: Any) -> None:
    """Write the IHC slide of CASE, a folder of `pairs make`, in the frame of its H&E slide: a pyramidal OME-TIFF.

    Both slides then open side by side in a viewer that keeps their places in step. The file states that it is a real
    stain that was resampled. A case whose slides do not correspond is refused.
    """
    from wsi_stain.config.convert import OutputConfig
    from wsi_stain.pairing.warp import WarpRequest
    from wsi_stain.pairing.warp import warp as write_warped

    encoding = OutputConfig(compression="deflate" if lossless else "jpeg")
    write_warped(WarpRequest(case, output, encoding=encoding, **options), counted("blocks"))
    click.echo(output)


@command.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="New folder for the figure, JSON and CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--crop", default=0, show_default=True, help="Side of the training crops in px; smaller tiles are flagged."
)
def check(source: Path, output: Path | None, as_json: bool, crop: int) -> int:
    """Check every pair in SOURCE: a CSV, a folder in the layout of BCI, MIST or pix2pix, or one with he and ihc.

    Prints counts, sizes and splits, whether both stains show the same field, how far they are displaced, and which
    images occur in two splits. The exit code is 1 if anything is flagged.
    """
    from dataclasses import replace

    from wsi_stain.pairs import report
    from wsi_stain.pairs.check import check as check_pairs
    from wsi_stain.pairs.pair import scan

    if output is not None:
        report.refuse(output)
    pairs, unpaired = scan(source)
    result = check_pairs(pairs, crop=crop, progress=lambda done, total: click.echo(f"{done}/{total} pairs", err=True))
    result = replace(result, flagged=(*unpaired, *result.flagged))
    if output is not None:
        report.save(result, output)
    click.echo(report.as_json(result) if as_json else report.text(result))
    return 1 if result.flagged else 0


@command.command()
@click.argument("slide", type=click.Path(path_type=Path))
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option("--slide-mpp", type=float, help="Pixel size of SLIDE in µm, if the file has none or a wrong one.")
@click.option("--region", type=RegionType(), help="Only this region, in level-0 pixels; keep the rest for testing.")
@click.option("--mpp", default=1.0, show_default=True, help="Pixel size of the tiles in µm, as of the pairs.")
@click.option("--tile", default=512, show_default=True, help="Side of the tiles in px.")
@click.option(
    "--background",
    type=(int, int, int),
    default=(247, 247, 247),
    show_default=True,
    help="Colour of empty glass in the IHC, as output.background of the training.",
)
@click.option("--counterstain", default=2.0, show_default=True, help="As in the training's configuration.")
@click.option(
    "--allow-upsampling",
    is_flag=True,
    help="Enlarge a slide that is coarser than the tiles. A model may learn that enlarged tissue is negative.",
)
def negatives(
    slide: Path,
    pairs: Path,
    slide_mpp: float | None,
    region: Any,
    background: tuple[int, int, int],
    counterstain: float,
    **options: Any,
) -> None:
    """Add the H&E of tissue that is known to be negative to the folder PAIRS, for training.

    A real stain must have shown that SLIDE has none of it. The stain of its tiles is drawn from the H&E, without DAB.
    """
    from wsi_stain.geometry import Box
    from wsi_stain.pairing.negatives import add_negatives, head_of
    from wsi_stain.slide.slide import Slide

    box = Box(region[1], region[0], region[1] + region[3], region[0] + region[2]) if region else None
    head, shown = head_of(pairs, mpp=options["mpp"], background=background, counterstain=counterstain), _shown()
    with Slide.open(slide, mpp=slide_mpp) as opened:
        count = add_negatives(
            opened, pairs, head, box, **options, progress=lambda done, total: shown("tiles", done, total)
        )
    click.echo(f"{count} pairs added to {pairs}")
