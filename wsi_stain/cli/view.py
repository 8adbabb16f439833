"""`wsi-stain view`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from wsi_stain.cli.convert import command as convert_command

SHARED = (
    *("output", "models", "mpp", "image", "z", "device", "precision", "mask", "region", "quality", "compression"),
    *("compat", "norm", "allow_upsampling", "allow_virtual", "force_brightfield", "config_file", "settings"),
)
"""Options of `wsi-stain convert` that select the slide's scale, the model, and the output."""


def _shared_options() -> list[click.Parameter]:
    return [option for option in convert_command.params if option.name in SHARED]


@click.command(
    "view",
    params=[
        click.Argument(["slide"], type=click.Path(path_type=Path)),
        click.Argument(["virtual"], type=click.Path(path_type=Path), required=False),
        click.Option(["--host"], default="127.0.0.1", show_default=True, help="Address to listen on."),
        click.Option(["--port"], type=click.IntRange(0, 65535), default=0, help="[default: a free one]"),
        click.Option(["--allow-remote"], is_flag=True, help="Let other machines connect, without encryption."),
        click.Option(["--no-browser"], is_flag=True, help="Print the address, and the SSH tunnel to it, only."),
        *_shared_options(),
    ],
)
@click.pass_context
def command(ctx: click.Context, slide: Path, virtual: Path | None, no_browser: bool, **options: Any) -> None:
    """Show SLIDE and its virtual stain in a browser; what you look at is stained at once.

    With VIRTUAL, an OME-TIFF or OME-Zarr, the finished pair is shown. SLIDE may be the folder of a cohort. Several
    --model list the slide once for each stain.

    What was stained is kept: `wsi-stain convert` with the same options resumes from it and writes the output. The page
    is served to this machine only, and its address holds a secret. A virtual stain is for research use only.
    """
    server = {name: options.pop(name) for name in ("host", "port", "allow_remote")}
    from wsi_stain.cli.convert import request_of
    from wsi_stain.view.catalogue import sources_of

    request, models = request_of(slide, **options, workers=None, scheduler=None, cluster=None, restart=False)
    serve(sources_of(request, virtual, models), no_browser=no_browser, resume=_resume(ctx), **server)


def serve(sources: list[Any], *, no_browser: bool, resume: str, **server: Any) -> None:
    """Serve slides until Ctrl-C.

    Args:
        sources: the slides (`view.scene.Source`).
        no_browser: print how to connect instead of opening a browser.
        resume: the command that completes the output.
        server: arguments of `Viewer`.
    """
    import asyncio
    import webbrowser
    from contextlib import suppress

    from wsi_stain.view.server import Viewer

    with Viewer(sources, **server) as viewer:
        scene = viewer.scenes.get(0) if len(sources) == 1 else None
        if server.get("allow_remote"):
            click.echo("warning: other machines can connect, and the connection is not encrypted", err=True)
        click.echo(viewer.address)
        if no_browser:
            click.echo(f"from another machine: ssh -L {viewer.port}:127.0.0.1:{viewer.port} {_login()}", err=True)
        elif not webbrowser.open(viewer.address):
            click.echo("no browser was found; open the address above", err=True)
        click.echo("Ctrl-C ends the viewer", err=True)
        with suppress(KeyboardInterrupt):
            asyncio.run(viewer.serve())
        click.echo("ending after the tile in work", err=True)
    if scene is not None and scene.stainer is not None:
        share = scene.state()["share"]
        click.echo(f"{share:.0%} of the tissue is stained; to write the output: {resume}", err=True)


def _resume(ctx: click.Context) -> str:
    """The call of `wsi-stain convert` with the options of this call."""
    words = ["wsi-stain", "convert", str(ctx.params["slide"])]
    for option in _shared_options():
        value, name = ctx.params[option.name or ""], max(option.opts, key=len)
        if ctx.get_parameter_source(option.name or "") is not click.core.ParameterSource.COMMANDLINE:
            continue
        if value is True:
            words.append(name)
        for one in value if isinstance(value, tuple) and option.multiple else () if value is True else (value,):
            words += [name, ",".join(map(str, one)) if isinstance(one, tuple) else str(one)]
    return shlex.join(words)


def _login() -> str:
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # in a container, a user may have a number only
        user = "USER"
    return f"{user}@{socket.gethostname()}"
