"""Settings that a user wrote, checked against the annotations of what takes them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Lt

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


@dataclass(frozen=True)
class Then:
    """In `Annotated`, a function that a value goes through once it is of its kind; it may raise a ValueError.

    It is `pydantic.AfterValidator`, without importing pydantic where settings are only declared, as for `--help`.
    """

    function: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """What pydantic asks of an annotation."""
        from pydantic_core.core_schema import no_info_after_validator_function

        return no_info_after_validator_function(self.function, handler(source))


@dataclass(frozen=True)
class First:
    """In `Annotated`, a function that a value goes through before its kind is checked; see :class:`Then`."""

    function: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """What pydantic asks of an annotation."""
        from pydantic_core.core_schema import no_info_before_validator_function

        return no_info_before_validator_function(self.function, handler(source))


Many = Annotated[tuple[T, ...], Then(lambda values: tuple(dict.fromkeys(values)))]
"""A list, each of its values once."""
Count = Annotated[int, Ge(0)]
Number = Annotated[int, Ge(1)]
Rate = Annotated[float, Gt(0)]
Seed = Annotated[int, Ge(0), Lt(2**32)]

_LEVELS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*255\s*")


def levels_of(text: Any) -> float | None:
    """A number of levels of 8 bits, "16/255", in units of images in [-1, 1], which are 255 / 2 levels; None otherwise.

    Example:
        >>> levels_of("16/255") == 16 / 127.5, levels_of("0.05")
        (True, None)
    """
    found = _LEVELS.fullmatch(text) if isinstance(text, str) else None
    return None if found is None else float(found[1]) / 127.5


def as_number(value: Any) -> Any:
    """A text such as "16/255" as the number that it is; anything else as it is."""
    levels = levels_of(value)
    return value if levels is None else levels


_WORDS = {
    "int_type": "be a whole number", "float_type": "be a number", "string_type": "be a text",
    "bool_type": "be true or false", "tuple_type": "be a list", "dict_type": "be names, each with a value",
}  # fmt: skip
"""Where pydantic speaks Python; what else it says of a value is said in its words."""


def checked(made: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values from YAML or Python literals, each of the kind and in the range that an annotation asks for.

    By pydantic, in strict mode: whole numbers are numbers, true and false are not, and no text is read as a number; but
    lists do for tuples. Ranges are in `Annotated`, as annotated_types has them (`Ge(1)`). What has
    no annotation, or one that pydantic does not know, is taken as it is.

    Args:
        made: the class or function that takes them.
        values: by the name of its argument.

    Raises:
        ValueError: for a value that cannot be; the message says where it is and what was expected.

    Example:
        >>> def noise(eps: float, edits: tuple[int, ...] | None = None): ...
        >>> checked(noise, {"eps": 1, "edits": [3]})
        {'eps': 1.0, 'edits': (3,)}
        >>> checked(noise, {"edits": [3, True]})
        Traceback (most recent call last):
        ...
        ValueError: edits[1]=True must be a whole number.
    """
    source = made if is_dataclass(made) or not isinstance(made, type) else vars(made).get("__init__", made)
    kinds = annotations_of(source)
    return {name: _check(name, value, kinds[name]) if name in kinds else value for name, value in values.items()}


def annotations_of(source: Any) -> dict[str, Any]:
    """Annotations of a class or function by name, `Annotated` kept; without those that name what is not imported.

    So that a module of settings may import the classes of some settings for type checkers alone.

    Example:
        >>> def noise(eps: float, edits: "Nowhere" = None): ...
        >>> annotations_of(noise)
        {'eps': <class 'float'>}
    """
    try:
        return get_type_hints(source, include_extras=True)
    except NameError:
        pass
    found: dict[str, Any] = {}
    for owner in reversed(getattr(source, "__mro__", (source,))):
        for name, annotation in inspect.get_annotations(owner).items():
            one = type(name, (), {"__annotations__": {name: annotation}, "__module__": owner.__module__})
            with suppress(NameError):
                found |= get_type_hints(one, include_extras=True)
    return found


def _check(name: str, value: Any, kind: Any) -> Any:
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    for step in first["loc"]:
        try:
            value = value[step]
        except (LookupError, TypeError):  # a part of a union, which is no part of the value
            break
        name += f"[{step!r}]"
    expected = _WORDS.get(first["type"]) or re.sub(r"^\w+ should ", "", first["msg"])
    raise ValueError(f"{name}={first['input']!r} must {expected}.")


def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import BeforeValidator, ConfigDict, TypeAdapter  # on use: most commands have no settings to check

    if any(get_origin(part) is tuple for part in (kind, *get_args(kind))):
        kind = Annotated[kind, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except Exception:  # what pydantic makes of a stranger's annotation is not laid down
        return TypeAdapter(Any)
