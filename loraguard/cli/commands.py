"""The command line: `loraguard demo | train | audit | compare | protect | stamp | push | pull | info | convert`."""

from __future__ import annotations

import logging
import os
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer

from loraguard.files import writable_folder

from . import audit, hub, patches, protect, stamp
from .audit import print_audit
from .early import names_in
from .hub import print_patch, said_in_a_line
from .options import TRY, Device, OnDevice, Seed, examples

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


@app.command(rich_help_panel=TRY, epilog=examples("loraguard demo --quick", "loraguard demo"))
def demo(
    output_dir: Annotated[Path, typer.Option(help="A folder for the report and the patches.")] = Path("loraguard-demo"),
    seed: Seed = 0,
    device: OnDevice = Device.cpu,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps: all runs, the figures mean little.")] = False,
) -> None:
    """Protect drawn faces, train a standard and a defensive patch, audit all of it, and write a report.

    Offline and without a GPU; two or three minutes on two cores. Open report.html in the output folder afterwards.
    """
    started = time.monotonic()
    with said_in_a_line():
        writable_folder(output_dir)
        from loraguard.demo import DemoSettings, run_demo

        settings = DemoSettings(seed=seed)
        try:
            result = run_demo(output_dir, settings.quick() if quick else settings, device=device.value, say=typer.echo)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "Interrupted. The same command goes on from the last checkpoint, where there is one."
            ) from None
    print_audit(result.audit)
    if quick:
        typer.echo("\nThese figures are of a few steps and faces and mean little; leave out --quick for those that do.")
    typer.echo(f"{time.monotonic() - started:.0f} s.")
    typer.echo(f"Report: {result.report.resolve()}")


@app.command(rich_help_panel=TRY, epilog=examples("loraguard info defenses", "loraguard info patch"))
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
    from loraguard.info import REGISTRIES
    from loraguard.info import info as rows

    if what not in REGISTRIES:
        if "/" not in what and not Path(what).exists():
            known = ", ".join(REGISTRIES)
            typer.secho(f"Error: {what!r} is neither one of {known}, nor a patch's folder or OWNER/NAME.", err=True)
            raise typer.Exit(2)
        print_patch(what, revision)
        return
    for name, where, sentence in rows(what):
        typer.secho(name, bold=True, nl=False)
        typer.echo(f"  ({where})")
        typer.echo(f"    {sentence}")


protect.register(app)
audit.register(app)
patches.register(app)
stamp.register(app)
hub.register(app)


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
