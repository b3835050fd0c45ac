"""Data sets by the name that the command line takes, and what else says where photos are; nothing heavy is imported."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from loraguard.registry import Registry

DATA = Registry(
    "loraguard.data",
    {
        "demo": "loraguard.data.demo_faces:DemoFaces",
        "folder": "loraguard.data.folder:ImageFolder",
        "celeba": "loraguard.data.celeba:CelebA",
        "hub": "loraguard.data.hub:HubImages",
    },
)
"""Data sets by the name that the command line takes; :func:`open_data` says how an entry is opened."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_data(where: str) -> tuple[str | None, str | None]:
    """The registered name of a data set, and what it is to open; for a folder that no name says how to open, no name.

    Raises:
        FileNotFoundError: if there is no such thing.
        ValueError: for a file that holds no photos.

    Example:
        >>> find_data("celeba:/data/celeba"), find_data("me/faces"), find_data(".")
        (('celeba', '/data/celeba'), ('hub', 'me/faces'), (None, '.'))
    """
    name, colon, root = where.partition(":")
    if name in DATA:
        return name, root if colon else None
    path = Path(where).expanduser()
    if where and path.is_dir():
        return None, str(path)
    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(f"{path} is a file; give a folder of photos, or a .parquet file.")
        return "hub", str(path)
    if _HUB_ID.fullmatch(where):
        return "hub", where
    near = difflib.get_close_matches(where, DATA, 1)
    raise FileNotFoundError(
        f"There is no data {where!r}: neither a name ({', '.join(sorted(DATA))}), nor a file or folder, nor an id "
        f"'owner/name' of the Hub.{f' Did you mean {near[0]!r}?' if near else ''}"
    )
