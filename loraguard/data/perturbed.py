"""Photos that somebody has perturbed already, in the order of the originals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from .photos import SIZE, Item
from .reading import read_image
from .transforms import Transform, default_transform


class PerturbedPhotos(Dataset[Item]):
    """The perturbed versions of a data set's photos, from a folder with files of the same names.

    Suffixes may differ (`a/1.jpg` may be `a/1.png` there); a name that several files have counts as missing.

    Args:
        folder: where they are.
        originals: a data set with `names`, paths in its own folder, or a part of one (`split_photos`).
        transform: that of the originals, so that both are cropped and resized alike.

    Raises:
        FileNotFoundError: if there is no such folder, or a photo has no perturbed version in it.
        ValueError: if the originals have no names.

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
        self.transform = transform or default_transform(SIZE)
        files: dict[str, list[Path]] = {}
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                files.setdefault(_stem(file.relative_to(self.folder)), []).append(file)
        names = names_of(originals)
        missing = [name for name in names if len(files.get(_stem(name), ())) != 1]
        if missing:
            raise FileNotFoundError(
                f"{self.folder} has no perturbed version, or several, of {len(missing)} photos of {len(names)}: "
                f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Give each the name of its original."
            )
        self.files = [files[_stem(name)][0] for name in names]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        """The photo, {"image": (3, H, W) in [-1, 1]}."""
        return {"image": self.transform(read_image(self.files[index]))}


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


def _stem(name: str | Path) -> str:
    return Path(name).with_suffix("").as_posix()
