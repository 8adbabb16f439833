"""Options of earlier versions: they still work, with a warning."""

from __future__ import annotations

import click

RENAMED = {"--only": "--shard", "--take-over": "--break-stale-locks"}
"""Old name → current name."""


class RenamedOptions(click.Command):
    """A command that also takes its options by their old names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        return super().parse_args(ctx, [_current(argument) for argument in args])


def _current(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if name not in RENAMED:
        return argument
    click.echo(f"warning: the option {name} is now called {RENAMED[name]}; the old name still works", err=True)
    return RENAMED[name] + equals + value
