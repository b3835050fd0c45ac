"""Writing that is never seen half done."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .fingerprint import digest, generator_fingerprint


def writable_folder(path: str | Path) -> Path:
    """Make a folder and make sure that files can be written there, before any long work starts.

    Raises:
        OSError: if the folder cannot be made or written to.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".loraguard-"):
            pass
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror
        raise type(error)(f"Cannot write to the output folder {folder} ({why}); choose another one.") from None
    return folder


@contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """A temporary folder whose files are moved into `folder` once the block has ended without an error.

    Each file appears complete under its name or not at all, and what was there before stays until then.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_files(folder) as draft:
        ...         _ = (draft / "a.txt").write_text("all of it")
        ...     (Path(folder) / "a.txt").read_text()
        'all of it'
    """
    folder = Path(folder)
    draft = Path(tempfile.mkdtemp(dir=folder, prefix=".loraguard-"))
    try:
        yield draft
        sync(draft)
        for file in sorted(file for file in draft.rglob("*") if file.is_file()):
            target = folder / file.relative_to(draft)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.chmod(0o666 & ~_umask())
            file.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def sync(folder: Path) -> None:
    """Wait until a folder's files, and its own list of them, are on the disk."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def describe(thing: Any) -> dict[str, Any]:
    """The class and settings of a dataclass (or the class alone of anything else), as JSON takes them.

    Of tensors and networks among the settings it gives the SHA-256 of their values.

    Example:
        >>> from loraguard.defenses import RandomNoise
        >>> describe(RandomNoise(eps=0.1))
        {'class': 'RandomNoise', 'eps': 0.1}
    """
    settings = {f.name: getattr(thing, f.name) for f in fields(thing)} if is_dataclass(thing) else {}
    return {"class": type(thing).__name__, **{key: _plain(value) for key, value in settings.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "sha256": digest({"": value})}
    if isinstance(value, nn.Module):
        return {"class": type(value).__name__, "sha256": generator_fingerprint(value)}
    return describe(value) if is_dataclass(value) else str(value)


def without_paths(value: Any) -> Any:
    """Settings as they may be published: of an absolute path the last part, whatever else as it is.

    Example:
        >>> without_paths({"root": "/home/ann/celeba", "stamp": {"text": "/AI"}, "sizes": [64, "a/b"]})
        {'root': 'celeba', 'stamp': {'text': '/AI'}, 'sizes': [64, 'a/b']}
    """
    if isinstance(value, dict):
        return {key: one if key == "text" else without_paths(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(one) for one in value]
    return re.split(r"[\\/]", value.rstrip("\\/"))[-1] if is_absolute(value) else value


def is_absolute(value: Any) -> bool:
    """Whether something is the text of an absolute path, of this system or another."""
    return isinstance(value, str) and bool(re.match(r"(?:/|~/|[A-Za-z]:[\\/]|\\\\)\S", value))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN), indented."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
