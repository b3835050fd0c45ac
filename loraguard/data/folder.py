"""A folder of photos, found by their content, with labels from a table if there is one."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .names import NOT_UTF8, composed, is_utf8, printable
from .photos import PhotoDataset, in_threads, listed
from .reading import EMPTY, NO_IMAGE, ImageReadError, probe_image, read_image
from .tables import Table, as_identities, read_csv
from .transforms import Transform

METADATA = "metadata.csv"

PHOTO_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif", ".ppm",
    ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".heic", ".heif", ".svg", ".ico", ".psd", ".dng", ".cr2", ".nef", ".arw",
)  # fmt: skip
"""A file of such a name is meant to be a photo, and it is worth a word that it cannot be read."""


class ImageFolder(PhotoDataset):
    r"""Every photo in a folder and the folders in it, sorted by name; hidden files are left out.

    A photo is what decodes as one, whatever it is called; but where its name is not UTF-8, which no table or record can
    hold, it is left out. Files of other kinds are passed over. A file that is called a photo and is none, is damaged or
    too small, or would be enormous after the transform, is left out, and one warning at the start names such files.
    Should a photo break later, the next one takes its place, with a warning. Names in a table match files in composed
    and in decomposed Unicode.

    Args:
        root: the folder.
        files: those of its files to look at, by paths in the folder; by default all.
        transform: from an RGB photo to (3, H, W) in [-1, 1]; by default :func:`default_transform` to 256 pixels.
        labels: a table, values separated by commas: a column `file_name` with paths in the folder, and columns of 0/1
            or -1/1. By default the folder's `metadata.csv`, where `attributes` or `identity` are asked for.
        attributes: the columns to take as labels, in order; with `labels` and no `attributes`, all of them.
        identity: the column that says who is on a photo; splits keep a person's photos together then.
        min_size: length, in pixels, that the shorter side must have; by default what the transform needs.
        verify: decode every photo at the start. Without, only what a file's first bytes say is looked at, and
            :func:`split_photos` verifies the photos that it draws.

    Attributes:
        skipped: (file, reason) of those left out.

    Raises:
        FileNotFoundError: if there is no such folder or table, or no photo in it that can be used.
        ValueError: if a column is missing or holds anything but labels.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 30), "white").save(folder / "a.png")
        >>> _ = (folder / "metadata.csv").write_text("file_name,Smiling\na.png,1\n")
        >>> photos = ImageFolder(folder, attributes=["Smiling"])
        >>> photos.names, photos[0]["image"].shape, photos[0]["labels"]
        (['a.png'], torch.Size([3, 256, 256]), tensor([1.]))
    """

    def __init__(
        self,
        root: str | Path,
        *,
        files: Sequence[str | Path] | None = None,
        transform: Transform | None = None,
        labels: str | Path | None = None,
        attributes: Sequence[str] = (),
        identity: str | None = None,
        min_size: int | None = None,
        verify: bool = True,
    ) -> None:
        self.root = Path(root).expanduser()
        if self.root.is_file():
            raise FileNotFoundError(f"{self.root} is a file; give a folder of photos, unpacked where it is an archive.")
        if not self.root.is_dir():
            raise FileNotFoundError(f"There is no folder {self.root}.")
        table = _table(self.root, labels, attributes, identity)
        if table is not None and not attributes:
            attributes = [name for name in table.columns if name != identity] if labels else ()
        label_rows = table.labels(attributes) if table and attributes else None
        people = as_identities(table.column(identity)) if table and identity else None
        names = files_in(self.root) if files is None else _given(self.root, files)
        super().__init__(names, transform=transform, attributes=attributes, min_size=min_size)
        self._leave_out(table, verify, whole=files is None)
        if table is not None:
            rows = torch.tensor([table.row_of[composed(name)] for name in self.names], dtype=torch.long)
            self.labels = None if label_rows is None else label_rows[rows]
            self.identities = None if people is None else people[rows]

    @classmethod
    def open(cls, root: str | None, *, split: str | None = None, **options: Any) -> ImageFolder:
        """As :func:`open_data` asks for it: `split` is the name of a folder in the folder, None for all photos."""
        if root is None:
            raise ValueError("Say which folder: 'folder:PATH', or the path alone.")
        folder = Path(root).expanduser()
        if split is not None and folder.is_dir() and not (folder / split).is_dir():
            raise ValueError(
                f"{folder} has no folder {split!r}, so it has no such split. Open all of it (split=None) and divide it "
                "with loraguard.data.split_photos."
            )
        return cls(folder / split if split is not None else folder, **options)

    def source(self, index: int) -> Path:
        """The file of the photo with this index."""
        return self.root / self.names[index]

    def _leave_out(self, table: Table | None, decode: bool, whole: bool) -> None:
        """Drop what is no photo, and photos that cannot be used, with one warning; also of rows, of a whole folder."""

        def reason(index: int) -> str | None:
            try:
                (read_image if decode else probe_image)(self.source(index), min_size=self.min_size, fits=self.fits)
            except ImageReadError as error:
                return error.reason
            return None if is_utf8(self.names[index]) else NOT_UTF8

        reasons = in_threads(reason, range(len(self)), "Verifying photos" if decode else "Looking for photos")
        found, usable, seen = [], [], set(map(composed, self.names))
        for index, why in enumerate(reasons):
            name = self.names[index]
            if why is None and table is not None and composed(name) not in table.row_of:
                why = f"no row in {table.path.name}"
            if why is None:
                usable.append(index)
                self._verified |= {name: None} if decode else {}
            elif not whole or why not in (NO_IMAGE, EMPTY) or name.lower().endswith(PHOTO_SUFFIXES):
                found.append((printable(name), why))
        if table is not None and whole:
            found += [
                (name, f"in {table.path.name} but not in the folder")
                for name in table.names
                if composed(name) not in seen
            ]
        if not usable:
            what = f"Left out: {listed(found)}" if found else _no_image(len(self))
            raise FileNotFoundError(f"There is no photo in {self.root} that can be used. {what}")
        self.skipped = found
        self.warn_of(found, len(usable) + len(found))
        self.keep(usable)


def _given(root: Path, files: Sequence[str | Path]) -> list[str]:
    """Some files of a folder, as :func:`files_in` gives all of them."""
    names = sorted({_as_it_is_there(root, Path(file).as_posix()) for file in files})
    if missing := [name for name in names if not (root / name).is_file()]:
        raise FileNotFoundError(f"There is no photo {root / printable(missing[0])}.")
    return names


def _as_it_is_there(root: Path, name: str) -> str:
    """A name in the Unicode form that the folder has it in: composed, or, as macOS wrote it, decomposed."""
    forms = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    return next((form for form in forms if (root / form).is_file()), name)


def _no_image(files: int) -> str:
    return f"None of its {files} files is an image." if files else "It is empty."


def files_in(root: Path) -> list[str]:
    """Regular files that are not hidden, relative to the folder, sorted; links are followed, each folder once."""
    names, seen = [], set()
    for folder, inside, files in os.walk(root, followlinks=True):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        names += [Path(folder, name) for name in files if not name.startswith(".")]
    return sorted(path.relative_to(root).as_posix() for path in names if path.is_file())


def _table(root: Path, labels: str | Path | None, attributes: Sequence[str], identity: str | None) -> Table | None:
    columns = [*attributes, *([identity] if identity else [])]
    if labels is None and not columns:
        return None
    path = root / METADATA if labels is None else Path(labels).expanduser()
    if not path.is_file():
        others = sorted(file.name for file in root.glob("metadata.*")) if labels is None else []
        beside = f" (there is {others[0]}, which is not read)" if others else ""
        raise FileNotFoundError(
            f"There is no table {path}{beside}, where {', '.join(columns) or 'labels'} should come from: values "
            "separated by commas, a column 'file_name' and columns of 0/1 or -1/1."
        )
    return read_csv(path, ("file_name",), columns if attributes or labels is None else None)
