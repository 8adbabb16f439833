"""`wsi-stain pairs`: check paired training tiles."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("pairs")
def command() -> None:
    """Check paired tiles before training."""


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
