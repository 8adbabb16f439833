"""`wsi-stain validate`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("validate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, as_json: bool) -> int:
    """Check an OME-TIFF, ours or not, by the rules for opening perfectly in QuPath.

    Exit code 1 if there are errors; warnings alone give 0.
    """
    import dataclasses

    from wsi_stain.output import ometiff

    found = ometiff.problems(file)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(problem) for problem in found], indent=1, ensure_ascii=False))
    else:
        for problem in found:
            click.echo(f"{problem.severity}: {problem.message} (rule {problem.rule})")
    errors = sum(problem.severity == "error" for problem in found)
    if not as_json:
        click.echo(f"{file}: {errors} errors, {len(found) - errors} warnings", err=True)
    return 1 if errors else 0
