"""Writing that is never seen half done, and that says what a disk refuses."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows, where nothing is swept
    fcntl = None  # type: ignore[assignment]

_PREFIX = ".loraguard-"
_DRAFT = re.compile(re.escape(_PREFIX) + "[a-z0-9_]{8}")
"""Names of drafts, as `tempfile` makes them."""
_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_PROBE = 1 << 20


class NotWrittenError(OSError):
    """Something could not be written: a full disk, for instance.

    Attributes:
        reason: why, in the system's words.
    """

    reason: str


def not_written(what: str, folder: Path, error: BaseException, then: str) -> NotWrittenError:
    """The error for something that could not be written: what, where, why, how much space there is, and what to do.

    Example:
        >>> str(not_written("patch", Path("/"), OSError(28, "No space left on device"), "Try another."))[:59]
        'The patch could not be written to /: No space left on devic'
    """
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    reason = _reason(error, there)
    free = shutil.disk_usage(there).free
    made = NotWrittenError(
        f"The {what} could not be written to {str(folder)[-150:]}: {reason} ({free / 1e6:.1f} MB free on that disk). "
        f"{then}"
    )
    made.reason = reason
    return made


def _reason(error: BaseException, folder: Path) -> str:
    """Why something could not be written. Where a library does not say, the system is asked, by writing there."""
    if isinstance(error, NotWrittenError):
        return error.reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        folder = folder if folder.is_dir() else folder.parent
        with tempfile.TemporaryFile(dir=folder, prefix=_PREFIX) as file:
            file.write(bytes(_PROBE))
    except OSError as refusal:
        return refusal.strerror or str(refusal)
    return " ".join(f"{error!s:.200}".split()) or type(error).__name__


@contextmanager
def said_of_the_disk(what: str, folder: Path, then: str) -> Iterator[None]:
    """Where a disk refuses what the block writes, say so as :func:`not_written` does; other errors stay as they are.

    Raises:
        NotWrittenError: if the disk is full, or cannot be written to.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_a_disk(error):
            raise
        raise not_written(what, folder, error, then) from error


def _is_of_a_disk(error: Exception) -> bool:
    """Whether a disk has refused. torch, safetensors and Pillow have their own errors for that."""
    if isinstance(error, NotWrittenError):
        return False  # said already
    if isinstance(error, OSError):
        return error.errno in _OF_A_DISK or (type(error) is OSError and error.errno is None)
    return type(error).__name__ == "SafetensorError" or "inline_container" in str(error) or "file write" in str(error)


def writable_folder(path: str | Path) -> Path:
    """Make a folder and make sure that files can be written there, before any long work starts.

    What a process that was killed has left half written there is deleted.

    Raises:
        OSError: if the folder cannot be made or written to.
    """
    folder = Path(path).expanduser()
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        known = str(folder).encode(errors="surrogateescape").decode(errors="backslashreplace")
        raise OSError(
            f"The output folder {known} has a name that is not UTF-8, which records cannot hold; choose another."
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with draft_folder(folder):
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
def whole_files(
    folder: str | Path,
    what: str = "files",
    then: str = "What was there before is as it was.",
    first: str | None = None,
) -> Iterator[Path]:
    """A temporary folder whose files are moved into `folder` once the block has ended without an error.

    Each file appears complete under its name or not at all, and what was there before stays until then.

    Args:
        folder: where to.
        what: is written, for the message where the disk refuses it.
        then: what is true afterwards, or what to do, likewise.
        first: the file, if any, that is moved before the others: a list of them, for instance.

    Raises:
        NotWrittenError: if the disk is full, or cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_files(folder) as draft:
        ...         _ = (draft / "a.txt").write_text("all of it")
        ...     (Path(folder) / "a.txt").read_text()
        'all of it'
    """
    folder = Path(folder)
    with said_of_the_disk(what, folder, then), draft_folder(folder) as draft:
        yield draft
        sync(draft)
        files = sorted(file for file in draft.rglob("*") if file.is_file())
        for file in sorted(files, key=lambda file: file.name != first):
            target = folder / file.relative_to(draft)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.chmod(0o666 & ~_umask())
            file.replace(target)


@contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder within another one, deleted at the end of the block; or by :func:`sweep`, after a kill."""
    while True:
        draft = Path(tempfile.mkdtemp(dir=folder, prefix=_PREFIX))
        lock = _lock(draft, wait=True)
        if draft.is_dir():
            break
        if lock is not None:  # another process swept it before it was locked
            os.close(lock)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def alone_in(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Keep other processes and threads out of such blocks for this folder, where the disk knows locks.

    Args:
        folder: that is written to.
        wait: until no other is in one; otherwise that is an error.

    Raises:
        OSError: if another is in one.
    """
    try:
        lock = _lock(folder, wait=wait, say=True)
    except BlockingIOError:
        raise OSError(
            f"Another process is writing to {folder}; wait until it ends, or choose another folder."
        ) from None
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A draft among the system's temporary files; those that killed processes have left there are deleted first."""
    place = Path(tempfile.gettempdir())
    sweep(place)
    with draft_folder(place) as draft:
        yield draft


def sweep(folder: Path) -> None:
    """Delete the drafts in a folder whose processes have died: nobody holds their locks.

    Where the disk knows no locks, as some of networks do not, all of them stay.
    """
    for path in folder.glob(f"{_PREFIX}*"):
        if _DRAFT.fullmatch(path.name) and (lock := _lock(path)) is not None:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            os.close(lock)


def _lock(path: Path, *, wait: bool = False, say: bool = False) -> int | None:
    """Have a file or folder to oneself until the handle that is given is closed; None if that cannot be.

    Raises:
        BlockingIOError: if somebody else has it, where that is to be said.
    """
    if fcntl is None:
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(handle)
        if say and isinstance(error, BlockingIOError):
            raise
        return None
    return handle


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
