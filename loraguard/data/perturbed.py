"""Photos that somebody has perturbed already, in the order of the originals."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from loraguard.pixels import from_picture

from .names import composed
from .photos import SIZE, Item
from .reading import is_image, read_image
from .transforms import Transform, default_transform, enlarged_too_far


class PerturbedPhotos(Dataset[Item]):
    """The perturbed versions of a data set's photos, from a folder with files of the same names.

    Suffixes may differ (`a/1.jpg` may be `a/1.png` there), and so may the Unicode form of names. A file is as large as
    the original and then cropped and resized like it, or of the very size that the generator sees, as `loraguard
    protect` writes them, and then taken as it is.

    Args:
        folder: where they are.
        originals: a data set with `names`, paths in its own folder, or a part of one (`split_photos`).
        transform: that of the originals, so that both are cropped and resized alike; by default their own.

    Raises:
        FileNotFoundError: if there is no such folder, or a photo has no perturbed version, or several, in it.
        ValueError: if the originals have no names, or a file cannot be read or has another size.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from loraguard.data import ImageFolder
        >>> here, there = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (300, 300), "white").save(here / "a.jpg")
        >>> Image.new("RGB", (300, 300), "black").save(there / "a.png")
        >>> PerturbedPhotos(there, ImageFolder(here))[0]["image"].mean()
        tensor(-1.)
    """

    def __init__(self, folder: str | Path, originals: Any, transform: Transform | None = None) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"There is no folder {self.folder}.")
        names = names_of(originals)
        self.transform = transform or getattr(_whole(originals), "transform", None) or default_transform(SIZE)
        self.files = self._find(names)
        self.cropped = [self._is_cropped(index, originals) for index in range(len(names))]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        """The photo, {"image": (3, H, W) in [-1, 1]}."""
        photo = read_image(self.files[index], fits=partial(enlarged_too_far, self.transform))
        return {"image": from_picture(photo) if self.cropped[index] else self.transform(photo)}

    def _find(self, names: list[str]) -> list[Path]:
        """The file of each photo: of the very name, or the only one of that name with another suffix."""
        there: dict[str, list[Path]] = {}
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                there.setdefault(_stem(file.relative_to(self.folder)), []).append(file)
        stems = Counter(map(_stem, names))
        found = []
        for name in names:
            files = there.get(_stem(name), [])
            exact = [f for f in files if composed(f.relative_to(self.folder).as_posix()) == composed(name)]
            if not exact and len(files) > 1:  # beside a photo there may be a record or a table of its name
                files = [file for file in files if is_image(file)]
            found.append(exact or (files if stems[_stem(name)] == 1 else []))
        if missing := [name for name, files in zip(names, found, strict=True) if len(files) != 1]:
            raise FileNotFoundError(
                f"{self.folder} has no perturbed version, or several, of {len(missing)} photos of {len(names)}: "
                f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Give each the name of its original."
            )
        return [files[0] for files in found]

    def _is_cropped(self, index: int, originals: Any) -> bool:
        """Whether a file has the size that the generator sees, and not that of the original."""
        size, original = read_image(self.files[index]).size, _original(originals, index)
        if original is None or size == original.size:
            return False
        height, width = self.transform(original).shape[-2:]
        if size != (width, height):
            raise ValueError(
                f"{self.files[index]} is {size[0]} x {size[1]}; expected {original.width} x {original.height} as the "
                f"original, or {width} x {height} as the generator sees it."
            )
        return True


def names_of(dataset: Any) -> list[str]:
    """The names of a data set's photos, in its order.

    Raises:
        ValueError: if it has none: drawn faces are no files.
    """
    if hasattr(dataset, "indices"):
        names = names_of(dataset.dataset)
        return [names[index] for index in dataset.indices]
    if not hasattr(dataset, "names"):
        raise ValueError(f"{type(dataset).__name__} has no photos with names of files, so no others go with them.")
    return list(dataset.names)


def _whole(dataset: Any) -> Any:
    """The data set that this one is a part of, or itself."""
    return _whole(dataset.dataset) if hasattr(dataset, "indices") else dataset


def _original(dataset: Any, index: int) -> Image.Image | None:
    """The photo as it is before cropping and resizing; None for a data set that does not give it."""
    if hasattr(dataset, "indices"):
        return _original(dataset.dataset, dataset.indices[index])
    photo: Image.Image | None = dataset.read(index) if hasattr(dataset, "read") else None
    return photo


def _stem(name: str | Path) -> str:
    return composed(Path(name).with_suffix("").as_posix())
