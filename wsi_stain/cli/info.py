"""`wsi-stain info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command("info")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--mpp", type=float, help="Pixel size in µm, if the file has none.")
@click.option("--image", type=click.IntRange(min=0), help="Image to show, if the file holds several.")
@click.option("--z", type=click.IntRange(min=0), help="Focal plane to show, if there are several.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, mpp: float | None, image: int | None, z: int | None, as_json: bool) -> None:
    """Show size, levels, µm/px and codec of a slide or an output and, for wsi-stain outputs, the provenance."""
    facts = _facts(file, mpp, image, z)
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{key}:")
            for name, text in value.items():
                click.echo(f"  {name:24} {text}")
        elif isinstance(value, list):
            click.echo(f"{key:26} {'; '.join(map(str, value))}")
        else:
            click.echo(f"{key:26} {'–' if value is None else value}")


def _facts(file: Path, mpp: float | None, image: int | None, z: int | None) -> dict[str, Any]:
    if facts := _output_facts(file):
        return facts
    from wsi_stain.errors import SlideError
    from wsi_stain.output import dicom, ometiff
    from wsi_stain.slide.slide import Slide

    if facts := dicom.describe(file):
        return facts
    try:
        facts = ometiff.describe(file)
    except SlideError:
        facts = {}  # not a TIFF: the slide reader describes or rejects it
    if facts.get("virtual") or facts.get("stain"):
        return facts  # an output of ours; any other OME-TIFF is described as `convert` reads it
    with Slide.open(file, mpp=mpp, image=image, z=z) as slide:
        return {
            "file": file.name,
            "size_px": f"{slide.size.w} × {slide.size.h}",
            "mpp": slide.mpp_or_none,
            "magnification": slide.magnification,
            "levels": [f"{level.size.w} × {level.size.h}" for level in slide.levels],
            "icc_profile": slide.icc,
            "properties": slide.properties,
            **({"notes": list(slide.notes)} if slide.notes else {}),
        }


def _output_facts(folder: Path) -> dict[str, Any]:
    """Metadata of an OME-Zarr of ours, read without opening its arrays; empty for any other folder."""
    try:
        attributes = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        annotations, scales = attributes["wsi_stain"], attributes["ome"]["multiscales"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return {}
    return {
        "file": folder.name,
        "ome_zarr": attributes["ome"].get("version"),
        "levels": [dataset["path"] for dataset in scales.get("datasets", [])],
        "axes": [axis["name"] for axis in scales.get("axes", [])],
        **_channels(attributes["ome"]),
        "annotations": annotations,
    }


def _channels(ome: dict[str, Any]) -> dict[str, list[str]]:
    """The names of the fluorescence channels of an OME-Zarr; empty for colours."""
    names = [str(channel.get("label")) for channel in ome.get("omero", {}).get("channels", [])]
    return {} if names == ["Red", "Green", "Blue"] else {"channels": names}
