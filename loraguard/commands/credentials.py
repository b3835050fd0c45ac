"""Signed metadata for the command line: sign image files, and say what is signed in them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loraguard.data.names import printable, recorded
from loraguard.data.reading import EMPTY, probe_image
from loraguard.files import whole_files, writable_folder
from loraguard.mark.certificate import make_test_certificate
from loraguard.mark.credentials import (
    FORMATS,
    Credentials,
    Signer,
    check_signer,
    read_anchors,
    read_credentials,
    sign_bytes,
    type_of_image,
)

from .stamp import image_files


@dataclass(frozen=True)
class Verified:
    """What is signed in an image file.

    Attributes:
        file: its path.
        credentials: what they say and whether they hold; None where they cannot be read.
        problem: why not.
    """

    file: str
    credentials: Credentials | None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, one level deep."""
        said = asdict(self.credentials) if self.credentials is not None else {}
        return {"file": self.file, "problem": self.problem, **said}


def sign_files(
    paths: Sequence[str | Path],
    output_dir: str | Path,
    signer: Signer | None,
    *,
    kind: str = "generated",
    origin: dict[str, Any] | None = None,
    time_stamp: str | None = None,
) -> list[Path]:
    """Write signed copies of image files into another folder, all or none of them.

    Args:
        paths: files, and folders of which every image is taken.
        output_dir: where to; the files keep their names. Copies that were signed here earlier are replaced.
        signer: who signs; None makes a test certificate for this call, which nobody trusts and whose name says so.
        kind: "generated" or "edited".
        origin: what is said of generator, patch and mark.
        time_stamp: of a test certificate's signatures.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: for a path that is not there.
        FileExistsError: if one of the files, or one that was not signed here, would be replaced, or copies would lie
            among the files of a folder that is signed.
        ValueError: for two files of one name, a format that cannot be signed, or what c2pa refuses.
        ImportError: where c2pa-python is not installed.
    """
    target = Path(output_dir).expanduser()
    for path in (Path(one).expanduser() for one in paths):
        if path.is_dir() and target.resolve().is_relative_to(path.resolve()):
            raise FileExistsError(f"{output_dir} is or lies in {path}, whose images are signed; choose another folder.")
    files = image_files(*paths)
    names = [file.name for file in files]
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise ValueError(
            f"Several of these files are called {twice[0]!r}, and a folder holds one of them: sign them into folders "
            "of their own."
        )
    types = [_type_to_sign(file) for file in files]
    for file in files:
        _check_place(file, target / file.name)
    with tempfile.TemporaryDirectory() as temporary:
        who = signer or Signer(*make_test_certificate(temporary), time_stamp=time_stamp)
        check_signer(who)
        folder = writable_folder(output_dir)
        with whole_files(folder, "signed copies") as draft:
            for file, known in zip(files, types, strict=True):
                with _named(file):
                    signed = sign_bytes(file.read_bytes(), known, who, kind, origin or {})
                (draft / file.name).write_bytes(signed)
    return [folder / name for name in names]


def _check_place(file: Path, target: Path) -> None:
    """Refuse to replace what is not a copy that was signed here."""
    if not target.exists():
        return
    found = None if target.samefile(file) else _verified(target, None).credentials
    if found is None or found.origin is None:
        raise FileExistsError(f"{printable(str(target))} is not a copy that was signed here; choose another folder.")


def _type_to_sign(file: Path) -> str:
    with _named(file):
        if (known := _type(file)) is None:
            raise ValueError(f"it cannot hold credentials; formats that can are {', '.join(FORMATS)}.")
        return known


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Name the file in an error."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{printable(str(file))}: {error}") from error


def verify_files(paths: Sequence[str | Path], trust: str | Path | None = None) -> list[Verified]:
    """What is signed in image files, by anybody, and whether it holds.

    Args:
        paths: files, and folders of which every image is taken.
        trust: a PEM file with the certificates of the authorities that are trusted; None trusts nobody.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for a file without certificates.
        ImportError: where c2pa-python is not installed.
    """
    anchors = None if trust is None else read_anchors(trust)
    return [_verified(file, anchors) for file in image_files(*paths)]


def _verified(file: Path, anchors: str | None) -> Verified:
    name = recorded(str(file))
    try:
        if (known := _type(file)) is not None:
            return Verified(name, read_credentials(file.read_bytes(), known, anchors))
        probe_image(file)
        return Verified(name, Credentials(False))  # an image of a format that holds none
    except (ValueError, OSError) as error:
        return Verified(name, None, str(error))


def origin_of(generator: str | None, patch: str | None) -> dict[str, Any]:
    """What is signed of generator and patch: of a patch its weights' SHA-256, and the mark and generator it records.

    Args:
        generator: a name, as the host calls it.
        patch: a folder, or an id of the Hub.

    Raises:
        OSError, ValueError: as :func:`~loraguard.load_patch`.
    """
    origin: dict[str, Any] = {"generator": {"name": generator}} if generator else {}
    if patch is None:
        return origin
    from loraguard.hub.local import read_patch
    from loraguard.hub.pull import patch_folder
    from loraguard.hub.recorded import settings_in

    read = read_patch(patch_folder(patch), patch)
    about, known = (read.config.provenance or {}).get("generator"), settings_in(read.config)
    return {
        **origin,
        "generator": {**(about if isinstance(about, dict) else {}), **origin.get("generator", {})},
        "patch": {"name": Path(patch).name, "sha256": read.sha256},
        **{name: known[name] for name in ("mark", "stamp") if known.get(name)},
    }


def _type(file: Path) -> str | None:
    """The media type of a file that may hold credentials, None for others."""
    with file.open("rb") as opened:
        if not opened.read(1):
            raise ValueError(f"{EMPTY}.")
        return type_of_image(opened, file.name)
