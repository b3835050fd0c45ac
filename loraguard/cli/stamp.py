"""The command line's `stamp preview` and `stamp check`."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraguard.hub.names import check_patch

from .early import check_files
from .errors import said_in_a_line
from .flags import with_flags
from .options import PATCHES, examples, in_full

if TYPE_CHECKING:
    from loraguard.stamp import Stamp

Text = Annotated[list[str] | None, typer.Option(help="A stamp that is a text; \\n breaks lines. Repeatable in check.")]
Logo = Annotated[
    list[Path] | None, typer.Option(help="A stamp that is a picture, PNG with alpha. Repeatable in check.")
]
Patch = Annotated[
    list[str] | None, typer.Option(help="The stamp of a patch: a folder or a Hub id. Repeatable in check.")
]


@dataclass(frozen=True)
class Look:
    """How a stamp looks: fields of `loraguard.Stamp`, which is not imported for help; "none" stands for None.

    Args:
        place: `bottom`, bottom-left, top-right, center, ...
        size: its width, as a fraction of the image's.
        margin: to the edge, as a fraction of the image's width.
        colour: of the text.
        opacity: in (0, 1].
        outline: a colour, or none.
        background: of the box behind the text: a colour, or none.
        font: a font file or an installed family.
        of_width: pixels that size and margin are fractions of.
    """

    place: str = "bottom"
    size: float = 0.9
    margin: float = 0.02
    colour: str = "white"
    opacity: float = 1.0
    outline: str = "black"
    background: str = "none"
    font: str | None = None
    of_width: int | None = None


LOOK = [one.name for one in fields(Look)]
_NOTHING = (("outline", "none"), ("background", "none"))

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Design the visible warning, and look for it in images."
)


@app.command(epilog=examples("loraguard stamp preview out.png --image photo.jpg --text AI --place top"))
@with_flags(Look, LOOK)
def preview(
    *,
    output: Annotated[Path, typer.Argument(help="The picture to write, .png.")] = Path("stamp.png"),
    image: Annotated[Path | None, typer.Option(help="To lay the stamp on; by default a drawn face.")] = None,
    text: Text = None,
    logo: Logo = None,
    patch: Patch = None,
    settings: dict[str, Any],
) -> None:
    """Lay a stamp onto an image, as a patch that is trained with it will.

    Say which by one of --text, --logo and --patch; the other options are the fields of loraguard.Stamp.
    """
    with said_in_a_line():
        _check_stamps(text, logo, patch)
        check_files([image], "image")
        if output.suffix.lower() != ".png":
            raise ValueError(f"The preview {str(output)!r} must end in .png.")
        if output.expanduser().is_dir():
            raise ValueError(f"The preview {str(output)!r} is a folder; give a file in it.")
        _check_not_replaced(output, [image, *(logo or ())])
        from loraguard.commands.stamp import read_tensor, write_png
        from loraguard.data import DemoFaces

        stamps = _stamps(text, logo, patch, settings)
        if len(stamps) > 1:
            raise ValueError(f"A preview shows one stamp, and {len(stamps)} are given: {', '.join(stamps)}.")
        (name, stamp), *_ = stamps.items()
        photo = DemoFaces(1, size=256, split="preview")[0]["image"] if image is None else read_tensor(image)
        write_png(stamp.compose(photo[None])[0], output)
    typer.echo(f"{name}, on {photo.shape[-1]}x{photo.shape[-2]} pixels: {in_full(output)}")


@app.command(epilog=examples("loraguard stamp check edited.png --text AI-EDITED"))
@with_flags(Look, LOOK)
def check(
    *,
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    text: Text = None,
    logo: Logo = None,
    patch: Patch = None,
    unstamped: Annotated[
        Path | None, typer.Option(help="A folder of images without stamp; by default 400 drawn faces.")
    ] = None,
    false_positive_rate: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Of reading any stamp on an image without one.")
    ] = 0.01,
    settings: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read which of several stamps images carry, whatever happened to them; docs/stamps.md says how.

    As grep does, it leaves with 0 if every image carries one of the stamps, 1 if an image carries none, and 2 if it
    could not tell; of some files that cannot be read, it reads the others.
    """
    with said_in_a_line():
        check_files(images, "image")
        check_files([unstamped], "folder")
        _check_stamps(text, logo, patch)
        from loraguard.commands.stamp import read_stamps
        from loraguard.data import ImageReadError
        from loraguard.data.names import printable

        found = read_stamps(images, _stamps(text, logo, patch, settings), unstamped, false_positive_rate)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        files = [printable(row.file) for row in found.images]
        width = max(map(len, files))
        for file, row in zip(files, found.images, strict=True):
            said = typer.style(f"{row.stamp or 'none':<12}", fg=None if row.stamp else "yellow")
            typer.echo(f"{file:<{width}}  {said}  {row.score:.2f}  (read above {row.threshold:.2f})")
        typer.echo(
            f"\nFalse positives: {found.false_positives} of {found.checked_on} {found.unstamped}; with 95% confidence "
            f"at most {100 * found.false_positive_bound:.1f}% of such images."
        )
    for file, reason in found.unreadable.items():
        typer.echo(ImageReadError(file, reason), err=True)
    if found.unreadable:
        raise typer.Exit(2)
    raise typer.Exit(0 if all(row.stamp for row in found.images) else 1)


def _stamps(
    texts: list[str] | None, logos: list[Path] | None, patches: list[str] | None, look: dict[str, Any]
) -> dict[str, Stamp]:
    """The stamps that were asked for, by name."""
    from loraguard.commands.stamp import patch_stamp
    from loraguard.stamp import Stamp

    look = {name: None if (name, value) in _NOTHING else value for name, value in look.items()}
    named = [(text, Stamp(text.replace("\\n", "\n"), **look)) for text in texts or ()]
    named += [(logo.name, Stamp(image=logo, **look)) for logo in logos or ()]
    named += [(Path(patch).name, patch_stamp(patch)) for patch in patches or ()]
    stamps = dict(named)
    if len(stamps) < len(named):
        raise ValueError(f"Stamps need different names, got {', '.join(name for name, _ in named)}.")
    return stamps


def _check_not_replaced(output: Path, given: list[Path | None]) -> None:
    """Refuse to write a preview over a photo or a logo that it is made of."""
    target = output.expanduser()
    for file in given:
        if file is not None and target.exists() and target.samefile(file.expanduser()):
            raise FileExistsError(f"The preview would replace {file}; give another name.")


def _check_stamps(texts: list[str] | None, logos: list[Path] | None, patches: list[str] | None) -> None:
    """Check that a stamp is given, and that pictures and patches are there."""
    if not (texts or logos or patches):
        raise ValueError("Say which stamp: --text TEXT, --logo PICTURE or --patch FOLDER.")
    check_files(logos or (), "picture")
    for patch in patches or ():
        check_patch(patch)


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app, name="stamp", rich_help_panel=PATCHES)
