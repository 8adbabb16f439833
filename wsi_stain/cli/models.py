"""`wsi-stain models`: model bundles."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("models")
def command() -> None:
    """List, show, check and pack model bundles."""


@command.command("list")
def list_() -> None:
    """List the bundles that are shipped with this installation."""
    from wsi_stain.model.bundle import DEFAULT, Bundle, shipped

    for name in shipped():
        bundle = Bundle.open(name)
        scale = f"{bundle.mpp} µm/px" if bundle.mpp else "any µm/px"
        mark = "  (default)" if name == DEFAULT else ""
        click.echo(f"{name}  {bundle.version}  {bundle.config.input.stain} → {bundle.stain}  {scale}{mark}")


@command.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the specification and the card of a bundle."""
    import yaml

    from wsi_stain.config.loader import dump
    from wsi_stain.model.bundle import Bundle

    bundle = Bundle.open(name)
    click.echo(yaml.safe_dump(dump(bundle.config), sort_keys=False, allow_unicode=True))
    if bundle.card_path is not None:
        click.echo(bundle.card_path.read_text(encoding="utf-8"))


@command.command()
@click.argument("name")
def check(name: str) -> int:
    """Check a bundle: hash, network, licence, card, determinism, and the tile tolerance.

    The exit code is 1 if a check fails.
    """
    from wsi_stain.model.export import check as find_problems

    problems = find_problems(name)
    for problem in problems:
        click.echo(problem)
    if not problems:
        click.echo(f"{name}: OK", err=True)
    return 1 if problems else 0


@command.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--version", default="1.0.0", show_default=True, help="Version of the bundle.")
@click.option("--licence", default="Apache-2.0", show_default=True, help="SPDX expression for the weights.")
def pack(run: Path, folder: Path, version: str, licence: str) -> None:
    """Create the bundle FOLDER from the training in RUN; then complete its card.md.

    No file is overwritten; an existing card is kept. The tile tolerance is measured here.
    """
    from wsi_stain.model.export import pack as pack_run
    from wsi_stain.model.tile_invariance import in_words

    bundle = pack_run(run, folder, version=version, licence=licence)
    click.echo(str(folder))
    assert bundle.config.tile_tolerance, "a packed bundle always has a tile tolerance"
    click.echo(f"sha256 {bundle.sha256}", err=True)
    click.echo(f"tile tolerance (difference from one pass): {in_words(bundle.config.tile_tolerance)}", err=True)
    click.echo(f"now complete {bundle.card_path}", err=True)
