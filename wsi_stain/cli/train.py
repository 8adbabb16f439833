"""`wsi-stain train`."""

from __future__ import annotations

from pathlib import Path

import click

from wsi_stain.cli.progress import TrainingLine


@click.command("train")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), required=True, help="YAML file of the training."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one setting; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Print the resolved settings, parameters and memory, then stop.")
def command(config_file: Path, settings: tuple[str, ...], dry_run: bool) -> None:
    """Stage 2: train a generator on paired tiles with frozen encoders.

    Re-run the same command to resume. Several GPUs: torchrun --nproc-per-node 4 -m wsi_stain train …

    \b
    wsi-stain train --config configs/train/small.yaml --set pairs=my/pairs --set run=runs/first
    """
    from wsi_stain.config.loader import load
    from wsi_stain.config.train import TrainConfig

    config = load(TrainConfig, config_file, settings)
    if dry_run:
        from wsi_stain.cli.pretrain import show_plan
        from wsi_stain.train.describe import staining_needs

        show_plan(config, config, config.run, staining_needs(config))
        return
    from wsi_stain.train.stages import train

    file = train(config, TrainingLine())
    if file is None:
        return
    click.echo(str(file))
    if config.generator.kind != "unet":
        click.echo(f"next: wsi-stain models pack {config.run} models/NAME", err=True)
