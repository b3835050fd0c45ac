"""Extractors by the name that the command line takes."""

from __future__ import annotations

from pathlib import Path

from loraguard.registry import Registry

WEIGHTS = "model.safetensors"
"""In a folder or on the Hub, an extractor's."""

EXTRACTORS = Registry(
    "loraguard.extractors",
    {
        "loraguard": "loraguard.mark.shipped:shipped_network",
        "corners": "loraguard.mark.shipped:corner_network",
        "rivagan": "loraguard.mark.rivagan:RivaGAN",
    },
)
"""Networks that read marks (invisible watermarks), by name; each is called without arguments."""


def check_extractor(name: str) -> None:
    """Check that an extractor has this name, or that it is a file or folder of this machine, or may be on the Hub.

    Raises:
        ValueError: if it can be none of them.

    Example:
        >>> check_extractor("rivagan"), check_extractor("ann/reader")
        (None, None)
    """
    path = Path(name).expanduser()
    on_the_hub = name.count("/") == 1 and not path.is_absolute() and not name.startswith((".", "~"))
    if name in EXTRACTORS or path.exists() or on_the_hub:
        return
    try:
        EXTRACTORS.check(name)
    except ValueError as error:
        raise ValueError(f"{error} Nor is it a file, a folder, or an id OWNER/NAME of the Hub.") from None
