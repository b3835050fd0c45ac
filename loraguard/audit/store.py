"""What an audit has found so far, on disk: each piece whole or not there, and found again by what it depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraguard.files import sweep, whole_files, write_json
from loraguard.fingerprint import digest

_WRITTEN = ("audit's findings", "What was found before is kept: the same audit goes on from there.")
"""What is written, and what is true where it cannot be."""


def key_of(*parts: Any) -> str:
    """A name for everything that something depends on, as JSON takes it.

    Example:
        >>> key_of({"eps": 0.05}, 1) == key_of({"eps": 0.05}, 1) != key_of({"eps": 0.1}, 1)
        True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def jsonable(values: Tensor) -> list[float | None]:
    """Figures as strict JSON takes them: what is infinite, the PSNR of equal images, is null."""
    return [value if abs(value) != float("inf") else None for value in values.tolist()]


def number(value: float | None) -> float:
    """A figure that :func:`jsonable` wrote."""
    return float("inf") if value is None else value


class Store:
    """A folder of findings, one file for each batch of photos and each way to perturb them.

    Several processes may write to it at once, each its own pieces. A piece that is there is whole: it was written under
    another name first. A piece that cannot be read, or that somebody has changed since, counts as not there.

    Args:
        folder: made where there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.iterdir():
            if part.is_dir():
                sweep(part)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def read(self, key: str) -> dict[str, Any] | None:
        """A piece, or None where it is not there or is not what was written, its tensors included."""
        try:
            stored = json.loads(self._path(key).read_text(encoding="utf-8"))
            piece, checksum = stored["piece"], stored["sha256"]
            tensors = self.pictures(key) if stored["tensors"] else {}
        except (OSError, ValueError, TypeError, KeyError, SafetensorError):
            return None
        whole = key_of(piece) == checksum and (digest(tensors) if tensors else None) == stored["tensors"]
        return piece if whole else None

    def write(self, key: str, piece: dict[str, Any], pictures: dict[str, Tensor]) -> None:
        """Write a piece and what goes with it, with checksums; the piece last, as it says that all is there."""
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        if pictures:
            with whole_files(path.parent, *_WRITTEN) as draft:
                save_file({name: one.contiguous() for name, one in pictures.items()}, draft / f"{key}.safetensors")
        tensors = digest(pictures) if pictures else None
        with whole_files(path.parent, *_WRITTEN) as draft:
            write_json(draft / path.name, {"piece": piece, "sha256": key_of(piece), "tensors": tensors})

    def pictures(self, key: str) -> dict[str, Tensor]:
        """What :meth:`write` was given with the piece."""
        path = self._path(key).with_suffix(".safetensors")
        return load_file(path) if path.is_file() else {}
