"""CelebA as its authors distribute it: aligned faces, forty attributes, a partition and who is who."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .names import composed
from .photos import PhotoDataset
from .tables import Table, as_identities, read_csv
from .transforms import Transform

SOURCE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
LICENCE = f"CelebA is for non-commercial research only; its agreement is at {SOURCE}."
SPLITS = {"train": "0", "valid": "1", "test": "2"}
"""The splits, as `list_eval_partition.txt` numbers them; no person is in two of them."""

_IMAGES = (
    "img_align_celeba", "Img/img_align_celeba", "celeba/img_align_celeba", "img_align_celeba_png",
    "Img/img_align_celeba_png", "Img/img_align_celeba_png.7z/img_align_celeba_png", "images",
)  # fmt: skip
"""Where the photos lie: as distributed, in torchvision's folder, the PNG edition, in StarGAN's zip."""
_PARTITION = "list_eval_partition"
_KEYS = ("image_id", "File_Name", "file_name")
"""What copies of the table of attributes call the column of photos' names; the authors' has no name for it."""
_TABLES = (".", "Anno", "Eval", "celeba")
_logger = logging.getLogger(__name__)


class CelebA(PhotoDataset):
    r"""CelebA's aligned faces, 178 x 218 pixels, in a folder as distributed.

    Liu et al., "Deep Learning Face Attributes in the Wild", arXiv 1411.7766. **For non-commercial research only**, and
    not to be passed on: read the agreement at https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, where the files are.

    Photos are not decoded at the start, as there are 202,599; :func:`split_photos` verifies those that it draws.

    Photos go by their names in the tables, `000001.jpg`, whatever edition they are of, so that draws by name are the
    same in all of them.

    Args:
        root: the folder with `img_align_celeba/` (or in `Img/`; also `img_align_celeba_png/`, and `images/` as in
            StarGAN's zip), `list_attr_celeba.txt` (or in `Anno/`), `list_eval_partition.txt` (or in `Eval/`) and, for
            splits by person, `identity_CelebA.txt` (or in `Anno/`). The tables may be Kaggle's `.csv` as well.
        split: "train", "valid", "test", or "all", which needs no partition.
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
        people_file = find_table(self.root, "identity_CelebA")
        people = _plain(people_file, "identity") if people_file else None
        _logger.warning(LICENCE)

        names = _names_of(self.root, split, labels)
        there = {_stem(file): file for file in sorted(os.listdir(self.folder), reverse=True)}
        missing = [(name, f"not in {self.folder}") for name in names if _stem(name) not in there]
        if len(missing) == len(names):
            some = ", ".join(sorted(there.values())[:3]) or "no files"
            raise FileNotFoundError(
                f"{self.folder} holds none of the {len(names):,} photos of the split {split!r}, such as "
                f"{missing[0][0]}, but {some}. Extract img_align_celeba.zip there, which is at {SOURCE}."
            )
        names = [name for name in names if _stem(name) in there]
        self.files = {name: there[_stem(name)] for name in names}
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
        """As :func:`open_data` asks for it; where no split is named "train", or "all" if there is no partition."""
        if root is None:
            raise ValueError(f"Say where CelebA is: 'celeba:PATH', or the path alone. Get it at {SOURCE}.")
        if split is None and find_table(Path(root).expanduser(), _PARTITION) is None:
            _logger.warning("%s has no %s, so all of its photos are taken, whatever their split.", root, _PARTITION)
            split = "all"
        return cls(root, split=split or "train", **options)

    def source(self, index: int) -> Path:
        """The file of the photo with this index."""
        return self.folder / self.files[self.names[index]]


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
    if any(root.name == Path(place).name for place in _IMAGES) and find_table(root.parent, "list_attr_celeba"):
        raise FileNotFoundError(f"list_attr_celeba lies beside {root}, not in it: give the folder {root.parent}.")
    zipped = next((file for place in _IMAGES if (file := root / f"{place}.zip").is_file()), None)
    todo = f"Extract {zipped} there." if zipped else f"Get img_align_celeba.zip at {SOURCE} and extract it there."
    raise FileNotFoundError(f"There is no folder {' or '.join(str(root / place) for place in _IMAGES[:3])}. {todo}")


def _names_of(root: Path, split: str, labels: Table) -> list[str]:
    """The photos of a split, by the partition; without one, all are those in the table of attributes."""
    file = find_table(root, _PARTITION)
    if file is None and split == "all":
        return labels.names
    if file is None:
        raise FileNotFoundError(
            f"There is no {_PARTITION}.txt or .csv in {root}, so it is not known which photos are of the split "
            f"{split!r}. Open all of them (split 'all') and divide them with split_photos, or get the file at {SOURCE}."
        )
    partition = _plain(file, "partition")
    if split == "all":
        return partition.names
    sides = partition.column("partition")
    known = {form: number for number in SPLITS.values() for form in (number, f"{number}.0")}  # also through floats
    if (odd := next((side for side in sides if side not in known), None)) is not None:
        raise ValueError(f"{file} holds {odd!r}; a photo's part is one of {SPLITS}.")
    return [name for name, side in zip(partition.names, sides, strict=True) if known[side] == SPLITS[split]]


def _stem(name: str) -> str:
    """A photo's name without its suffix: editions differ in that."""
    return name.rpartition(".")[0] or name


def _lines(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if values := line.split():
                yield values


def _attributes(path: Path, wanted: Sequence[str]) -> Table:
    """`list_attr_celeba`: a count, forty names, and a row for each photo; as .csv, and in some copies, no count."""
    if path.suffix == ".csv":
        return read_csv(path, ("image_id",), wanted)
    lines = _lines(path)
    first = next(lines, [])
    counted = len(first) == 1 and first[0].isdigit()
    header = next(lines, []) if counted else first
    if not header or header[-1].lstrip("-").isdigit():
        raise ValueError(
            f"{path} must begin with the number of its rows and the names of its columns, as CelebA's does, got "
            f"{' '.join(first[:4])!r}."
        )
    table = Table(path, header if header[0] in _KEYS else ["image_id", *header], lines, wanted)
    if counted and len(table.names) != int(first[0]):
        raise ValueError(f"{path} has {len(table.names):,} rows where its first line says {first[0]}: it is not whole.")
    return table


def _plain(path: Path, column: str) -> Table:
    """A photo and one value in each row; as .csv with a header."""
    if path.suffix == ".csv":
        return read_csv(path, ("image_id",), [column])
    return Table(path, ["image_id", column], _lines(path))


def _rows(table: Table, names: list[str]) -> torch.Tensor:
    absent = next((name for name in names if composed(name) not in table.row_of), None)
    if absent is not None:
        raise ValueError(f"{table.path} has no row for {absent}; it is not whole, or of another edition of CelebA.")
    return torch.from_numpy(np.fromiter((table.row_of[composed(name)] for name in names), np.int64, len(names)))
