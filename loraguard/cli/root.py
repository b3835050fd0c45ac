"""The command line: `loraguard demo | train | audit | compare | protect | stamp | mark | push | pull | info | ...`."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Annotated

import typer

from . import audit, demo, hub, info, mark, patches, protect, stamp

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


def print_version(wanted: bool) -> None:
    """Print the version and leave, before a command is asked for."""
    if wanted:
        from loraguard import __version__

        typer.echo(f"loraguard {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Audit proactive defenses against adaptive adversaries, and make generators stamp a visible warning."""


for family in (demo, info, protect, audit, patches, stamp, mark, hub):
    family.register(app)


def say_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning in a line, without the place in the code."""
    typer.secho(f"Warning: {message}", fg="yellow", err=True)


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Of what DeepSpeed, where it is installed, logs to stdout: all but that there is no accelerator."""
    return "Setting accelerator to CPU" not in record.getMessage()


def main() -> None:
    """Entry point of the console script."""
    # Before torch is loaded: a thread that waits for another one sleeps. By default it spins, and where another program
    # keeps a core busy, spinning takes the other thread's time and a step takes several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.showwarning = say_warning
    logging.getLogger("DeepSpeed").addFilter(is_worth_a_line)
    app()
