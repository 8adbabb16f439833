"""`wsi-stain doctor`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("doctor")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Folder for outputs to check; the working directory by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(folder: Path, as_json: bool) -> int:
    """Check this installation and this machine: PASS, WARN or FAIL, and what to do.

    Every reader opens a built-in slide, every model stains a tile, and devices, folders, memory, threads, Dask and
    SLURM are tried. Takes a few seconds. The exit code is 1 if a check fails.
    """
    import dataclasses
    import json

    from wsi_stain.doctor.examine import examine

    findings = []
    for finding in examine(folder.absolute()):
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.level}  {finding.subject:26} {finding.detail}")
            if finding.fix:
                click.echo(f"{'':33}→ {finding.fix}")
    failed = sum(finding.level == "FAIL" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "findings": [dataclasses.asdict(f) for f in findings]}, indent=2))
    else:
        warned = sum(finding.level == "WARN" for finding in findings)
        click.echo(f"{len(findings)} checks: {failed} failed, {warned} with a warning")
    return 1 if failed else 0
