"""Any image data set of the Hub, or a local one of the `datasets` library."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .celeba import LICENCE
from .photos import PhotoDataset
from .tables import as_identities, binary, check_columns
from .transforms import Transform

if TYPE_CHECKING:
    from datasets import Dataset as Rows

CELEBA = "flwrlabs/celeba"
KNOWN: dict[str, dict[str, str]] = {
    CELEBA: {"name": "img_align+identity+attr", "image_column": "image", "identity_column": "celeb_id"},
}
"""Data sets of the Hub whose configuration and columns need not be given."""

# What holds photos and runs no code of its own; `datasets` itself has executed none since 4.0.
_BUILDERS = ("arrow", "imagefolder", "parquet", "webdataset")
_logger = logging.getLogger(__name__)


class HubImages(PhotoDataset):
    """Photos of a data set on the Hub, or of a local one: parquet, `imagefolder` or `save_to_disk`.

    Everything is fetched before the first item. No code of a data set is executed. The licence is the data set's own;
    `flwrlabs/celeba`, whose columns are known here, is for non-commercial research only.

    Args:
        path: a repository "owner/name" on the Hub, a folder, or a .parquet file.
        split: one of the data set's own, such as "train".
        name: its configuration, if it has more than one.
        image_column: where the photos are; by default the only column of images.
        label_columns: by attribute, the column that holds it, where that has another name. "column=class" stands for
            one class of a `ClassLabel` column.
        attributes: names of the labels, in order; columns of bool, of 0/1 or -1/1, or `ClassLabel` of two classes.
        identity_column: who is on a photo; splits keep a person's photos together then.
        transform: from an RGB photo to (3, H, W) in [-1, 1]; by default :func:`default_transform` to 256 pixels.
        min_size: length, in pixels, that the shorter side must have; by default what the transform needs.
        revision: a branch, tag or commit of the repository.
        token: for private repositories; by default the one that `hf auth login` keeps.

    Raises:
        FileNotFoundError: if it is neither here nor on the Hub, or the Hub cannot be reached.
        ValueError: if a column or split is missing or ambiguous, or holds something else.

    Example:
        >>> import tempfile, datasets
        >>> from PIL import Image
        >>> rows = datasets.Dataset.from_dict({"face": [Image.new("RGB", (32, 32))], "smiles": [True]})
        >>> folder = tempfile.mkdtemp()
        >>> rows.save_to_disk(folder)
        >>> faces = HubImages(folder, attributes=["Smiling"], label_columns={"Smiling": "smiles"})
        >>> faces[0]["image"].shape, faces[0]["labels"]
        (torch.Size([3, 256, 256]), tensor([1.]))
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: str = "train",
        name: str | None = None,
        image_column: str | None = None,
        label_columns: Mapping[str, str] | None = None,
        attributes: Sequence[str] = (),
        identity_column: str | None = None,
        transform: Transform | None = None,
        min_size: int | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> None:
        from datasets import Image

        self.path = str(path)
        known = KNOWN.get(self.path, {})
        if self.path == CELEBA:
            _logger.warning(LICENCE)
        rows = _rows(self.path, split, name or known.get("name"), revision, token)
        where = f"the split {split!r} of {self.path}"
        self.image_column = _image_column(rows, image_column or known.get("image_column"), where)
        identity_column = identity_column or known.get("identity_column")
        check_columns([identity_column] if identity_column else [], rows.column_names, where)
        columns = {attribute: (label_columns or {}).get(attribute, attribute) for attribute in attributes}
        labels = [_label(rows, column, where) for column in columns.values()]
        self.rows = rows.select_columns([self.image_column]).cast_column(self.image_column, Image(decode=False))
        super().__init__(
            [f"{split} row {index}" for index in range(len(rows))],
            attributes=attributes,
            labels=torch.stack(labels, 1) if labels else None,
            identities=as_identities(_values(rows, identity_column)) if identity_column else None,
            transform=transform,
            min_size=min_size,
        )

    @classmethod
    def open(cls, root: str | None, *, split: str | None = None, **options: Any) -> HubImages:
        """As :func:`open_data` asks for it; the split "train" if none is named."""
        if root is None:
            raise ValueError("Say which data set: 'hub:OWNER/NAME', or the id alone.")
        return cls(root, split=split or "train", **options)

    def source(self, index: int) -> str | bytes:
        """The bytes of the photo with this index, or its file; empty bytes where the row has none."""
        cell = self.rows[index][self.image_column] or {}
        return cell.get("bytes") or cell.get("path") or b""


def _rows(path: str, split: str, name: str | None, revision: str | None, token: str | bool | None) -> Rows:
    """One split, fetched in full."""
    from datasets import DatasetDict, load_dataset_builder, load_from_disk

    place = Path(path).expanduser()
    if any((place / file).is_file() for file in ("state.json", "dataset_dict.json")):
        saved = load_from_disk(str(place))
        if not isinstance(saved, DatasetDict):
            saved = DatasetDict({str(saved.split or "train"): saved})
        _check_split(split, list(saved), path)
        return saved[split]
    try:
        if place.is_file():
            builder = load_dataset_builder("parquet", data_files=str(place))
        else:
            target = str(place) if place.is_dir() else path
            builder = load_dataset_builder(target, name, revision=revision, token=token)
        kind = type(builder).__module__.rpartition(".")[2]
        if kind not in _BUILDERS:
            raise ValueError(f"{path} holds {kind} files; photos are read from {', '.join(_BUILDERS)}.")
        builder.download_and_prepare()
    except (OSError, EOFError) as error:
        raise FileNotFoundError(_not_found(path, place, name, revision, error)) from error
    _check_split(split, list(builder.info.splits or {}), path)
    return builder.as_dataset(split=split)


def _not_found(path: str, place: Path, name: str | None, revision: str | None, error: Exception) -> str:
    from datasets import config
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if place.exists():
        return f"{place} cannot be read as a data set: {error!s:.250}"
    what = path + (f", configuration {name!r}" if name else "") + (f", revision {revision!r}" if revision else "")
    offline = " HF_HUB_OFFLINE is set, so the Hub was not asked." if HF_HUB_OFFLINE else ""
    return (
        f"The data set {what} was not found: not as a folder or file here, not in the cache "
        f"{config.HF_DATASETS_CACHE}, and not on the Hub.{offline} Check the name; fetch it once where there is a "
        f"connection, or give the path of a local copy; private or gated sets need a token ('hf auth login'). "
        f"The Hub's client says: {error!s:.250}"
    )


def _check_split(split: str, splits: list[str], path: str) -> None:
    if split not in splits:
        raise ValueError(f"{path} has no split {split!r}; it has {', '.join(splits)}.")


def _image_column(rows: Rows, asked: str | None, where: str) -> str:
    from datasets import Image, Value

    images = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
    if asked is None:
        if len(images) != 1:
            raise ValueError(
                f"{where} has {len(images)} columns of images ({', '.join(images) or 'none'}); say which one with "
                f"image_column=. Its columns: {', '.join(rows.column_names)}."
            )
        return images[0]
    check_columns([asked], rows.column_names, where)
    feature = rows.features[asked]
    encoded = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary", "string", "large_string")
    if asked not in images and not encoded:
        raise ValueError(f"Column {asked!r} of {where} holds {feature}, and neither images nor their bytes or paths.")
    return asked


def _values(rows: Rows, column: str) -> np.ndarray[Any, Any]:
    return np.asarray(rows.select_columns([column]).with_format("arrow")[:][column].to_pylist())


def _label(rows: Rows, column: str, where: str) -> Tensor:
    """A column as (N,) in {0, 1}; of "column=class", whether it is this class."""
    from datasets import ClassLabel

    wanted = None
    if column not in rows.column_names and "=" in column:
        column, _, wanted = column.partition("=")
    check_columns([column], rows.column_names, where)
    feature, values = rows.features[column], _values(rows, column)
    if wanted is not None:
        classes = list(feature.names) if isinstance(feature, ClassLabel) else []
        if wanted not in classes:
            raise ValueError(f"Column {column!r} of {where} has no class {wanted!r}; it has {', '.join(classes)}.")
        values = values == classes.index(wanted)
    elif isinstance(feature, ClassLabel) and len(feature.names) != 2:
        raise ValueError(
            f"Column {column!r} of {where} has {len(feature.names)} classes; say which one is meant, as "
            f"label_columns={{...: '{column}={feature.names[0]}'}}."
        )
    if values.dtype.kind not in "bif" or not np.isfinite(values).all():
        raise ValueError(f"Column {column!r} of {where} holds {feature}, or gaps; labels are bool, 0/1 or -1/1.")
    return binary(values.astype(np.int64) if values.dtype.kind == "b" else values, column, where)
