"""What can be asked for by name on the command line, ours and third parties'."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from .kinds import checked, levels_of


class Registry(Mapping[str, Any]):
    """Things by name: those of this package, and those that other packages declare as entry points.

    Nothing is imported before it is asked for. Another package adds a name by an entry point in its own metadata; a
    name of this package cannot be taken over.

    Args:
        group: the entry points' group, such as "loraguard.generators".
        ours: by name, "module:attribute".

    Raises:
        KeyError: on access, for a name that nobody has declared; the message lists those that exist.
        ImportError: on access, for an entry point that cannot be imported; the message names it.

    Example:
        >>> registry = Registry("loraguard.generators", {"demo": "loraguard.generators.demo:DemoEditor"})
        >>> list(registry), registry["demo"].__name__
        (['demo'], 'DemoEditor')
    """

    def __init__(self, group: str, ours: Mapping[str, str]) -> None:
        self.group, self.ours = group, dict(ours)

    @property
    def targets(self) -> dict[str, str]:
        """By name, where each thing is: "module:attribute"."""
        from importlib.metadata import entry_points

        theirs = {point.name: point.value for point in entry_points(group=self.group)}
        return {**self.ours, **{name: theirs[name] for name in sorted(theirs) if name not in self.ours}}

    def check(self, name: str) -> str:
        """Where the thing of a name is, "module:attribute", without importing it.

        Raises:
            ValueError: for a name that nobody has declared; the message lists those that exist.
        """
        if name in self.ours:  # whatever others declare: looking for that takes longer
            return self.ours[name]
        targets = self.targets
        if name not in targets:
            near = difflib.get_close_matches(name, targets, 1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"There is no {name!r} among {self.group}: {', '.join(targets)}.{guess}")
        return targets[name]

    def __getitem__(self, name: str) -> Any:
        try:
            target = self.check(name)
        except ValueError as error:
            raise KeyError(error.args[0]) from None
        module, _, attribute = target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:  # a stranger's module may raise anything
            raise ImportError(f"{name!r} of {self.group}, {target!r}, cannot be imported: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __contains__(self, name: object) -> bool:
        return name in self.ours or name in self.targets


def build(registry: Registry, spec: str) -> Any:
    """What a spec on the command line names, made with its settings: `NAME` or `NAME:VALUE,KEY=VALUE,...`.

    Values are Python literals, or else words; those without a key are taken in order. "16/255" is 16 levels of 8 bits,
    as papers write budgets: 16 / 127.5 on images in [-1, 1].

    Raises:
        ValueError: for a name that the registry does not have, or settings that the thing does not take; the message
            says which there are.

    Example:
        >>> from loraguard.defenses import DEFENSES
        >>> build(DEFENSES, "disrupting:0.1,steps=15,method=pgd")
        Disrupting(eps=0.1, steps=15, step_size=None, method='pgd', restarts=1, layer=None, eot=1)
    """
    name, given, named = parse_spec(spec)
    registry.check(name)
    made = registry[name]
    try:
        checked(made, inspect.signature(made).bind(*given, **named).arguments)
        return made(*given, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{spec!r}: {error} ({name} takes {_settings(made)}.)") from error


def parse_spec(spec: str) -> tuple[str, list[Any], dict[str, Any]]:
    """The name in a spec `NAME:VALUE,KEY=VALUE,...`, values without a key, and values by key.

    Example:
        >>> parse_spec("disrupting:0.1,method=pgd")
        ('disrupting', [0.1], {'method': 'pgd'})
    """
    name, _, settings = spec.partition(":")
    parts = [part.partition("=") for part in settings.split(",") if part.strip()]
    given = [_literal(key) for key, sign, _ in parts if not sign]
    return name, given, {key.strip(): _literal(value) for key, sign, value in parts if sign}


def _settings(made: Any) -> str:
    """What a class or function takes, as it is written in a spec."""
    parameters = inspect.signature(made).parameters.values()
    return (
        ", ".join(one.name if one.default is one.empty else f"{one.name}={one.default}" for one in parameters)
        or "no settings"
    )


def _literal(text: str) -> Any:
    if (levels := levels_of(text)) is not None:
        return levels
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
