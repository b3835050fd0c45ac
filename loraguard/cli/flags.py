"""Flags from settings: a dataclass says once what a setting is, and the command line takes it from there.

The field's name is the flag's, its annotation the kind and range of values, its default the default, and what the
docstring says under `Args:` the help. A command gets flags by :func:`with_flags`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from loraguard.kinds import annotations_of, as_number

_SIMPLE = (bool, Path, float, int, str)
"""Kinds of values that a flag takes; of several in a union the one that is named first."""


@dataclass(frozen=True)
class Flag:
    """A setting, as a command line takes it.

    Attributes:
        name: of the field.
        kind: bool, Path, float, int or str.
        help: what the docstring says.
        default: of the field; None for one that has to be given.
        many: whether it may be repeated, as fields that hold several values may.
        choices: the values that it can have, where they are few.
        least: the smallest whole number that it can be.
        most: the largest.
    """

    name: str
    kind: type
    help: str
    default: Any = None
    many: bool = False
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None


def flags_of(settings: type) -> dict[str, Flag]:
    """The flags of a dataclass of settings, by field. Fields whose kind no flag can take are left out.

    Example:
        >>> @dataclass
        ... class Settings:
        ...     '''Of a training.
        ...
        ...     Args:
        ...         steps: how many; none
        ...             at all is no training. More take longer.
        ...         stamp: the warning.
        ...     '''
        ...     steps: int = 3
        ...     stamp: dict | None = None
        >>> flags_of(Settings)["steps"]
        Flag(name='steps', kind=<class 'int'>, help='how many; none at all is no training. More take longer.',
             default=3, many=False, choices=(), least=None, most=None)
        >>> list(flags_of(Settings))
        ['steps']
    """
    kinds, said = annotations_of(settings), documented(settings)
    found = {}
    for field in fields(settings):
        parts = _Parts.of(kinds.get(field.name))
        if parts.kinds:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            whole = parts.kinds[0] is int
            found[field.name] = Flag(
                name=field.name,
                kind=parts.kinds[0],
                help=said.get(field.name, ""),
                default=None if default is MISSING else default,
                many=parts.many,
                choices=parts.choices,
                least=parts.least if whole else None,
                most=parts.most if whole else None,
            )
    return found


def documented(settings: type) -> dict[str, str]:
    """What the docstrings of a class and of what it inherits from say of each argument, each on one line.

    Example:
        >>> from loraguard import PatchTrainingArguments
        >>> documented(PatchTrainingArguments)["disable_tqdm"]
        'no progress bar.'
    """
    found: dict[str, str] = {}
    name, inside = "", False
    said = [inspect.cleandoc(owner.__doc__ or "") for owner in reversed(settings.__mro__)]
    for line in "\n".join(said).splitlines():
        if line and not line.startswith(" "):
            inside = line == "Args:"
        elif inside and (match := re.fullmatch(r" {4}(\w+): (.*)", line)):
            name, found[match[1]] = match[1], match[2]
        elif inside and line:
            found[name] += f" {line.strip()}"
    return found


def with_flags(
    settings: type, names: Sequence[str], *, optional: bool = False, repeated: str = "", **options: Mapping[str, Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command flags of settings, in place of its parameter `settings`.

    The command gets them in `settings`, a dict by field, without those that are None. In the help stands the first
    sentence of what the docstring says.

    Args:
        settings: a dataclass.
        names: the fields that become flags, in this order; a parameter of the command that is named among them stands
            there, too.
        optional: leave out what was not given, so that settings of a file stand where no flag overrides them. Ranges of
            numbers are then checked by the settings, as those of a file are.
        repeated: what the help of a flag that may be repeated ends with.
        options: by field, further arguments of `typer.Option`; `flag`, or several, where the flag has other names;
            and `choices=False`, where the settings check the choice.

    Raises:
        KeyError: for a field that is not there, or whose kind no flag can take.

    Example:
        >>> @dataclass
        ... class Settings:
        ...     steps: int = 3
        ...     edits: tuple[str, ...] = ()
        >>> @with_flags(Settings, ("steps", "edits"), edits={"flag": "--edit"})
        ... def train(folder: str, settings: dict[str, Any]) -> None:
        ...     print(folder, settings)
        >>> app = typer.Typer()
        >>> _ = app.command()(train)
        >>> app(["out", "--edit", "a", "--edit", "b"], standalone_mode=False)
        out {'steps': 3, 'edits': ['a', 'b']}
    """
    known = flags_of(settings)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        made = {
            name: own[name] if name in own else _parameter(known[name], optional, repeated, **options.get(name, {}))
            for name in names
        }

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {name: _plain(given.pop(name)) for name in names if name not in own}
            command(**given, settings={name: value for name, value in values.items() if value is not None})

        outside = [one for one in own.values() if one.name not in made]
        parameters = [one for mine in outside for one in (made.values() if mine.name == "settings" else [mine])]
        kept = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        run.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]  # which typer reads
        run.__annotations__ = {one.name: one.annotation for one in kept}
        return run

    return decorate


def _parameter(flag: Flag, optional: bool, repeated: str, /, **options: Any) -> inspect.Parameter:
    named = options.pop("flag", ())
    names = (named,) if isinstance(named, str) else named
    choices = flag.choices if options.pop("choices", True) else ()
    options.setdefault("help", first_sentence(flag.help) + (repeated if flag.many else ""))
    if flag.kind is int and not choices and not optional:
        options = {"min": flag.least, "max": flag.most, **options}
    if flag.kind is float:
        options = {"parser": number, "metavar": "NUMBER", **options}
    if optional and flag.default:
        options.setdefault("show_default", ", ".join(map(str, flag.default)) if flag.many else str(flag.default))
    kind: Any = Enum(flag.name, {one: one for one in choices}, type=str) if choices else flag.kind
    kind = list[kind] if flag.many else kind
    default = None if optional or flag.many else flag.default
    annotation = Annotated[kind | None if default is None else kind, typer.Option(*names, **options)]  # type: ignore[valid-type]  # made as it runs
    return inspect.Parameter(flag.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def number(text: str | float) -> float:
    """A number as it is written: plain, or as levels of 8 bits, "16/255", in units of images in [-1, 1].

    Example:
        >>> number("0.05"), number("8/255") == 8 / 127.5
        (0.05, True)
    """
    return float(as_number(text))


def first_sentence(text: str) -> str:
    """The first sentence of a text, as one.

    Example:
        >>> first_sentence("how many; `0` for none. More take longer.")
        'How many; `0` for none.'
    """
    sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
    return sentence[:1].upper() + sentence[1:]


def _plain(value: Any) -> Any:
    """What was given, without typer's own forms: no enumerations, and None for an empty list."""
    if isinstance(value, list):
        return [_plain(one) for one in value] or None
    return value.value if isinstance(value, Enum) else value


@dataclass(frozen=True)
class _Parts:
    """What an annotation says of values."""

    kinds: tuple[type, ...] = ()
    many: bool = False
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None

    @classmethod
    def of(cls, annotation: Any) -> _Parts:
        origin, inner = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            of = cls.of(inner[0])
            bounds: dict[str, int] = {}
            for bound in _bounds(inner[1:]):
                bounds |= bound
            return cls(of.kinds, of.many, of.choices, bounds.get("least", of.least), bounds.get("most", of.most))
        if origin in (Union, UnionType):
            parts = [cls.of(one) for one in inner if one is not NoneType]
            first = parts[0]
            kinds = tuple(kind for part in parts for kind in part.kinds)
            return cls(kinds, any(part.many for part in parts), first.choices, first.least, first.most)
        if origin is Literal:
            return cls((type(inner[0]),), choices=tuple(map(str, inner)))
        if origin in (tuple, list):
            of = cls.of(inner[0])
            return cls(of.kinds, True, of.choices, of.least, of.most)
        if origin is dict:
            return cls((str,), many=True)
        return cls((annotation,) if annotation in _SIMPLE else ())


def _bounds(metadata: Sequence[Any]) -> Iterator[dict[str, int]]:
    """Ranges of whole numbers, in pydantic's `Field` or in what that is made of."""
    for one in metadata:
        yield from _bounds(getattr(one, "metadata", ()))
        for name, bound, shift in (("ge", "least", 0), ("gt", "least", 1), ("le", "most", 0), ("lt", "most", -1)):
            if isinstance(value := getattr(one, name, None), int):
                yield {bound: value + shift}
