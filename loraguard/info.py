"""What can be asked for by name, for `loraguard info`."""

from __future__ import annotations

import inspect
import re

from .channels import CHANNELS
from .data import DATA
from .defenses import DEFENSES
from .generators import GENERATORS
from .registry import Registry

REGISTRIES = {"generators": GENERATORS, "data": DATA, "defenses": DEFENSES, "channels": CHANNELS}


def info(kind: str) -> list[tuple[str, str, str]]:
    """Every name of a kind, where it comes from, and what it is in a sentence.

    Args:
        kind: "generators", "data", "defenses" or "channels".

    Example:
        >>> [name for name, _, _ in info("generators")]
        ['demo', 'stargan', 'attgan', 'hisd', 'cyclegan']
    """
    registry = REGISTRIES[kind]
    return [(name, registry.targets[name].replace(":", "."), _sentence(registry, name)) for name in registry]


def _sentence(registry: Registry, name: str) -> str:
    try:
        text = inspect.getdoc(registry[name]) or ""
    except ImportError as error:  # somebody else's package is broken; the others are still there
        return f"cannot be imported: {error}"
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", " ".join(text.partition("\n\n")[0].split()))
