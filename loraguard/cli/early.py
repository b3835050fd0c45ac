"""What can be said about a command's input before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from loraguard.channels.registry import check_channel
from loraguard.commands.audit_settings import encoder_parts
from loraguard.data.registry import find_data
from loraguard.defenses.registry import check_defense
from loraguard.generators.registry import check_generator
from loraguard.hub.names import check_patch

if TYPE_CHECKING:
    from loraguard.commands.audit_settings import AuditSettings


def check_audit(settings: AuditSettings) -> None:
    """Check that the names which an audit's settings hold are known, and the files and folders there.

    Raises:
        ValueError: for a name that is unknown.
        FileNotFoundError: for what is not there.
    """
    check_generator(settings.generator, settings.checkpoint)
    for spec in settings.others.values():
        name, _, checkpoint = spec.partition("@")
        check_generator(name, checkpoint or None)
    find_data(settings.data)
    for spec in settings.defenses.values():
        check_defense(spec)
    for spec in settings.channels:
        check_channel(spec)
    for patch in settings.patches.values():
        check_patch(patch)
    for folder in settings.perturbed.values():
        if not Path(folder).expanduser().is_dir():
            raise FileNotFoundError(f"There is no folder {folder}.")
    if settings.identity is not None:
        check_encoder(settings.identity)
    if settings.clip is not None:
        check_encoder(settings.clip)
    named = ("auto", "cache", "none")
    check_files([one for one in (settings.lpips, settings.fid) if one not in named], "file with weights")


def check_encoder(source: str) -> None:
    """Check that a face encoder is a folder, or may be on the Hub.

    Raises:
        FileNotFoundError: if it can be neither.
    """
    where, _ = encoder_parts(source)
    folder = Path(where).expanduser()
    if not folder.is_dir() and (where.count("/") != 1 or folder.is_absolute() or where.startswith((".", "~"))):
        raise FileNotFoundError(f"There is no face encoder {where}: no such folder, and no id OWNER/NAME of the Hub.")


def check_files(files: Iterable[str | Path | None], what: str) -> None:
    """Check that files or folders are there; None stands for one that was not asked for.

    Raises:
        FileNotFoundError: for the first that is not there.

    Example:
        >>> check_files([None, "nowhere.png"], "image")
        Traceback (most recent call last):
        ...
        FileNotFoundError: There is no image nowhere.png.
    """
    for file in files:
        if file is not None and not Path(file).expanduser().exists():
            raise FileNotFoundError(f"There is no {what} {file}.")


def names_in(names: Iterable[str]) -> Callable[[str], list[str]]:
    """For shell completion: those of the names that start as what is typed."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]
