"""`wsi-stain train`."""

from __future__ import annotations

import time
from pathlib import Path

import click


@click.command("train")
@click.option("--config", "config_file", type=click.Path(path_type=Path), required=True, help="YAML of the training.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one setting; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and the number of pairs, then stop.")
def command(config_file: Path, settings: tuple[str, ...], dry_run: bool) -> None:
    """Train a generator on paired tiles; the same command goes on after an interruption.

    \b
    wsi-stain train --config configs/train/small.yaml --set pairs=my/pairs --set run=runs/first
    """
    import yaml

    from wsi_stain.config import TrainConfig
    from wsi_stain.loading import dump, load

    config = load(TrainConfig, config_file, settings)
    if dry_run:
        from wsi_stain.train.data import find_pairs

        click.echo(yaml.safe_dump(dump(config), sort_keys=False), nl=False)
        click.echo(f"# {len(find_pairs(config.pairs, 'train'))} training pairs", err=True)
        return
    from wsi_stain.train.loop import Step, train

    last_line = 0.0

    def show(step: Step) -> None:
        nonlocal last_line
        if time.monotonic() - last_line < 10 and step.images < step.total:
            return
        last_line = time.monotonic()
        left = (step.total - step.images) / step.images_per_s / 60
        losses = ", ".join(f"{name} {value:.3f}" for name, value in step.losses.items())
        click.echo(
            f"{step.images}/{step.total} images, {step.images_per_s:.2f}/s, {left:.0f} min left, {losses}", err=True
        )

    click.echo(str(train(config, show)))
    click.echo(f"next: wsi-stain models pack {config.run} models/NAME", err=True)
