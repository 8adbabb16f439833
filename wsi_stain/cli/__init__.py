"""The command line: parse, call one function, print.

Sub-commands are imported only when they run, so that help is instant.
"""

from __future__ import annotations

import importlib
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import click

from wsi_stain import __version__
from wsi_stain.cli import supervise
from wsi_stain.cli.console import use_any_encoding
from wsi_stain.errors import ConfigError, DeviceError, WsiStainError
from wsi_stain.files.full_disk import is_full, no_resources

COMMANDS = {
    "convert": "Convert a slide to a virtual stain: OME-TIFF, OME-Zarr or DICOM.",
    "view": "Show a slide and its virtual stain in a browser; stains what you look at.",
    "cohort": "Convert many slides on this machine or a cluster: plan, run, status.",
    "demo": "Make a synthetic H&E slide and convert it.",
    "info": "Show the properties of a slide or an output.",
    "measure": "Measure DAB and hematoxylin of a slide, real or virtual: tables, maps, a page.",
    "validate": "Check that an OME-TIFF or a DICOM series opens correctly.",
    "seams": "Find seams in a virtual slide of any tool, at a given or unknown tile grid.",
    "pairs": "Make paired tiles from two slides, and check them.",
    "pretrain": "Train the encoders of both stains with a contrastive loss.",
    "train": "Train a generator on paired tiles.",
    "evaluate": "Compare a model with real stains and trivial baselines.",
    "models": "List, show, check, pack, share and import model bundles.",
    "doctor": "Check this installation and this machine.",
}
"""Every sub-command and its help line; command `x` is the object `command` in `wsi_stain.cli.x`."""

CALL_ERRORS = (ConfigError, DeviceError)
"""Errors that need a corrected call (exit code 2); all others mean that the work failed (exit code 1)."""


class LazyGroup(click.Group):
    """A group that lists its commands by name and imports a command only when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See click."""
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"wsi_stain.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="wsi-stain")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def group(debug: bool) -> None:
    """Convert whole H&E slides to virtual immunostains. Virtual stains are for research use only."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 the work failed, 2 invalid call, 130 interrupted."""
    if arguments is None:
        arguments = sys.argv[1:]
        if supervise.is_wanted(arguments) and (end := supervise.run_in_child()) is not None:
            code, sentence = end
            sys.exit(_fail(sentence, code) if sentence else code)
    use_any_encoding()
    if threading.current_thread() is threading.main_thread():
        handler = supervise.interrupt_once()
        for number in (signal.SIGINT, signal.SIGTERM):  # clusters end jobs with SIGTERM: stop as for Ctrl-C
            signal.signal(number, handler)
    try:
        code = group.main(args=arguments, prog_name="wsi-stain", standalone_mode=False)
    except click.exceptions.Abort:
        same = "the same command without --restart" if "--restart" in arguments else "the same command"
        code = _fail(f"interrupted; re-run {same} to resume", supervise.INTERRUPTED)
    except click.ClickException as err:
        err.show()
        code = err.exit_code
    except (WsiStainError, OSError) as err:
        if "--debug" in arguments:
            traceback.print_exc()
        code = _fail(_sentence(err), 2 if isinstance(err, CALL_ERRORS) else 1)
    sys.exit(_as_code(code))


def _sentence(err: WsiStainError | OSError) -> str:
    """The message of an error; for a system error, its file and reason."""
    if not isinstance(err, WsiStainError) and is_full(err):
        return str(no_resources(err, Path(err.filename or "output")))
    if isinstance(err, OSError) and err.strerror:
        name = err.filename2 or err.filename  # of two, the destination
        where = f"{name}: " if name else ""
        return f"{where}{err.strerror}; check that it exists and is accessible (wsi-stain --debug shows the traceback)"
    return str(err)


def _fail(sentence: str, code: int) -> int:
    click.echo(f"wsi-stain: {sentence}", err=True)
    return code


def _as_code(result: Any) -> int:
    return result if isinstance(result, int) else 0
