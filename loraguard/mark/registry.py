"""Extractors by the name that the command line takes."""

from __future__ import annotations

from loraguard.registry import Registry

EXTRACTORS = Registry(
    "loraguard.extractors",
    {
        "loraguard": "loraguard.mark.shipped:shipped_network",
        "rivagan": "loraguard.mark.rivagan:RivaGAN",
    },
)
"""Networks that read marks (invisible watermarks), by name; each is called without arguments."""
