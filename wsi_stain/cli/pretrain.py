"""`wsi-stain pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsi_stain.cli.progress import TrainingLine

if TYPE_CHECKING:
    from wsi_stain.config.train import PretrainConfig, TrainConfig
    from wsi_stain.train.describe import Needs


@click.command("pretrain")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), required=True, help="YAML file of the training."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one setting; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Print the resolved settings, parameters and memory, then stop.")
def command(config_file: Path, settings: tuple[str, ...], dry_run: bool) -> None:
    """Stage 1: train the encoders of both stains with a contrastive loss, and report how well they recognize pairs.

    Re-run the same command to resume. `wsi-stain train` with the same configuration uses the result.

    \b
    wsi-stain pretrain --config configs/train/small.yaml --set pairs=my/pairs --set run=runs/first
    """
    import json

    from wsi_stain.config.loader import load
    from wsi_stain.config.train import TrainConfig

    config = load(TrainConfig, config_file, settings)
    if dry_run:
        from wsi_stain.train.describe import contrast_needs
        from wsi_stain.train.encoders import FOLDER

        show_plan(config, config.pretrain, config.run / FOLDER, contrast_needs(config))
        return
    from wsi_stain.train.discrimination import JSON
    from wsi_stain.train.stages import pretrain

    file = pretrain(config, TrainingLine())
    if file is None:
        return
    scores = json.loads((file.parent / JSON).read_text(encoding="utf-8"))
    click.echo(
        f"{scores['pairs']} held-out crops ({scores['split']}): ROC-AUC {_interval(scores['auc'])}, accuracy "
        f"{_interval(scores['accuracy'])} at a cosine of {scores['threshold']:.2f}",
        err=True,
    )
    click.echo(str(file))


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def show_plan(config: TrainConfig, stage: TrainConfig | PretrainConfig, folder: Path, needs: Needs) -> None:
    """Print the resolved settings to standard output, and their consequences to standard error.

    Raises:
        TrainingError: the training would be refused for its pairs.
    """
    import yaml

    from wsi_stain.config.loader import dump
    from wsi_stain.train.stages import checked_pairs, total_images

    schedule, pairs = stage.schedule, len(checked_pairs(config, stage.crop, folder))
    click.echo(yaml.safe_dump(dump(config), sort_keys=False), nl=False)
    total = total_images(schedule, pairs)
    lines = [
        f"{name}: {count:,} parameters{note}"
        for counts, note in ((needs.trained, ""), (needs.frozen, ", frozen"))
        for name, count in counts.items()
    ]
    lines += [
        f"{pairs} training pairs: {pairs} images per epoch, {total:,} images in total ({total / pairs:.1f} epochs)",
        f"memory of a step: about {needs.memory_bytes / 2**30:.2f} GiB in addition to the libraries (float32)",
    ]
    for line in lines:
        click.echo(f"# {line}", err=True)
