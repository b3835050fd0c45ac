"""Stamps for the command line: of which patch, in which files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraguard.data import DemoFaces
from loraguard.data.folder import PHOTO_SUFFIXES, ImageFolder, files_in
from loraguard.data.names import recorded
from loraguard.data.reading import ImageReadError, is_image, read_image
from loraguard.files import whole_files, writable_folder
from loraguard.pixels import from_picture, to_picture
from loraguard.stamp import Stamp, StampReader

DRAWN_FACES, DRAWN_SIZE = 400, 128


@dataclass(frozen=True)
class ReadFile:
    """What was read in an image file.

    Attributes:
        file: its path.
        stamp: the name of the stamp that it carries, or None.
        score: of that stamp; with none, of the one that is nearest to its threshold.
        threshold: of the same stamp.
    """

    file: str
    stamp: str | None
    score: float
    threshold: float


@dataclass(frozen=True)
class StampReadings:
    """What :func:`read_stamps` found.

    Attributes:
        images: one for each file that could be read, in order.
        unstamped: what images without stamp the thresholds were set by.
        checked_on: how many others of them were read.
        false_positives: on how many of these a stamp was read.
        false_positive_bound: what their share is at most, with 95% confidence.
        unreadable: files that are damaged or no images, and why.
    """

    images: list[ReadFile]
    unstamped: str
    checked_on: int
    false_positives: int
    false_positive_bound: float
    unreadable: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def read_stamps(
    paths: Sequence[str | Path],
    stamps: Mapping[str, Stamp],
    unstamped: str | Path | None = None,
    false_positive_rate: float = 0.01,
) -> StampReadings:
    """Read which of several stamps image files carry.

    Args:
        paths: files, and folders of which every image is taken.
        stamps: by name.
        unstamped: a folder of images that carry none, to set the thresholds by; by default 400 drawn faces.
        false_positive_rate: what the thresholds are set for.

    Raises:
        FileNotFoundError: for a path that is not there, or a folder without images.
        ValueError: where no file can be read as an image, and what :meth:`~loraguard.StampReader.calibrate` refuses.

    Example:
        >>> import tempfile
        >>> file, photos = Path(tempfile.mkdtemp(), "face.png"), Path(tempfile.mkdtemp())
        >>> stamp = Stamp("AI", size=0.5, background="#b00020")
        >>> write_png(stamp.compose(DemoFaces(1)[0]["image"][None])[0], file)
        >>> for i, face in enumerate(DemoFaces(40, split="unstamped")[i] for i in range(40)):
        ...     write_png(face["image"], photos / f"{i}.png")
        >>> found = read_stamps([file], {"AI": stamp}, unstamped=photos)
        >>> found.images[0].stamp, found.checked_on
        ('AI', 20)
    """
    files = image_files(*paths)
    errors: dict[str, ImageReadError] = {}
    if next(read_each(files, errors), None) is None:  # before the long work
        raise next(iter(errors.values()))
    reader = StampReader(stamps)
    if unstamped is None:
        faces = DemoFaces(DRAWN_FACES, size=DRAWN_SIZE, split="unstamped").__getitems__(list(range(DRAWN_FACES)))
        reader.calibrate(torch.stack([face["image"] for face in faces]), false_positive_rate)
        what = "drawn faces of loraguard"
    else:
        others = ImageFolder(unstamped, min_size=1)  # leaves out what cannot be read, and says so
        reader.calibrate([read_tensor(others.source(i)) for i in range(len(others))], false_positive_rate)
        what = f"images of {unstamped}"
    found = []
    for file, image in read_each(files, errors):
        scores = reader.scores(image[None])
        (name,), (nearest,) = reader.names(scores), reader.nearest(scores)
        score = float(scores[0, list(stamps).index(nearest)])
        found.append(ReadFile(recorded(str(file)), name, score, reader.thresholds[nearest]))
    unreadable = {file: error.reason for file, error in errors.items()}
    bound = reader.false_positive_bound or 1.0
    return StampReadings(found, what, reader.checked_on, reader.false_positives, bound, unreadable)


def patch_stamp(patch: str | Path) -> Stamp:
    """The stamp that a patch was trained to make, as it records.

    Args:
        patch: a folder, or an id of the Hub.

    Raises:
        OSError, ValueError: as :func:`~loraguard.load_patch`; for a standard patch; for a stamp that cannot be drawn
            here.
    """
    from loraguard.hub.local import read_patch
    from loraguard.hub.pull import patch_folder

    from .audit import stamp_of

    stamp = stamp_of(read_patch(patch_folder(patch), str(patch)).config, str(patch))
    if stamp is None:
        raise ValueError(f"The patch {patch} records no stamp: it is a standard one, or was not made by PatchTrainer.")
    return stamp


def read_tensor(file: str | Path) -> Tensor:
    """An image file at its own size, (3, H, W) in [-1, 1]."""
    return from_picture(read_image(file))


def read_each(files: Sequence[Path], errors: dict[str, ImageReadError]) -> Iterator[tuple[Path, Tensor]]:
    """Image files that can be read, each with its image; of the others, `errors` gets the reason by path."""
    for file in files:
        try:
            image = read_tensor(file)
        except ImageReadError as error:
            errors[recorded(str(file))] = error
            continue
        yield file, image


def write_png(image: Tensor, file: Path) -> None:
    """Write an image (3, H, W) in [-1, 1], whole or not at all; makes the folder if need be."""
    with whole_files(writable_folder(file.parent)) as draft:
        to_picture(image).save(draft / file.name)


def image_files(*paths: str | Path) -> list[Path]:
    """Files themselves, and of folders every file that is an image or is called one; each once.

    What is called an image and cannot be read is not left out: nobody is to take it for one that was looked at.

    Raises:
        FileNotFoundError: for a path that is not there, or a folder without images.
    """
    found: list[Path] = []
    for path in (Path(one).expanduser() for one in paths):
        if path.is_dir():
            inside = [path / name for name in files_in(path)]
            images = [file for file in inside if file.name.lower().endswith(PHOTO_SUFFIXES) or is_image(file)]
            if not images:
                raise FileNotFoundError(f"There is no image in {path}.")
            found += images
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"There is no image {path}.")
    return list(dict.fromkeys(found))
