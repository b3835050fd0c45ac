"""The command line: `loraguard demo | train | audit | compare | protect | stamp | mark | push | pull | info | ...`."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

FAMILIES = {
    "demo": ("demo",),
    "info": ("info",),
    "protect": ("protect",),
    "audit": ("audit", "compare"),
    "patches": ("train", "convert"),
    "stamp": ("stamp",),
    "mark": ("mark",),
    "hub": ("push", "pull"),
}
"""The modules here that hold commands, in the order of the help, and which."""


class Root(TyperGroup):
    """The commands. Where one is named first, our own options are left alone: for them typer imports pydantic."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What is left for the command."""
        if not args or args[0].startswith("-"):
            return super().parse_args(ctx, args)
        mine, self.params, self.add_help_option = self.params, [], False
        try:
            return super().parse_args(ctx, args)
        finally:
            self.params, self.add_help_option = mine, True


def application(command: str | None = None) -> typer.Typer:
    """The commands; where one of them is named, as most that are called name one, its family alone is imported.

    Example:
        >>> [one.callback.__name__ for one in application("audit").registered_commands]
        ['audit', 'compare']
    """
    app = typer.Typer(cls=Root, no_args_is_help=True, rich_markup_mode="markdown")
    app.callback()(root)
    named = [family for family, commands in FAMILIES.items() if command in commands]
    for family in named or FAMILIES:
        import_module(f"{__package__}.{family}").register(app)
    return app


def print_version(wanted: bool) -> None:
    """Print the version and leave, before a command is asked for."""
    if wanted:
        from loraguard import __version__

        typer.echo(f"loraguard {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Audit proactive defenses against adaptive adversaries, and make generators stamp a visible warning."""
