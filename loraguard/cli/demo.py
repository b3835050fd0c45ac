"""The command line's `demo`."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraguard.files import writable_folder

from .audit import print_audit
from .errors import said_in_a_line
from .options import TRY, Device, OnDevice, Seed, examples

if TYPE_CHECKING:
    from loraguard.commands.demo import DemoResult


class Editor(str, Enum):
    """What the demo's generator is."""

    gan = "gan"
    diffusion = "diffusion"


def demo(
    output_dir: Annotated[Path, typer.Option(help="A folder for the report and the patches.")] = Path("loraguard-demo"),
    seed: Seed = 0,
    device: OnDevice = Device.cpu,
    editor: Annotated[
        Editor, typer.Option(help="What edits: a GAN, or latent diffusion with today's protections against it.")
    ] = Editor.gan,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps: all runs, the figures mean little.")] = False,
) -> None:
    """Protect drawn faces, train a standard and a defensive patch, audit all of it, and write a report.

    Offline and without a GPU; one or two minutes on two cores. Open report.html in the output folder afterwards.
    """
    started = time.monotonic()
    with said_in_a_line():
        writable_folder(output_dir)
        try:
            result = _run(editor, output_dir, seed, device.value, quick)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "Interrupted. The same command goes on from the last checkpoint, where there is one."
            ) from None
    print_audit(result.audit)
    if quick:
        typer.echo("\nThese figures are of a few steps and faces and mean little; leave out --quick for those that do.")
    typer.echo(f"{time.monotonic() - started:.0f} s.")
    typer.echo(f"Report: {result.report.resolve()}")


def _run(editor: Editor, output_dir: Path, seed: int, device: str, quick: bool) -> DemoResult:
    from loraguard.commands.demo import DemoSettings, run_demo

    if editor is Editor.gan:
        settings = DemoSettings(seed=seed)
        return run_demo(output_dir, settings.quick() if quick else settings, device=device, say=typer.echo)
    from loraguard.commands.demo_diffusion import DiffusionDemoSettings, run_diffusion_demo

    other = DiffusionDemoSettings(seed=seed)
    return run_diffusion_demo(output_dir, other.quick() if quick else other, device=device, say=typer.echo)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        rich_help_panel=TRY,
        epilog=examples("loraguard demo --quick", "loraguard demo", "loraguard demo --editor diffusion"),
    )(demo)
