"""The command and its subcommands, each of which is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from wool._version import __version__

COMMANDS: Final = ("worker", "status", "top", "stop", "health", "run")
"""Each is a function of its name in a module of its name."""


class Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"wool.cli.{cmd_name}"), cmd_name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="wool %(version)s")
def wool() -> None:
    """Run workers, look at them, and run scripts on them.

    Options can be given by the environment as well: WOOL_DISCOVERY for --discovery, and so on.
    """
