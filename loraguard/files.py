"""Writing that is never seen half done."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def new_folder(path: str | Path) -> Path:
    """The path of a folder that is not there yet, or is empty.

    Raises:
        FileExistsError: if it holds something, or is a file.
    """
    folder = Path(path).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; give a new folder.")
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


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN), indented."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
