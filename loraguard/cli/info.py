"""The command line's `info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .early import names_in
from .hub import print_patch
from .options import TRY, examples


def info(
    what: Annotated[
        str,
        typer.Argument(
            help="generators, data, defenses, channels; or a patch: a folder or a Hub id.",
            autocompletion=names_in(("generators", "data", "defenses", "channels")),
        ),
    ],
    revision: Annotated[str | None, typer.Option(help="Of a patch on the Hub: branch, tag or commit.")] = None,
) -> None:
    """List what can be asked for by name, or say what a patch holds (its generator is not loaded).

    Names are ours, and what other packages declare as entry points.
    """
    from loraguard.commands.info import REGISTRIES, registered

    if what not in REGISTRIES:
        if "/" not in what and not Path(what).exists():
            known = ", ".join(REGISTRIES)
            typer.secho(f"Error: {what!r} is neither one of {known}, nor a patch's folder or OWNER/NAME.", err=True)
            raise typer.Exit(2)
        print_patch(what, revision)
        return
    if revision is not None:
        typer.secho(f"Error: {what} is a list of names, which has no revision; leave --revision out.", err=True)
        raise typer.Exit(2)
    for name, where, sentence in registered(what):
        typer.secho(name, bold=True, nl=False)
        typer.echo(f"  ({where})")
        typer.echo(f"    {sentence}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel=TRY, epilog=examples("loraguard info defenses", "loraguard info patch"))(info)
