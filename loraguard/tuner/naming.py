"""Names of layers in place of patterns: of those that stand for a default, and of those that no file may have."""

import re
from collections.abc import Iterable
from typing import Any

import peft  # noqa: F401  # whole, before a part of it: another thread may be importing it
from peft.utils.other import get_pattern_key

from .patterns import MOST_PATTERNS, check_pattern


def as_targets(names: Iterable[str], others: Iterable[str]) -> set[str] | str:
    r"""What `target_modules` is to be so that it stands for these layers and no others.

    PEFT takes names as endings: where these would match further modules, they have to be a pattern.

    Example:
        >>> as_targets({"a.0"}, ["a"]), as_targets(["0"], ["a.0"])
        ({'a.0'}, '0')
    """
    names = set(names)
    endings = tuple(f".{name}" for name in names)
    ambiguous = any(other.endswith(endings) for other in others)
    return "|".join(re.escape(name) for name in sorted(names)) if ambiguous else names


def name_layers(config: Any, targets: Iterable[str], others: Iterable[str]) -> None:
    """Put names where settings have patterns that are refused in a file, so that the adapter loads again.

    Args:
        config: The settings, which are changed.
        targets: The layers that they stand for.
        others: The other modules.
    """
    targets = list(targets)
    if not all(_may_be_saved(field, getattr(config, field)) for field in ("target_modules", "exclude_modules")):
        config.target_modules, config.exclude_modules = as_targets(targets, others), None
        config.layers_to_transform = config.layers_pattern = None
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, field)
        if len(patterns) > MOST_PATTERNS or not all(_may_be_saved(field, pattern) for pattern in patterns):
            by_value: dict[float, list[str]] = {}
            for name in targets:
                if (key := get_pattern_key(list(patterns), name)) in patterns:
                    by_value.setdefault(patterns[key], []).append(re.escape(name))
            setattr(config, field, {f"^{_any_of(names)}": value for value, names in by_value.items()})


def _any_of(patterns: list[str]) -> str:
    return patterns[0] if len(patterns) == 1 else f"(?:{'|'.join(patterns)})"


def _may_be_saved(field: str, pattern: Any) -> bool:
    try:
        return not isinstance(pattern, str) or check_pattern(field, pattern) > 0
    except ValueError:
        return False
