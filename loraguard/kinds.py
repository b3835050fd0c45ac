"""Whether a value that a user wrote is of the kind that an annotation asks for."""

from __future__ import annotations

from types import UnionType
from typing import Any, Union, get_args, get_origin

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "nothing"}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value, from YAML or from a Python literal, is of an annotated kind.

    Whole numbers are numbers, true and false are not, and lists do for tuples. Of a kind that is no class nothing is
    known, so everything fits.

    Example:
        >>> fits(1, float), fits(True, int), fits("1", int | None), fits([0.1, 1], tuple[float, ...])
        (True, False, False, True)
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(fits(one, parts[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def words(kind: Any) -> str:
    """A kind as a user reads it.

    Example:
        >>> words(tuple[float, ...]), words(dict[str, str]), words(int | None)
        ('a list, each a number', 'names, each with a text', 'a whole number or nothing')
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(words, parts))
    if origin is tuple:
        return f"a list, each {words(parts[0])}"
    if origin is dict:
        return f"names, each with {words(parts[1])}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
