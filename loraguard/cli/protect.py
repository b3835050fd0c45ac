"""The command line's `protect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraguard.data.registry import find_data
from loraguard.defenses.registry import DEFENSES, check_defense
from loraguard.generators.registry import GENERATORS, check_generator

from .early import check_files, names_in
from .errors import said_in_a_line
from .options import JUDGE, Checkpoint, Device, ImageSize, OnDevice, Seed, examples, in_full


def protect(
    images: Annotated[list[str], typer.Argument(help="Photos: files, or one folder.")],
    output_dir: Annotated[Path, typer.Option(help="A folder for the protected photos.")] = Path("loraguard-protected"),
    defense: Annotated[
        str,
        typer.Option(
            help="NAME or NAME:SETTINGS; `loraguard info defenses` lists names.",
            metavar="SPEC",
            autocompletion=names_in(DEFENSES),
        ),
    ] = "disrupting",
    generator: Annotated[
        str,
        typer.Option(
            help="What they are protected from, NAME or NAME:SETTINGS; `loraguard info generators` lists names.",
            autocompletion=names_in(GENERATORS),
        ),
    ] = "demo",
    checkpoint: Checkpoint = None,
    image_size: ImageSize = None,
    edit: Annotated[
        str | None, typer.Option(help="The edit to protect from; by default all in turn, photo by photo.")
    ] = None,
    fit_on: Annotated[
        str | None, typer.Option(help="Photos for a defense that has to be fitted first: a folder or a Hub id.")
    ] = None,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Perturb photos by a defense. Whether that protects anybody is what `loraguard audit` tells.

    Each becomes a PNG, cropped and resized to what the generator sees; protect.json beside them says what was done.
    The generator "demo" edits drawn faces of 64 pixels, to try things out; name the one that you fear.
    """
    with said_in_a_line():
        check_generator(generator, checkpoint)
        check_defense(defense)
        if len(images) > 1:
            check_files(images, "photo")
        elif not Path(images[0]).expanduser().is_file():
            find_data(images[0])
        if fit_on is not None:
            find_data(fit_on)
        from accelerate import PartialState

        from loraguard.commands.protect import protect_photos
        from loraguard.generators import load_generator

        network = load_generator(generator, checkpoint, size=image_size)
        where = "cpu" if device is Device.cpu else PartialState().device
        found = protect_photos(
            network, images, defense, output_dir, edit=edit, fit_on=fit_on, seed=seed, device=where, say=typer.echo
        )
    spoilt, psnr = sum(one.spoilt for one in found), min(one.psnr for one in found)
    photos, (width, height) = "1 photo" if len(found) == 1 else f"{len(found)} photos", found[0].size
    typer.echo(f"{photos}, cropped and resized to {width}x{height} pixels; {psnr:.1f} dB PSNR or more to that.")
    typer.echo(f"The generator as it is fails on {spoilt} of {len(found)}; one that adapts may not: loraguard audit.")
    if generator == "demo":
        typer.echo("That was 'demo', which edits drawn faces; name the one that you fear: --generator, --checkpoint.")
    typer.echo(f"Photos: {in_full(output_dir)}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    shown = examples("loraguard protect photo.jpg", "loraguard protect photos --defense disrupting:0.1")
    app.command(rich_help_panel=JUDGE, epilog=shown)(protect)
