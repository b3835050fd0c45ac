"""The command line's `train` and `convert`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from loraguard.data.registry import DATA as DATA_SETS
from loraguard.data.registry import find_data
from loraguard.files import whole_files, writable_folder
from loraguard.generators.registry import GENERATORS, check_generator
from loraguard.mark.registry import EXTRACTORS, check_extractor
from loraguard.training.arguments import PatchTrainingArguments
from loraguard.training.recipes import RECIPES, check_recipe

from .audit import print_audit
from .early import check_files, names_in
from .errors import said_in_a_line
from .flags import with_flags
from .options import DATA, GENERATOR, PATCHES, SPLIT, Checkpoint, Device, ImageSize, OnDevice, examples, in_full

FLAGS = (
    "recipe",
    "max_train_steps",
    "train_batch_size",
    "learning_rate",
    "gate_learning_rate",
    "max_grad_norm",
    "mixed_precision",
    "checkpointing_steps",
    "seed",
)
"""The settings of `PatchTrainingArguments` that `train` has flags for."""


@with_flags(PatchTrainingArguments, FLAGS, recipe={"autocompletion": names_in(RECIPES)})
def train(
    *,
    output_dir: Annotated[Path, typer.Option(help="A folder for patch, card, log, checkpoints and audit.")],
    generator: Annotated[str, typer.Option(help=GENERATOR, autocompletion=names_in(GENERATORS))] = "demo",
    checkpoint: Checkpoint = None,
    image_size: ImageSize = None,
    data: Annotated[str, typer.Option(help=DATA, autocompletion=names_in(DATA_SETS))] = "demo",
    split: Annotated[str | None, typer.Option(help=SPLIT)] = None,
    train_size: Annotated[
        int | None, typer.Option(min=1, help="How many photos to train on; by default all but the audit's.")
    ] = None,
    test_size: Annotated[int, typer.Option(min=0, help="How many others to audit on; 0 for no audit.")] = 100,
    stamp: Annotated[str | None, typer.Option(help="The warning's text, for a defensive patch.")] = None,
    mark: Annotated[
        str | None,
        typer.Option(help="The invisible mark's message, in hexadecimal, up to ffff; beside --stamp or not."),
    ] = None,
    mark_extractor: Annotated[
        str,
        typer.Option(
            help=f"What reads the mark: {', '.join(EXTRACTORS.ours)}, a file, folder or Hub id.",
            autocompletion=names_in(EXTRACTORS),
        ),
    ] = "loraguard",
    settings: dict[str, Any],
    rank: Annotated[
        int | None, typer.Option(min=1, help="The adapter's; by default 8, 16 with a stamp or mark, 128 for CAT.")
    ] = None,
    adapt: Annotated[
        str | None,
        typer.Option(
            help="What gets the adapter: encoder, decoder, denoiser, several joined by +, or all. By default "
            "all, and of CAT the autoencoder."
        ),
    ] = None,
    gate_type: Annotated[
        str | None, typer.Option(help="What scales each layer's update: scalar, or none as CAT has it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    device: OnDevice = Device.auto,
) -> None:
    """Train a patch for a generator, audit it on photos it was not trained on, and write a report.

    A standard patch, which shows what a protection is worth; with --stamp a defensive one, which makes the generator
    stamp a visible warning on every output, with --mark one that writes an invisible, machine-readable message.
    """
    with said_in_a_line():
        check_generator(generator, checkpoint)
        find_data(data)
        check_recipe(settings["recipe"])
        check_extractor(mark_extractor)
        if mark is None and mark_extractor != "loraguard":
            raise ValueError("--mark-extractor reads a mark, and none is asked for: give its message (--mark).")
        writable_folder(output_dir)
        from loraguard import Mark, Stamp
        from loraguard.commands.train import train_patch
        from loraguard.data import open_data
        from loraguard.generators import layers_in, load_generator, save_by_component, transform_of
        from loraguard.training import adapter_config

        arguments = PatchTrainingArguments(
            output_dir,
            stamp=None if stamp is None else Stamp(stamp),
            mark=None if mark is None else Mark(mark, mark_extractor),
            resume_from_checkpoint="latest" if resume else None,
            cpu=device is Device.cpu,
            **settings,
        )
        network = load_generator(generator, checkpoint, size=image_size)
        config = adapter_config(network, arguments, rank, gate_type)
        if adapt is not None:
            config.target_modules = layers_in(network, adapt)
        attributes = getattr(network, "attributes", ())
        photos = open_data(data, split=split, attributes=attributes, transform=transform_of(network))
        made = train_patch(
            network,
            photos,
            arguments,
            config=config,
            train_size=train_size,
            test_size=test_size,
            say=typer.echo,
        )
        if getattr(network, "components", ()):
            save_by_component(made.model, output_dir / "diffusers")
    if made.audit is not None and made.report is not None:
        print_audit(made.audit)
        typer.echo(f"Report: {in_full(made.report)}")
    typer.echo(f"Patch: {in_full(output_dir)}")
    if mark is not None:
        folder = shlex.quote(str(output_dir))
        by = "" if mark_extractor in EXTRACTORS else f" --extractor {shlex.quote(mark_extractor)}"
        typer.echo(f"Read its mark by: loraguard mark read IMAGES --patch {folder}{by}")


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A patched checkpoint of the paper's authors, from torch.save.")],
    output_dir: Annotated[Path, typer.Argument(help="A folder for the patch.")],
    alpha: Annotated[float, typer.Option(help="The lora_alpha it was trained with; it is not in the file.")] = 2.0,
) -> None:
    """Turn a patched checkpoint of the paper's authors into a patch that plain PEFT loads.

    Writes the adapter, and the weights of the untouched generator as generator.safetensors. Runs no pickle.
    """
    with said_in_a_line():
        check_files([checkpoint], "checkpoint file")
        from loraguard.tuner import convert_checkpoint

        patch = convert_checkpoint(checkpoint, alpha)
        with whole_files(writable_folder(output_dir)) as draft:
            patch.save(draft)
    layers = sum(name.endswith(".lora_A.weight") for name in patch.tensors)
    typer.echo(f"{layers} adapted layers, rank {patch.config.r}. Patch: {in_full(output_dir)}")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    shown = examples(
        "loraguard train --output-dir patch --max-train-steps 100",
        "loraguard train --output-dir warning --stamp AI-EDITED --mark c0de",
    )
    app.command(rich_help_panel=PATCHES, epilog=shown)(train)
    app.command(rich_help_panel=PATCHES, epilog=examples("loraguard convert lora_patch.ckpt a-new-folder"))(convert)
