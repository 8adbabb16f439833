"""`wsi-stain validate`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("validate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--privacy", is_flag=True, help="List instead what the file may tell about a patient or a user.")
def command(file: Path, as_json: bool, privacy: bool) -> int:
    """Check an OME-TIFF from any tool against the rules for files that open correctly in QuPath, or a DICOM series.

    The exit code is 1 if there are errors, and 0 if there are only warnings. With --privacy, it is 1 if there is
    anything to look at: texts, dates, home folders, label and macro images. Writing inside the picture is not found.
    """
    import dataclasses

    from wsi_stain.errors import counted
    from wsi_stain.output import dicom, ometiff

    checks = dicom if dicom.is_series(file) else ometiff
    if privacy:
        hints = checks.hints(file)
        if as_json:
            click.echo(json.dumps([dataclasses.asdict(hint) for hint in hints], indent=1, ensure_ascii=False))
        else:
            for hint in hints:
                click.echo(f"{hint.where}: {hint.what}: {hint.text}")
            click.echo(f"{file}: {counted(len(hints), 'place')} to look at", err=True)
        return 1 if hints else 0
    problems = checks.problems(file)
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
