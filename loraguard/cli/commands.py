"""The command line: `loraguard demo | train | audit | compare | protect | stamp | push | pull | info | convert`."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Annotated

import typer

from . import audit, hub, stamp
from .audit import Device, print_audit
from .hub import print_patch, said_in_a_line

app = typer.Typer(no_args_is_help=True, add_completion=False)


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

    Offline and without a GPU; two minutes on two cores.
    """
    from loraguard.demo import DemoSettings, run_demo

    started = time.monotonic()
    settings = DemoSettings(seed=seed)
    with said_in_a_line():
        result = run_demo(output_dir, settings.quick() if quick else settings, device=device.value, say=typer.echo)
    print_audit(result.audit)
    typer.echo(f"{time.monotonic() - started:.0f} s.")
    typer.echo(f"Report: {result.report.resolve()}")


@app.command()
def train(
    output_dir: Annotated[Path, typer.Option(help="Where patch, card, log, checkpoints and audit go.")],
    generator: Annotated[str, typer.Option(help="By name; `loraguard info generators` lists them.")] = "demo",
    checkpoint: Annotated[
        str | None, typer.Option(help="Official weights: a file; or a folder or a Hub id of save_pretrained.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Of the generator, where its weights do not tell.")] = None,
    data: Annotated[
        str, typer.Option(help="NAME, NAME:PATH, PATH or HUB_ID; `loraguard info data` lists names.")
    ] = "demo",
    split: Annotated[str | None, typer.Option(help="Of the data set's own.")] = None,
    train_size: Annotated[int | None, typer.Option(min=1, help="Photos to train on; the paper takes 1000.")] = None,
    test_size: Annotated[int, typer.Option(min=0, help="Other photos to audit on; 0 for no audit.")] = 100,
    stamp: Annotated[str | None, typer.Option(help="A text to stamp: a defensive patch.")] = None,
    recipe: Annotated[str, typer.Option(help="Settings that are not given: fast or paper.")] = "fast",
    rank: Annotated[int | None, typer.Option(min=1, help="Of the adapter; by default 8, or 16 with a stamp.")] = None,
    max_train_steps: Annotated[int | None, typer.Option(min=1, help="In place of the recipe's epochs.")] = None,
    train_batch_size: Annotated[int, typer.Option(min=1, help="Photos a step, each with every edit.")] = 4,
    checkpointing_steps: Annotated[int | None, typer.Option(min=1, help="Save a checkpoint every so many.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of everything that is drawn.")] = 0,
    device: Annotated[Device, typer.Option(help="auto for the accelerator that is there, or cpu.")] = Device.auto,
) -> None:
    """Train a patch for a generator, audit it on photos it was not trained on, and write a report.

    A standard patch, which shows what a protection is worth; with --stamp a defensive one, which makes the generator
    stamp a visible warning on every output.
    """
    from loraguard import PatchTrainingArguments, Stamp
    from loraguard.data import open_data
    from loraguard.generators import load_generator, transform_of
    from loraguard.train import train_patch
    from loraguard.training import adapter_config

    with said_in_a_line():
        arguments = PatchTrainingArguments(
            output_dir,
            recipe=recipe,
            stamp=None if stamp is None else Stamp(stamp),
            max_train_steps=max_train_steps,
            train_batch_size=train_batch_size,
            checkpointing_steps=checkpointing_steps,
            resume_from_checkpoint="latest" if resume else None,
            seed=seed,
            cpu=device is Device.cpu,
        )
        network = load_generator(generator, checkpoint, **({} if image_size is None else {"size": image_size}))
        photos = open_data(
            data,
            split=split,
            attributes=getattr(network, "attributes", ()),
            transform=transform_of(network),
        )
        made = train_patch(
            network,
            photos,
            arguments,
            config=adapter_config(network, arguments, rank),
            train_size=train_size,
            test_size=test_size,
            say=typer.echo,
        )
    if made.audit is not None and made.report is not None:
        print_audit(made.audit)
        typer.echo(f"Report: {made.report.resolve()}")
    typer.echo(f"Patch: {output_dir.resolve()}")


@app.command()
def info(
    what: Annotated[
        str, typer.Argument(help="generators, data, defenses, channels; or a patch: a folder or a Hub id.")
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

    with said_in_a_line():
        patch = convert_checkpoint(checkpoint, alpha)
        patch.save(output_dir)
    layers = sum(name.endswith(".lora_A.weight") for name in patch.tensors)
    typer.echo(f"{layers} adapted layers, rank {patch.config.r}. Patch: {output_dir.resolve()}")


audit.register(app)
hub.register(app)
stamp.register(app)


def say_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning in a line, without the place in the code."""
    typer.secho(f"Warning: {message}", fg="yellow", err=True)


def main() -> None:
    """Entry point of the console script."""
    warnings.showwarning = say_warning
    app()
