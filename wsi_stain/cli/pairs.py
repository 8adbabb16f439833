"""`wsi-stain pairs`: the paired tiles that a training learns from."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("pairs")
def command() -> None:
    """Check paired tiles before a training learns from them."""


@command.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="New folder for picture, JSON and CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--crop", default=0, show_default=True, help="Crop of the training, px: tiles must not be smaller.")
def check(source: Path, output: Path | None, as_json: bool, crop: int) -> int:
    """Look at every pair in SOURCE: a CSV, or a folder in the layout of BCI, MIST or pix2pix, or with he and ihc.

    Prints counts, sizes and splits, whether the stains show the same fields, how far they are displaced, and what
    stands in two splits. Exit code 1 if something is flagged.
    """
    from dataclasses import replace

    from wsi_stain.pairs import report
    from wsi_stain.pairs.check import check as look
    from wsi_stain.pairs.pair import scan

    if output is not None:
        report.refuse(output)
    pairs, unpaired = scan(source)
    found = look(pairs, crop=crop, progress=lambda done, total: click.echo(f"{done}/{total} pairs", err=True))
    found = replace(found, flagged=(*unpaired, *found.flagged))
    if output is not None:
        report.save(found, output)
    click.echo(report.as_json(found) if as_json else report.text(found))
    return 1 if found.flagged else 0
