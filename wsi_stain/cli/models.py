"""`wsi-stain models`: model bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from wsi_stain.config.network import Colours, ImportKind


@click.group("models")
def command() -> None:
    """List, show, check, pack, share and import model bundles."""


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
@click.argument("name")
@click.option("--pairs", type=click.Path(path_type=Path), required=True, help="The pairs that it was trained on.")
@click.option("--split", default="test", show_default=True, help="Split of the held-out errors.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def calibrate(name: str, pairs: Path, split: str, device: str) -> None:
    """Write trust.yaml into a bundle: what its training tiles look like, and its errors on held-out tissue.

    `convert` compares a slide with the former; `measure` derives the interval of a virtual stain from the latter.
    """
    from wsi_stain.cli.progress import counted
    from wsi_stain.evaluate.held_out import calibrate as calibrate_bundle

    path = calibrate_bundle(name, pairs, split=split, device=device, progress=counted("held-out fields"))
    click.echo(str(path))


@command.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--version", default="1.0.0", show_default=True, help="Version of a bundle made from a training.")
@click.option("--licence", default="Apache-2.0", show_default=True, help="SPDX expression for its weights.")
def pack(source: str, target: Path, version: str, licence: str) -> None:
    """Create a bundle from a training, or one file from a bundle.

    TARGET is a folder: SOURCE is the folder of a training; then complete the card.md of the bundle. No file is
    overwritten; an existing card is kept. The tile tolerance is measured here.

    TARGET ends in .zip or .tar: SOURCE is a bundle, a name or a folder. `models unpack` reverses it.
    """
    from wsi_stain.model.archive import ARCHIVES, pack_archive
    from wsi_stain.model.export import pack as pack_run
    from wsi_stain.model.tile_tolerance import in_words

    if target.suffix in ARCHIVES:
        click.echo(str(pack_archive(source, target)))
        return
    bundle = pack_run(Path(source), target, version=version, licence=licence)
    click.echo(str(target))
    assert bundle.config.tile_tolerance, "a packed bundle always has a tile tolerance"
    click.echo(f"sha256 {bundle.sha256}", err=True)
    click.echo(f"tile tolerance (difference from one pass): {in_words(bundle.config.tile_tolerance)}", err=True)
    click.echo(f"now complete {bundle.card_path}", err=True)


@command.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--bioimageio", "folder", type=click.Path(path_type=Path), help="Write a model folder of BioImage.IO.")
@click.option("--tile", type=int, help="Side of its tiles in pixels. [default: the bundle's, but at most 512]")
@click.option("--author", "authors", multiple=True, help="Who made the model, for --bioimageio; repeat it.")
def export(name: str, file: Path | None, folder: Path | None, tile: int | None, authors: tuple[str, ...]) -> None:
    """Write the network of a bundle as the ONNX graph FILE: one tile of RGB in, the stain out, both in [-1, 1].

    With --bioimageio, write a folder with rdf.yaml (specification 0.5), the graph, and test tensors instead.
    """
    if (file is None) == (folder is None):
        raise click.UsageError("Pass FILE or --bioimageio DIR.")
    if file is not None:
        from wsi_stain.model.graph_export import export_graph

        export_graph(name, file, tile)
    elif folder is not None:
        from wsi_stain.model.bioimageio_export import export_folder

        agreement_db = export_folder(name, folder, tile=tile, authors=authors)
        click.echo(f"agreement of the graph with the network: {agreement_db:.1f} dB", err=True)
    click.echo(str(file or folder))


@command.command()
@click.argument("archive", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def unpack(archive: Path, folder: Path) -> None:
    """Create the folder of a bundle from ARCHIVE, a .zip or .tar of `models pack`; its hash is checked."""
    from wsi_stain.model.archive import unpack_archive

    unpack_archive(archive, folder)
    click.echo(str(folder))


@command.command()
@click.argument("reference")
def pull(reference: str) -> None:
    """Fetch a bundle from the Hugging Face Hub: hf:OWNER/NAME@REVISION; prints the folder for --model.

    A full commit hash pins the revision. The hash of the weights is checked. Nothing else downloads anything;
    HF_HUB_OFFLINE=1 uses the cache only. Needs the extra [hub].
    """
    from wsi_stain.model.hub import pull as pull_bundle

    pulled = pull_bundle(reference)
    click.echo(str(pulled.bundle.folder))
    if not reference.endswith(pulled.commit):
        pinned = f"{reference.rpartition('@')[0]}@{pulled.commit}"
        click.echo(f"to get the same bundle again: {pinned}", err=True)


class NumbersType(click.ParamType[Any]):
    """Numbers separated by commas."""

    name = "A,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        try:
            return [float(part) if "." in part or "e" in part.lower() else int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers separated by commas, for example -1,1")


@command.command("import")
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Folder of the bundle.")
@click.option("--kind", type=click.Choice(get_args(ImportKind)), help="Architecture, or onnx; required for a file.")
@click.option("--mpp", type=float, help="µm per pixel of the images that it was trained on.")
@click.option("--stain", help="Stain that it produces, for example HER2.")
@click.option("--licence", help="SPDX expression for the weights.")
@click.option("--values-in", type=NumbersType(), help="What pixel values 0 and 255 are for its input. E.g. -1,1")
@click.option("--values-out", type=NumbersType(), help="What pixel values 0 and 255 are in its output. E.g. -1,1")
@click.option("--colours", type=click.Choice(get_args(Colours)), help="Order of the colours.")
@click.option("--tile", type=int, help="Side of its tiles in pixels.")
@click.option("--multiple", type=int, help="Divisor of the sides of tiles. [default: that of the kind; onnx: required]")
@click.option("--overlap", type=int, help="Overlap of tiles in pixels. [default: twice the measured reach]")
@click.option(
    "--background",
    type=NumbersType(),
    help="Colour R,G,B of empty slide, or its value in each channel. [default: measured]",
)
@click.option("--channels", help="Names of fluorescence outputs, each with a colour if you like: DAPI,CD3=00FF00")
@click.option("--input-stain", help="Stain of its input. [default: H&E]")
@click.option("--output-name", "output", help="Output of an ONNX graph that is the stain, if there are several.")
@click.option("--version", help="Version of the bundle. [default: 1.0.0]")
@click.option("--limit", "limit_s", type=int, help="Seconds for reading the file and a first run. [default: 120]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file with these settings.")
def import_(weights: Path, folder: Path, config_file: Path | None, **options: Any) -> None:
    """Make the bundle -o FOLDER of the generator in WEIGHTS; then complete its card.md.

    WEIGHTS is a state dict (.pth, .safetensors) of the CycleGAN family, an ONNX file, or a model folder of BioImage.IO
    (rdf.yaml) with ONNX weights. It is opened in a process with limits, and no code in it is executed. What it does not
    state must be given. See docs/import.md.
    """
    from wsi_stain.config.channels import parse
    from wsi_stain.config.loader import dump
    from wsi_stain.model.bioimageio_import import read_folder
    from wsi_stain.model.importing import import_model, settings

    given = {key: value for key, value in options.items() if value is not None}
    resource = read_folder(weights) if weights.is_dir() else None
    if resource is None and "kind" not in given:
        raise click.UsageError("Missing option '--kind'; only a model folder of BioImage.IO states it.")
    if resource is not None and given.get("kind", "onnx") != "onnx":
        raise click.UsageError(f"--kind {given['kind']}: only the ONNX weights of a model folder are imported.")
    if "channels" in given:
        given["channels"] = [dump(channel) for channel in parse(given["channels"])]
    config = settings(given, config_file, resource.facts if resource else None)
    bundle = import_model(resource.weights if resource else weights, folder, config, resource and resource.tensors)
    measured = bundle.config.measured
    assert measured, "an imported network was measured"
    click.echo(str(folder))
    click.echo(f"tiles of {bundle.tile} px, overlap {bundle.overlap} px, reach {measured.reach} px", err=True)
    click.echo(f"agreement with the source network: {measured.agreement_db:g} dB", err=True)
    click.echo(f"{measured.seconds_per_tile:g} s per tile on the CPU", err=True)
    if bundle.has_tile_statistics:
        click.echo("it normalizes each tile by its own statistics; convert uses those of the slide", err=True)
    click.echo(f"now complete {bundle.card_path}", err=True)
