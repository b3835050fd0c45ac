"""The command line's `mark read`, `sign`, `verify` and `audit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraguard.channels.registry import check_channel
from loraguard.data.registry import DATA as DATA_SETS
from loraguard.data.registry import find_data
from loraguard.defenses.registry import check_defense
from loraguard.files import writable_folder
from loraguard.generators.registry import GENERATORS, check_generator
from loraguard.hub.names import check_patch
from loraguard.mark.registry import EXTRACTORS, check_extractor

from .early import check_files, names_in
from .errors import said_in_a_line
from .options import DATA, GENERATOR, PATCHES, SPLIT, Checkpoint, ImageSize, Seed, examples, in_full

if TYPE_CHECKING:
    from loraguard.commands.credentials import Verified
    from loraguard.mark import MarkReading

Images = Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")]
Extractor = Annotated[
    str | None,
    typer.Option(
        help=f"The network that reads: {', '.join(EXTRACTORS.ours)}, a file, folder or Hub id; by default the first, "
        "or the patch's.",
        autocompletion=names_in(EXTRACTORS),
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Read the invisible mark of images, and sign where they come from.",
)


@app.command(epilog=examples("loraguard mark read outputs/", "loraguard mark read a.png --message c0de --json"))
def read(
    *,
    images: Images,
    message: Annotated[
        list[str] | None, typer.Option(help="One that may be there, in hexadecimal. Repeatable; by default any.")
    ] = None,
    patch: Annotated[list[str] | None, typer.Option(help="The mark of a patch: a folder or a Hub id.")] = None,
    extractor: Extractor = None,
    false_positive_rate: Annotated[
        float, typer.Option(min=1e-15, max=0.5, help="Of finding a mark in an image without one.")
    ] = 1e-6,
    crops: Annotated[bool, typer.Option(help="Look for pictures that were cropped, too.")] = True,
    size: Annotated[
        list[int] | None,
        typer.Option(help="Pixels of the shorter side when the image was made, for 'corners'. Repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read the marks, invisible watermarks, of images; docs/stamps.md says how.

    As grep does, it leaves with 0 if every image carries one, 1 if an image carries none, and 2 if it could not tell;
    of some files that cannot be read, it reads the others.
    """
    with said_in_a_line():
        check_files(images, "image")
        check_extractor(extractor or "loraguard")
        for one in patch or ():
            check_patch(one)
        from loraguard.commands.mark import patch_mark, read_marks
        from loraguard.data import ImageReadError
        from loraguard.data.names import printable
        from loraguard.mark import Mark, MarkReader

        known: list[int | str | Mark] = [*(message or ()), *(patch_mark(one, extractor) for one in patch or ())]
        readers = {one.extractor for one in known if isinstance(one, Mark)} or {extractor or "loraguard"}
        if len(readers) > 1:
            raise ValueError(f"These patches have marks for several extractors, {readers}: read them one by one.")
        reader = MarkReader(readers.pop(), known or None, false_positive_rate, crops, tuple(size or ()))
        found = read_marks(images, reader)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        files = [printable(row.file) for row in found.images]
        width = max(map(len, files))
        for file, row in zip(files, found.images, strict=True):
            typer.echo(f"{file:<{width}}  {_read(row.reading)}")
    for file, reason in found.unreadable.items():
        typer.echo(ImageReadError(file, reason), err=True)
    if found.unreadable:
        raise typer.Exit(2)
    raise typer.Exit(0 if all(row.reading.found for row in found.images) else 1)


@app.command(epilog=examples("loraguard mark sign out --output-dir signed --certificate chain.pem --key k.pem"))
def sign(
    *,
    images: Images,
    output_dir: Annotated[Path, typer.Option(help="A folder for the signed copies.")],
    certificate: Annotated[
        Path | None, typer.Option(help="PEM, the signer's first; by default a TEST certificate that nobody trusts.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="PEM (PKCS#8), the private key of the certificate.")] = None,
    algorithm: Annotated[str, typer.Option(help="es256, es384, es512, ps256, ps384, ps512 or ed25519.")] = "es256",
    time_stamp: Annotated[str | None, typer.Option(help="Address of a time-stamp authority (RFC 3161).")] = None,
    edited: Annotated[
        bool, typer.Option("--edited", help="The network changed photos, and did not make the images anew.")
    ] = False,
    generator: Annotated[str | None, typer.Option(help="The generator's name, to be signed.")] = None,
    patch: Annotated[
        str | None, typer.Option(help="Whose hash, mark and generator are to be signed: a folder or a Hub id.")
    ] = None,
) -> None:
    """Sign into images where they come from (C2PA), and name their source in XMP (IPTC); pixels stay as they are.

    What the files hold already stays, credentials of others too.
    """
    with said_in_a_line():
        check_files(images, "image")
        check_files([certificate], "certificate")
        check_files([key], "key")
        if (certificate is None) != (key is None):
            raise ValueError("A certificate goes with its key: give both --certificate and --key, or neither.")
        if patch is not None:
            check_patch(patch)
        from loraguard.commands.credentials import origin_of, sign_files
        from loraguard.mark.credentials import Signer

        signer = None
        if certificate is not None and key is not None:
            signer = Signer(certificate, key, algorithm, time_stamp)
        made = sign_files(
            images, output_dir, signer, kind="edited" if edited else "generated", origin=origin_of(generator, patch),
            time_stamp=time_stamp,
        )  # fmt: skip
    if signer is None:
        typer.secho("Warning: signed with a TEST certificate, which nobody trusts.", fg="yellow", err=True)
    typer.echo(f"{len(made)} signed: {in_full(output_dir)}")


@app.command(epilog=examples("loraguard mark verify signed/", "loraguard mark verify a.jpg --trust anchors.pem --json"))
def verify(
    *,
    images: Images,
    trust: Annotated[
        Path | None, typer.Option(help="PEM, the authorities that you trust, such as C2PA's trust list.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is signed in images (C2PA), by anybody, and whether it holds.

    Whether the signer is trusted is said and changes no exit code. As grep does, it leaves with 0 if every image has
    credentials that hold, 1 if an image has none, and 2 if some do not hold or cannot be read.
    """
    with said_in_a_line():
        check_files(images, "image")
        check_files((trust,), "file of certificates")
        from loraguard.commands.credentials import verify_files
        from loraguard.data.names import printable

        found = verify_files(images, trust)
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in found], indent=1, ensure_ascii=False))
    else:
        for one in found:
            typer.echo(printable(f"{one.file}  {_said(one)}"))  # a stranger's words
    bad = [one for one in found if one.credentials is None or (one.credentials.signed and not one.credentials.valid)]
    if bad:
        raise typer.Exit(2)
    raise typer.Exit(0 if all(one.credentials and one.credentials.signed for one in found) else 1)


@app.command(epilog=examples("loraguard mark audit --patch warning --output-dir marks"))
def audit(
    *,
    patch: Annotated[str, typer.Option(help="A folder or a Hub id; it records its mark.")],
    output_dir: Annotated[Path, typer.Option(help="A folder for marks.json and marks.md.")],
    generator: Annotated[str, typer.Option(help=GENERATOR, autocompletion=names_in(GENERATORS))] = "demo",
    checkpoint: Checkpoint = None,
    image_size: ImageSize = None,
    extractor: Extractor = None,
    data: Annotated[str, typer.Option(help=DATA, autocompletion=names_in(DATA_SETS))] = "demo",
    split: Annotated[str | None, typer.Option(help=SPLIT)] = "test",
    images: Annotated[int, typer.Option(min=2, help="How many photos to measure on.")] = 24,
    channel: Annotated[list[str] | None, typer.Option(help="In place of the eight that are tried. Repeatable.")] = None,
    defense: Annotated[list[str] | None, typer.Option(help="In place of the three. Repeatable.")] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Of fine-tuning, after which to look, 1 to 100 by default. Repeatable."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Measure what the mark of a patch withstands, what removes it, and whether it can be forged."""
    with said_in_a_line():
        check_generator(generator, checkpoint)
        check_patch(patch)
        check_extractor(extractor or "loraguard")
        find_data(data)
        for one in channel or ():
            check_channel(one)
        for one in defense or ():
            check_defense(one)
        writable_folder(output_dir)
        from loraguard.audit.marks import as_table
        from loraguard.commands.mark_audit import CHANNELS, DEFENSES, STEPS, audit_mark
        from loraguard.data import open_data
        from loraguard.generators import load_generator, transform_of

        network = load_generator(generator, checkpoint, size=image_size)
        attributes = getattr(network, "attributes", ())
        photos = open_data(data, split=split, attributes=attributes, transform=transform_of(network))
        rows = audit_mark(
            network, patch, photos, output_dir, images=images, channels=tuple(channel or CHANNELS),
            defenses=tuple(defense or DEFENSES), steps=tuple(steps or STEPS), seed=seed, extractor=extractor,
            say=typer.echo,
        )  # fmt: skip
    typer.echo(as_table(rows))
    typer.echo(f"Report: {in_full(output_dir / 'marks.md')}")


def _read(one: MarkReading) -> str:
    """What was read in a file, in a line."""
    how = (", cropped" if one.cropped else "") + (f", at {one.size} px" if one.size else "")
    said = (one.message or "a mark") + how if one.found else "none"
    return f"{said:<8}  {one.agreeing} of {one.bits} bits agree; by chance at most {one.chance:.1e}"


def _said(one: Verified) -> str:
    """What is signed in a file, in a line."""
    found = one.credentials
    if found is None:
        return f"cannot be read: {one.problem}"
    kind = (found.source_type or found.xmp_source_type or "").rpartition("/")[2]
    if not found.signed:
        return f"not signed{f'; XMP says {kind}' if kind else ''}"
    trust = "a TEST certificate" if found.test else "trusted" if found.trusted else "a signer that is not trusted here"
    holds = "holds" if found.valid else f"does NOT hold ({', '.join(found.problems)})"
    return f"{kind or 'no source type'}, signed by {found.signer} ({trust}); it {holds}"


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app, name="mark", rich_help_panel=PATCHES)
