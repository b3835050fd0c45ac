"""Names of the files that a patch is made of; the first three are PEFT's."""

from __future__ import annotations

from pathlib import Path

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
"""Which is never read."""
LOG = "training_log.json"
CARD = "README.md"
PHOTOS = "photos.safetensors"
"""Hashes of the photos that a patch was trained on; they stay where it was trained."""
AUDIT_FILES = ("audit/audit.json", "audit/grid.png", "audit/report.html", "audit/report.md", "audit/summary.csv")
NEEDED = (CONFIG, WEIGHTS)
PATCH_FILES = (*NEEDED, CARD, LOG, *AUDIT_FILES)
"""Everything that is pushed and pulled; nothing else is looked at."""


def check_files(folder: Path, patch: str) -> None:
    """Check that a folder is there and holds what a patch needs.

    Args:
        folder: of the patch.
        patch: what to call it in messages.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if a file is missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no patch {patch}: no such folder.")
    if missing := [file for file in NEEDED if not (folder / file).is_file()]:
        pickled = f" loraguard does not read {PICKLE} or any other pickle." if len(missing) == 1 else ""
        raise ValueError(
            f"{patch} holds no {' and no '.join(missing)}.{pickled} A patch is what the trainer, "
            "model.save_pretrained or push_patch wrote."
        )


def check_patch(patch: str | Path) -> None:
    """Check that a patch is there, as a folder with its files, or may be on the Hub.

    Raises:
        FileNotFoundError: if it is neither a folder nor an id of the Hub.
        ValueError: if a file is missing.
    """
    folder = Path(patch).expanduser()
    if folder.is_dir():
        check_files(folder, str(patch))
    elif folder.is_file():
        raise FileNotFoundError(f"{patch} is a file; a patch is a folder, or OWNER/NAME on the Hub.")
    elif str(patch).count("/") != 1 or folder.is_absolute() or str(patch).startswith((".", "~")):
        raise FileNotFoundError(f"There is no patch {patch}: no such folder, and no id OWNER/NAME of the Hub.")


def is_folder(patch: str | Path, revision: str | None) -> bool:
    """Whether a patch is a folder of this machine, and not on the Hub.

    Raises:
        ValueError: for a folder and a revision, which only the Hub has.
    """
    there = Path(patch).expanduser().is_dir()
    if there and revision is not None:
        raise ValueError(f"{patch} is a folder, which has no revision {revision!r}; leave it out, or give OWNER/NAME.")
    return there


def check_adapter_name(name: str) -> None:
    """Refuse what a model cannot call an adapter.

    Raises:
        ValueError: for an empty name, or one with a dot.
    """
    if not name or "." in name:
        raise ValueError(f"adapter_name={name!r} must have letters and no dot, as it becomes part of names of layers.")
