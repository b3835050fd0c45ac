"""What `--data NAME|PATH|HUB_ID` means."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch.utils.data import Dataset

from .celeba import find_table
from .photos import Item
from .registry import DATA, find_data
from .transforms import Transform

_logger = logging.getLogger(__name__)


def open_data(
    where: str | Path,
    *,
    transform: Transform | None = None,
    attributes: Sequence[str] = (),
    split: str | None = None,
    **options: Any,
) -> Dataset[Item]:
    """A data set by name, path or id on the Hub.

    `where` is one of:

    - a name in :data:`DATA`, such as "demo"; with what it opens after a colon, as in "celeba:/data/celeba",
      "folder:photos" or "hub:owner/name";
    - a path that exists: a folder with `list_attr_celeba` is :class:`CelebA`; a .parquet file, and a folder with such
      files or saved by `datasets`, is :class:`HubImages`; any other folder is :class:`ImageFolder`, `metadata.csv` in
      it or not, as that is the one that finds broken photos before the start;
    - an id "owner/name" of the Hub: :class:`HubImages`.

    A name overrides a path; write `./demo` for a folder of that name. Another package adds a name by an entry point
    in the group `loraguard.data`: a callable, or a class with a class method `open`, taking
    `(root, *, split, attributes, transform, **options)` and returning a map-style data set whose items
    :func:`~loraguard.data.collate` takes, with the attribute `attributes` if it has labels. `root` is what comes after
    the colon, or None; `split` and `transform` are None where the user said nothing.

    Args:
        where: see above.
        transform: from an RGB photo to (3, H, W) in [-1, 1], such as `generator.transform()`; by default
            :func:`default_transform` to 256 pixels. Drawn faces take none.
        attributes: names of the labels, in order, such as `generator.attributes`.
        split: of the data set's own; by default "train", or everything in a folder.
        options: further ones of the class that is opened.

    Raises:
        FileNotFoundError: if there is no such thing.
        ValueError: if it does not have these attributes or this split.

    Example:
        >>> faces = open_data("demo", split="test", length=8)
        >>> len(faces), faces.attributes[-1]
        (8, 'Smiling')
        >>> open_data("demos")
        Traceback (most recent call last):
        ...
        FileNotFoundError: There is no data 'demos': neither a name (celeba, demo, folder, hub), nor a file or folder,
        nor an id 'owner/name' of the Hub. Did you mean 'demo'?
    """
    name, root = find_data(str(where))
    name = name or _kind(Path(str(root)))
    entry = DATA[name]
    _logger.info("Data %s is opened as %s%s.", where, name, "" if root is None else f" from {root}")
    opener = getattr(entry, "open", entry)
    dataset = opener(root, split=split, attributes=tuple(attributes), transform=transform, **options)
    got = tuple(getattr(dataset, "attributes", ()))
    if attributes and got != tuple(attributes):
        raise ValueError(
            f"{where} was asked for the labels {', '.join(attributes)} and gives {', '.join(got) or 'none'}."
        )
    return cast(Dataset[Item], dataset)


def _kind(folder: Path) -> str:
    if find_table(folder, "list_attr_celeba") is not None:
        return "celeba"
    saved = any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))
    return "hub" if saved or next(folder.rglob("*.parquet"), None) is not None else "folder"
