"""Settings of anything as JSON takes them, and as they may be published."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from .fingerprint import digest, generator_fingerprint


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
