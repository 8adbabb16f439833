"""`wsi-stain validate`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("validate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, as_json: bool) -> int:
    """Check an OME-TIFF from any tool against the rules for files that open correctly in QuPath.

    The exit code is 1 if there are errors, and 0 if there are only warnings.
    """
    import dataclasses

    from wsi_stain.errors import counted
    from wsi_stain.output import ometiff

    problems = ometiff.problems(file)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(problem) for problem in problems], indent=1, ensure_ascii=False))
    else:
        for problem in problems:
            click.echo(f"{problem.severity}: {problem.message} (rule {problem.rule})")
    errors = sum(problem.severity == "error" for problem in problems)
    if not as_json:
        warnings = len(problems) - errors
        click.echo(f"{file}: {counted(errors, 'error')}, {counted(warnings, 'warning')}", err=True)
    return 1 if errors else 0
