"""`wsi-stain doctor`."""

from __future__ import annotations

import click


@click.command("doctor")
def command() -> int:
    """Check this installation: versions, readers, devices, the default model. The exit code is 1 if a check fails."""
    import openslide
    import torch

    from wsi_stain.files import record
    from wsi_stain.model.bundle import DEFAULT
    from wsi_stain.model.export import check

    for name, version in record.versions().items():
        click.echo(f"{name:24} {version}")
    click.echo(f"{'OpenSlide':24} {openslide.__library_version__}")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    click.echo(f"{'devices':24} {', '.join(['cpu', *devices])}; {torch.get_num_threads()} CPU threads")
    problems = check(DEFAULT, tiles=False)
    click.echo(f"{'default model':24} {DEFAULT}: {'; '.join(problems) or 'OK'}")
    return 1 if problems else 0
