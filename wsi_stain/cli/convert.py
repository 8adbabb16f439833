"""`wsi-stain convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from wsi_stain.config.convert import PrecisionChoice

if TYPE_CHECKING:
    from wsi_stain.conversion.engine import ConversionResult
    from wsi_stain.conversion.request import ConvertRequest


class RegionType(click.ParamType[Any]):
    """X,Y,W,H in level-0 pixels."""

    name = "X,Y,W,H"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        try:
            x, y, w, h = (int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not four whole numbers X,Y,W,H (level-0 pixels), for example 1000,2000,512,512")
        return x, y, w, h


@click.command("convert")
@click.argument("slide", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="x.ome.tiff, x.ome.zarr, or x.dcm (a folder of DICOM files); with {stain} for several models.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Model bundle: a name or a folder; repeat it for a panel of stains. [default: the shipped model]",
)
@click.option("--mpp", type=float, help="Pixel size of the slide in µm, if the file has none or a wrong one.")
@click.option(
    "--image", type=click.IntRange(min=0), help="Image to read, if the file holds several. [default: the largest]"
)
@click.option(
    "--z", type=click.IntRange(min=0), help="Focal plane to read, if there are several. [default: the middle]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--precision",
    type=click.Choice(get_args(PrecisionChoice)),
    default="auto",
    show_default=True,
    help="Numeric precision; auto picks the fastest that the device supports.",
)
@click.option(
    "--mask",
    default="auto",
    show_default=True,
    help="auto (detect tissue), none (whole slide), or a GeoJSON file exported from QuPath.",
)
@click.option("--region", type=RegionType(), help="Convert only this region: x, y, width, height in level-0 pixels.")
@click.option("--workers", type=int, help="Number of threads; 0 uses the calling thread. [default: one per processor]")
@click.option("--scheduler", metavar="ADDRESS", help="Address of a running Dask scheduler.")
@click.option("--cluster", type=click.Path(path_type=Path), help="YAML file of a cluster to start for this slide.")
@click.option("--quality", type=int, help="JPEG quality, 1-100. [default: 90]")
@click.option(
    "--compression",
    type=click.Choice(["jpeg", "deflate"]),
    help="Compression of the tiles; deflate is lossless (JPEG 2000 in DICOM). [default: jpeg]",
)
@click.option(
    "--compat",
    type=click.Choice(["openslide"]),
    help="Store the pyramid so that OpenSlide-based viewers read all levels.",
)
@click.option(
    "--norm",
    type=click.Choice(["tile", "slide"]),
    help="Normalization of networks with per-tile statistics. [default: slide]",
)
@click.option("--allow-upsampling", is_flag=True, help="Accept a slide coarser than the model's µm/px.")
@click.option("--allow-virtual", is_flag=True, help="Accept a slide that is a virtual stain already.")
@click.option("--force-brightfield", is_flag=True, help="Accept a slide without a bright background.")
@click.option("--strict", is_flag=True, help="Refuse a slide that is not H&E or is out of focus, instead of a warning.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="YAML file with settings that differ from the defaults.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting, e.g. grid.overlap=64.")
@click.option("--keep-paths", is_flag=True, help="Write your home folder in run.json in full, instead of ~.")
@click.option("--restart", is_flag=True, help="Discard an unfinished run and replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Print the plan (tiles, disk, memory, time) and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the run record as JSON instead of the output's name.")
def command(slide: Path, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Convert SLIDE to a virtual stain: an OME-TIFF or OME-Zarr that opens in QuPath, or a DICOM series.

    Without options, the default model runs on the best device and writes SLIDE.STAIN.ome.tiff to the current folder.
    Re-run the same command to resume. Several --model make one output for each.

    A virtual stain is for research use only.
    """
    from wsi_stain.conversion.panel import convert_panel, requests_of

    request, models = request_of(slide, **options)
    if dry_run:
        click.echo("\n\n".join(plan_of(one) for one in requests_of(request, models)))
        return
    from wsi_stain.cli.progress import shown

    with shown() as show:
        results = list(convert_panel(request, models, show))
    for result in results:
        report(result)
        if not as_json:
            click.echo(str(result.output))
    if as_json:
        records = [result.record for result in results]
        click.echo(json.dumps(records if len(models) > 1 else records[0], indent=1, ensure_ascii=False))


def report(result: ConversionResult) -> None:
    """What the user should know of an output, on standard error."""
    if result.already_done:
        click.echo(f"{result.output} is already done (same slide, model and settings)", err=True)
    if not result.record["tiles"]["tissue"]:
        click.echo(
            "no tissue was found; pass --mask FILE.geojson with an annotation, or --mask none to stain the whole slide",
            err=True,
        )
    if result.unreadable:
        from wsi_stain.errors import counted

        tiles = counted(len(result.unreadable), "tile")
        click.echo(f"{tiles} of the slide could not be read; background was written instead", err=True)
    click.echo(about_seams(result.record.get("seams")), err=True)


def about_seams(certificate: dict[str, Any] | None) -> str:
    """The seam certificate in one line."""
    from wsi_stain.conversion.certificate import in_words

    if certificate is None:
        return "seams: not checked"
    verdict, *figures = in_words(certificate).values()
    return "\n         ".join([f"seams    {verdict}", *figures])


def request_of(
    slide: Path, *, config_file: Path | None = None, settings: tuple[str, ...] = (), **options: Any
) -> tuple[ConvertRequest, tuple[str, ...]]:
    """The conversion request of these options, and its models; it names the first."""
    from wsi_stain.config.convert import ConvertConfig
    from wsi_stain.config.loader import load
    from wsi_stain.conversion.request import ConvertRequest
    from wsi_stain.model.bundle import DEFAULT

    flags = {
        "output.quality": options.pop("quality"),
        "output.compression": options.pop("compression"),
        "output.compat_openslide": True if options.pop("compat") else None,
    }
    overrides = [f"{key}={str(value).lower()}" for key, value in flags.items() if value is not None]
    mask = options.pop("mask")
    models = tuple(dict.fromkeys(options.pop("models"))) or (DEFAULT,)
    request = ConvertRequest(
        slide=slide,
        config=load(ConvertConfig, config_file, [*settings, *overrides]),
        model=models[0],
        mask=mask if mask in ("auto", "none") else Path(mask),
        **options,
    )
    return request, models


def plan_of(request: Any) -> str:
    """What a conversion will do, as text; time and memory are estimated from a sample. Writes nothing."""
    from wsi_stain.cli.progress import duration
    from wsi_stain.conversion.estimate import Estimate, sample
    from wsi_stain.conversion.job import Job
    from wsi_stain.conversion.survey import Survey
    from wsi_stain.files.full_disk import gib

    survey = Survey.of(request)
    job = Job.of(survey)
    left = Estimate.of(survey, job)
    cost = None if left.is_done else sample(survey, job)
    left = left.with_sample(survey, cost)
    size, mpp, blocks = survey.grid.region.size, survey.view_mpp, len(survey.blocks)
    state = "already done" if left.is_done else f"{blocks - len(left.todo)} of {blocks} painted"
    return "\n".join(
        [
            f"output   {job.output}",
            f"size     {size.w} × {size.h} px" + (f" at {mpp:g} µm/px" if mpp else ""),
            f"model    {job.model} ({survey.bundle.stain}), {survey.precision}",
            f"tiles    {survey.tissue_tiles} with tissue of {survey.tiles}, {left.tissue_tiles} to do",
            f"blocks   {state}",
            f"disk     {gib(left.disk_bytes)} needed, {gib(left.disk_free_bytes)} free",
            f"memory   {gib(left.memory_bytes)} at most",
            f"time     about {duration(left.seconds)}" + (f" on {cost.device}" if cost else ""),
        ]
    )
