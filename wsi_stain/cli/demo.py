"""`wsi-stain demo`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

SIDE_UM = (2600, 2000)
"""Width and height of the phantom: about 50 tiles, one to two minutes on two cores."""
MPP = 0.5


@click.command("demo")
@click.option("--slide", type=click.Path(path_type=Path), help="Convert this slide instead of a synthetic one.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("wsi-stain-demo"),
    show_default=True,
    help="Output folder.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--view", is_flag=True, help="Show both slides in a browser at the end.")
def command(slide: Path | None, folder: Path, device: str, view: bool) -> None:
    """Make a synthetic H&E slide, convert it with the default model, and print how to view the result."""
    from wsi_stain.cli.progress import shown
    from wsi_stain.conversion.engine import convert
    from wsi_stain.conversion.request import ConvertRequest
    from wsi_stain.files.notice import RESEARCH_USE
    from wsi_stain.model.bundle import DEFAULT, Bundle

    folder.mkdir(parents=True, exist_ok=True)
    source = slide or _phantom(folder)
    bundle = Bundle.open(DEFAULT)
    output = folder / f"{source.stem}.{bundle.stain_slug}.ome.tiff"
    with shown() as show:
        convert(ConvertRequest(slide=source, output=output, model=DEFAULT, device=device), show)
    click.echo(str(output))
    pair = shlex.join([str(source), str(output)])
    click.echo(
        f"\nThis is a virtual {bundle.stain} of {source} made with the model {bundle.name}; "
        f"for {RESEARCH_USE.lower()}.\n"
        f"See both in a browser: wsi-stain view {pair}\n"
        f"Or open both in QuPath (drag them onto the window), then View > Multi-view > Set grid size > 1 × 2\n"
        f"and View > Multi-view > Synchronize viewers. Provenance: wsi-stain info {output}",
        err=True,
    )
    if view:
        from wsi_stain.cli.view import serve
        from wsi_stain.view.catalogue import sources_of

        serve(sources_of(ConvertRequest(slide=source), output), no_browser=False, resume="")


def _phantom(folder: Path) -> Path:
    from wsi_stain import phantom
    from wsi_stain.geometry import Size

    path = folder / "phantom.svs"
    if not path.exists():
        click.echo(f"making a synthetic H&E slide: {path}", err=True)
        phantom.write_slide(path, size=Size(round(SIDE_UM[1] / MPP), round(SIDE_UM[0] / MPP)), mpp=MPP)
    return path
