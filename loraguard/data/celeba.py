"""CelebA as its authors distribute it: aligned faces, forty attributes, a partition and who is who."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .photos import PhotoDataset, listed
from .tables import Table, as_identities, read_csv
from .transforms import Transform

SOURCE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
LICENCE = f"CelebA is for non-commercial research only; its agreement is at {SOURCE}."
SPLITS = {"train": "0", "valid": "1", "test": "2"}
"""The splits, as `list_eval_partition.txt` numbers them; no person is in two of them."""

_IMAGES = ("img_align_celeba", "Img/img_align_celeba", "celeba/img_align_celeba")
_TABLES = (".", "Anno", "Eval", "celeba")
_logger = logging.getLogger(__name__)


class CelebA(PhotoDataset):
    r"""CelebA's aligned faces, 178 x 218 pixels, in a folder as distributed.

    Liu et al., "Deep Learning Face Attributes in the Wild", arXiv 1411.7766. **For non-commercial research only**, and
    not to be passed on: read the agreement at https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, where the files are.

    Photos are not decoded at the start, as there are 202,599; :func:`split_photos` verifies those that it draws.

    Args:
        root: the folder with `img_align_celeba/` (or in `Img/`), `list_attr_celeba.txt` (or in `Anno/`),
            `list_eval_partition.txt` (or in `Eval/`) and, for splits by person, `identity_CelebA.txt` (or in `Anno/`).
            The tables may be Kaggle's `.csv` as well.
        split: "train", "valid", "test", or "all".
        attributes: names of the labels, in order, such as "Blond_Hair"; labels are 1 where the table has 1, else 0.
        transform: from an RGB photo to (3, H, W) in [-1, 1]; by default :func:`default_transform` to 256 pixels.
        min_size: length, in pixels, that the shorter side must have; by default what the transform needs.

    Raises:
        FileNotFoundError: if a file is missing; the message says where it was looked for and where to get it.
        ValueError: for a split or an attribute that there is none of, and for tables that are not whole.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "img_align_celeba").mkdir()
        >>> Image.new("RGB", (178, 218)).save(folder / "img_align_celeba" / "000001.jpg")
        >>> _ = (folder / "list_attr_celeba.txt").write_text("1\nMale Smiling\n000001.jpg -1  1\n")
        >>> _ = (folder / "list_eval_partition.txt").write_text("000001.jpg 0\n")
        >>> CelebA(folder, attributes=["Smiling", "Male"])[0]["labels"]
        tensor([1., 0.])
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str = "train",
        attributes: Sequence[str] = (),
        transform: Transform | None = None,
        min_size: int | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        if split not in (*SPLITS, "all"):
            raise ValueError(f"CelebA has the splits {', '.join(SPLITS)} and all, got {split!r}.")
        if not self.root.is_dir():
            raise FileNotFoundError(f"There is no folder {self.root}. Get CelebA at {SOURCE}.")
        self.folder = _image_folder(self.root)
        labels = _attributes(_table_file(self.root, "list_attr_celeba"), attributes)
        partition = _plain(_table_file(self.root, "list_eval_partition"), "partition")
        people_file = find_table(self.root, "identity_CelebA")
        people = _plain(people_file, "identity") if people_file else None
        _logger.warning(LICENCE)

        sides = partition.column("partition")
        names = [name for name, side in zip(partition.names, sides, strict=True) if SPLITS.get(split, side) == side]
        there = set(os.listdir(self.folder))
        missing = [(name, f"not in {self.folder}") for name in names if name not in there]
        if len(missing) == len(names):
            raise FileNotFoundError(
                f"{self.folder} holds none of the {len(names):,} photos of the split {split!r}: {listed(missing, 2)} "
                f"Extract img_align_celeba.zip of {SOURCE} there."
            )
        names = [name for name in names if name in there]
        super().__init__(
            names,
            attributes=attributes,
            labels=labels.labels(attributes)[_rows(labels, names)] if attributes else None,
            identities=as_identities(people.column("identity"))[_rows(people, names)] if people else None,
            transform=transform,
            min_size=min_size,
        )
        self.skipped = missing
        self.warn_of(missing, len(names) + len(missing))

    @classmethod
    def open(cls, root: str | None, *, split: str | None = None, **options: Any) -> CelebA:
        """As :func:`open_data` asks for it; the split "train" if none is named."""
        if root is None:
            raise ValueError(f"Say where CelebA is: 'celeba:PATH', or the path alone. Get it at {SOURCE}.")
        return cls(root, split=split or "train", **options)

    def source(self, index: int) -> Path:
        """The file of the photo with this index."""
        return self.folder / self.names[index]


def find_table(root: Path, stem: str) -> Path | None:
    """CelebA's table of this name, as .txt or .csv, wherever in the folder it may lie; None if it is not there."""
    files = (root / folder / f"{stem}{suffix}" for folder in _TABLES for suffix in (".txt", ".csv"))
    return next((file for file in files if file.is_file()), None)


def _table_file(root: Path, stem: str) -> Path:
    file = find_table(root, stem)
    if file is None:
        places = ", ".join(str(root / folder) for folder in _TABLES)
        raise FileNotFoundError(f"There is no {stem}.txt or {stem}.csv in {places}. Get it at {SOURCE}.")
    return file


def _image_folder(root: Path) -> Path:
    """The folder of the photos; Kaggle's archive has it inside another one of the same name."""
    for place in _IMAGES:
        for folder in (root / place / "img_align_celeba", root / place):
            if folder.is_dir():
                return folder
    zipped = next((file for place in _IMAGES if (file := root / f"{place}.zip").is_file()), None)
    todo = f"Extract {zipped} there." if zipped else f"Get img_align_celeba.zip at {SOURCE} and extract it there."
    raise FileNotFoundError(f"There is no folder {' or '.join(str(root / place) for place in _IMAGES)}. {todo}")


def _lines(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if values := line.split():
                yield values


def _attributes(path: Path, wanted: Sequence[str]) -> Table:
    """`list_attr_celeba`: a count, forty names, and a row for each photo; as .csv without the count."""
    if path.suffix == ".csv":
        return read_csv(path, ("image_id",), wanted)
    lines = _lines(path)
    count, header = next(lines, []), next(lines, [])
    if len(count) != 1 or not count[0].isdigit():
        raise ValueError(
            f"{path} must begin with the number of its rows, as CelebA's does, got {' '.join(count[:4])!r}."
        )
    table = Table(path, ["image_id", *header], lines, wanted)
    if len(table.names) != int(count[0]):
        raise ValueError(f"{path} has {len(table.names):,} rows where its first line says {count[0]}: it is not whole.")
    return table


def _plain(path: Path, column: str) -> Table:
    """A photo and one value in each row; as .csv with a header."""
    if path.suffix == ".csv":
        return read_csv(path, ("image_id",), [column])
    return Table(path, ["image_id", column], _lines(path))


def _rows(table: Table, names: list[str]) -> torch.Tensor:
    absent = next((name for name in names if name not in table.row_of), None)
    if absent is not None:
        raise ValueError(f"{table.path} has no row for {absent}; it is not whole, or of another edition of CelebA.")
    return torch.from_numpy(np.fromiter((table.row_of[name] for name in names), np.int64, len(names)))
