"""The command and its subcommands, each of which is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

import click

from wool._version import __version__

if TYPE_CHECKING:
    from typing import Any

COMMANDS: Final = ("worker", "status", "top", "stop", "health", "run")
"""Each is a function of its name in a module of its name."""

INTERRUPTED: Final = 130
"""The exit code of a command that is interrupted, as shells have it for SIGINT."""


class Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)

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
