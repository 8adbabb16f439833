"""`wsi-stain seams`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click


@click.command("seams")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--he", type=click.Path(path_type=Path), required=True, help="H&E slide from which FILE was made.")
@click.option("--tile", type=click.IntRange(min=32), help="Side of the tiles in px of FILE. [default: find the period]")
@click.option("--overlap", type=click.IntRange(min=0), default=0, help="Pixels that neighbouring tiles share.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Picture of what was found, NAME.png.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, he: Path, tile: int | None, overlap: int, output: Path | None, as_json: bool) -> int:
    """Examine a virtual slide of any tool for steps at a tile grid, which it finds by itself.

    The exit code is 1 if there are seams, and 0 if there are none. Steps that the H&E has at the same lines come from
    its scan and are no seams. Steps that blending has smoothed are not found.
    """
    from wsi_stain.conversion.examine import examine
    from wsi_stain.errors import ConfigError

    if output is not None and output.suffix.lower() != ".png":
        raise ConfigError(f"-o is {output}: the picture is a PNG; choose a name that ends in .png")
    if output is not None and output.exists():
        raise ConfigError(f"{output} already exists; choose another name with -o, or remove it first")
    result = examine(file, he, tile=tile, overlap=overlap)
    if output is not None:
        from wsi_stain.conversion.examine_picture import draw

        draw(result, output, file.name)
    if as_json:
        content = {"seams": result.has_seams, "axes": [dataclasses.asdict(axis) for axis in result.axes]}
        click.echo(json.dumps(content, indent=1))
    else:
        for axis in result.axes:
            click.echo(axis.sentence)
        click.echo(f"{file.name}: {'SEAMS' if result.has_seams else 'no seams'}")
    return 1 if result.has_seams else 0
