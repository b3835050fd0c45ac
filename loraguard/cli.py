"""The command line: `loraguard demo | convert`."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


class Device(str, Enum):
    """Where to compute."""

    cpu = "cpu"
    auto = "auto"


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


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Where the report and the patches go.")] = Path("loraguard-demo"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of everything that is drawn.")] = 0,
    device: Annotated[Device, typer.Option(help="cpu, or auto for the accelerator that is there.")] = Device.cpu,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps: everything runs, the figures mean little.")
    ] = False,
) -> None:
    """Protect drawn faces, train a standard and a defensive patch, audit all of it, and write a report.

    Offline and without a GPU; three to four minutes on two cores.
    """
    from loraguard.audit import table, verdict
    from loraguard.demo import DemoSettings, run_demo

    started = time.monotonic()
    settings = DemoSettings(seed=seed)
    try:
        result = run_demo(output_dir, settings.quick() if quick else settings, device=device.value, say=typer.echo)
    except OSError as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    headings, rows = table(result.audit)
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    typer.echo()
    for row in [headings, *rows]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    typer.echo()
    for sentence in verdict(result.audit):
        typer.echo(sentence)
    typer.echo(f"\nBudget: {result.audit.settings['budget']}. {time.monotonic() - started:.0f} s.")
    typer.echo(f"Report: {result.report.resolve()}")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A patched checkpoint of the paper's authors, from torch.save.")],
    output_dir: Annotated[Path, typer.Argument(help="Where the patch goes.")],
    alpha: Annotated[float, typer.Option(help="The lora_alpha it was trained with; it is not in the file.")] = 2.0,
) -> None:
    """Turn a patched checkpoint of the paper's authors into a patch that plain PEFT loads.

    Writes the adapter, and the weights of the untouched generator as generator.safetensors. Runs no pickle.
    """
    from loraguard.tuner import convert_checkpoint

    try:
        patch = convert_checkpoint(checkpoint, alpha)
        patch.save(output_dir)
    except (OSError, ValueError) as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    layers = sum(name.endswith(".lora_A.weight") for name in patch.tensors)
    typer.echo(f"{layers} adapted layers, rank {patch.config.r}. Patch: {output_dir.resolve()}")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
