"""`wsi-stain measure`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from wsi_stain.cli.progress import counted


class Numbers(click.ParamType[Any]):
    """A fixed number of decimal numbers, separated by commas."""

    def __init__(self, names: str) -> None:
        self.name, self._count = names, names.count(",") + 1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != self._count:
            self.fail(f"{value!r} is not {self.name}: {self._count} numbers with commas, for example 0.65,0.7,0.29")
        return numbers


class StainsType(click.ParamType[Any]):
    """How the vectors are chosen, or both vectors."""

    name = "auto|estimate|model|ruifrok|R,G,B;R,G,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        if value in ("auto", "estimate", "model", "ruifrok"):
            return value
        both = [Numbers("R,G,B").convert(part, param, ctx) for part in value.split(";")]
        if len(both) != 2:
            self.fail(f"{value!r} is not {self.name}: the vectors of hematoxylin and of DAB, separated by a semicolon")
        return tuple(both)


@click.command("measure")
@click.argument("slide", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--roi", type=click.Path(path_type=Path), help="GeoJSON file; each of its areas is measured.")
@click.option("--he", type=click.Path(path_type=Path), help="H&E of the same frame, on which tissue is detected.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder. [default: FILE.measure]")
@click.option("--mpp", type=float, help="Pixel size of the slide in µm, if the file has none or a wrong one.")
@click.option("--image", type=click.IntRange(min=0), help="Image to read, if there are several. [default: the largest]")
@click.option("--z", type=click.IntRange(min=0), help="Focal plane, if there are several. [default: the middle one]")
@click.option("--at", type=float, help="Pixel size in µm at which to measure. [default: that of level 0]")
@click.option("--mask", default="auto", show_default=True, help="Tissue: auto, none (every pixel), or a GeoJSON file.")
@click.option("--model", help="Bundle of a virtual stain, if it is not shipped.")
@click.option(
    "--stains",
    type=StainsType(),
    default="auto",
    show_default=True,
    help="Vectors of hematoxylin and DAB; auto estimates those of a slide and takes the model's for a virtual stain.",
)
@click.option("--background", type=Numbers("R,G,B"), help="Colour of the empty slide, 0-255. [default: estimated]")
@click.option(
    "--thresholds",
    type=Numbers("WEAK,MODERATE,STRONG"),
    default="0.15,0.4,0.6",
    show_default=True,
    help="DAB densities of the classes.",
)
@click.option("--workers", type=int, help="Number of threads. [default: one per processor]")
@click.option("--json", "as_json", is_flag=True, help="Print measure.json instead of the figures of the slide.")
def command(slide: Path, mask: str, thresholds: tuple[float, float, float], as_json: bool, **options: Any) -> None:
    """Measure DAB and hematoxylin of an H-DAB slide, real or virtual: tables, maps and a page.

    The figures of a virtual stain are predictions. Their interval comes from the held-out errors of the model, if it
    has any, and holds for tissue like that on which it was judged.
    """
    from wsi_stain.readout.measure import HTML, measure
    from wsi_stain.readout.page import LABELS
    from wsi_stain.readout.request import MeasureRequest, Thresholds

    request = MeasureRequest(
        slide, mask=mask if mask in ("auto", "none") else Path(mask), thresholds=Thresholds(*thresholds), **options
    )
    result = measure(request, counted("tasks"))
    if as_json:
        click.echo(json.dumps(result.content, indent=1, ensure_ascii=False))
        return
    figures = result.content["figures"]["slide"]
    for name, (label, factor, digits) in LABELS.items():
        if figures.get(name) is not None:
            click.echo(f"{label:32} {factor * figures[name]:.{digits}f}")
    click.echo(result.content["interval"], err=True)
    click.echo(str(result.folder / HTML), err=True)
